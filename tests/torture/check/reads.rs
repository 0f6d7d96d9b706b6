//! Answers: whoever was told of a write sees it, or a newer one, from then on.
//!
//! Everything a process has acknowledged or shown makes a *witness*: from its
//! time on, and within its reach, an answer must not show what is surely older.
//! Users share nothing, so they are followed one after the other.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::order::{Writes, is_direct, is_older};
use super::{Breach, Verdict};
use crate::history::{
    ALIEN, Api, Ask, Exchange, FIELDS, History, Micros, Resource, Seen, Shown, Sync, Thing, Token,
    Verb,
};

/// Which answers a witness binds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Reach {
    /// Those of one life of one process.
    Life(Api, u32),
    /// Those of the processes on one buffer, until the operation left it.
    Buffer(u8, Micros),
    /// Those that come from PostgreSQL.
    Store,
}

#[derive(Debug, Clone, Copy)]
struct Witness {
    reach: Reach,
    from: Micros,
}

/// All that was said of one resource, as far as it binds later answers.
#[derive(Debug, Default)]
struct Testimony {
    /// Writes of each field.
    fields: [Vec<(Witness, Token)>; FIELDS],
    /// That it is there, whole.
    exists: Vec<Witness>,
    /// That it is deleted.
    deleted: Vec<Witness>,
    shown: HashSet<(Reach, usize, Token)>,
}

/// What one answer says of one resource.
#[derive(Debug, Clone, Copy)]
enum Said {
    Shown(Seen),
    Absent { from_store: bool },
    Unknown,
}

/// Follows every user's resources through every answer.
pub fn check(history: &History, writes: &Writes<'_>, verdict: &mut Verdict) {
    let mut by_user: BTreeMap<u32, Vec<&Exchange>> = BTreeMap::new();
    for exchange in &history.exchanges {
        by_user.entry(exchange.user).or_default().push(exchange);
    }
    let mut resources: HashMap<u32, Vec<Resource>> = HashMap::new();
    for resource in writes.resources() {
        resources.entry(resource.user).or_default().push(resource);
    }
    for (user, mut exchanges) in by_user {
        exchanges.sort_by_key(|exchange| exchange.ended);
        let mut of_user = resources.remove(&user).unwrap_or_default();
        of_user.sort_unstable();
        for answers in answers_by_resource(&exchanges, &of_user) {
            Follower {
                history,
                writes,
                verdict,
            }
            .follow(&answers);
        }
    }
}

struct Answers<'h> {
    resource: Resource,
    said: Vec<(&'h Exchange, Option<Said>)>,
}

/// Of each resource all answers that say something of it, and its writes, in
/// the order of their ends.
fn answers_by_resource<'h>(exchanges: &[&'h Exchange], resources: &[Resource]) -> Vec<Answers<'h>> {
    let index: HashMap<Thing, usize> = resources
        .iter()
        .enumerate()
        .map(|(position, resource)| (resource.thing, position))
        .collect();
    let mut answers: Vec<Answers<'h>> = resources
        .iter()
        .map(|resource| Answers {
            resource: *resource,
            said: Vec::new(),
        })
        .collect();
    for exchange in exchanges {
        for (thing, said) in sayings(exchange, resources) {
            if let Some(position) = index.get(&thing) {
                answers[*position].said.push((exchange, said));
            }
        }
    }
    answers
}

fn sayings(exchange: &Exchange, resources: &[Resource]) -> Vec<(Thing, Option<Said>)> {
    let Some(reply) = &exchange.reply else {
        return Vec::new();
    };
    match (&exchange.ask, &reply.shown) {
        (
            Ask::List,
            Shown::Page {
                items,
                complete,
                more,
            },
        ) => {
            let mut said: Vec<_> = items
                .iter()
                .map(|seen| (seen.thing, Some(Said::Shown(*seen))))
                .collect();
            if !more {
                let there: HashSet<Thing> = items.iter().map(|seen| seen.thing).collect();
                let absent = Said::Absent {
                    from_store: *complete,
                };
                let others = resources.iter().map(|resource| resource.thing);
                let others = others
                    .filter(|thing| matches!(thing, Thing::Task(_)) && !there.contains(thing));
                said.extend(others.map(|thing| (thing, Some(absent))));
            }
            said
        }
        (_, Shown::One(seen)) => vec![(seen.thing, Some(Said::Shown(*seen)))],
        (Ask::Read(thing), _) if reply.status == 404 => {
            vec![(*thing, Some(Said::Absent { from_store: true }))]
        }
        (Ask::Read(thing), _) if reply.status == 503 => vec![(*thing, Some(Said::Unknown))],
        (Ask::Write(wanted), _) => wanted
            .thing
            .map(|thing| (thing, None))
            .into_iter()
            .collect(),
        _ => Vec::new(),
    }
}

struct Follower<'a, 'h> {
    history: &'h History,
    writes: &'a Writes<'h>,
    verdict: &'a mut Verdict,
}

impl Follower<'_, '_> {
    /// All testimony is gathered first and dated, since an answer that began
    /// early may end late.
    fn follow(&mut self, answers: &Answers<'_>) {
        let mut testimony = Testimony::default();
        for (exchange, said) in &answers.said {
            self.hear(&mut testimony, exchange, *said);
        }
        for (exchange, said) in &answers.said {
            if let Some(said) = said {
                self.judge(&testimony, answers.resource, exchange, *said);
            }
        }
    }

    fn hear(&self, testimony: &mut Testimony, exchange: &Exchange, said: Option<Said>) {
        let from = exchange.ended;
        if let Some(life) = exchange.life {
            let reach = Reach::Life(exchange.api, life);
            self.hear_from(testimony, Witness { reach, from }, exchange, said);
        }
        let Some(wanted) = exchange.wanted().filter(|_| exchange.is_acknowledged()) else {
            return;
        };
        let reach = if is_direct(exchange) {
            Some(Reach::Store)
        } else {
            self.waits_until(exchange)
                .map(|until| Reach::Buffer(exchange.api.node, until))
        };
        // A PATCH of what another node made is there, and so is the rest of it, if that was known when it was taken: a
        // repeat shows what its process knows by then.
        let is_repeat = exchange.reply.as_ref().is_some_and(|reply| reply.replayed);
        let shows = said.filter(|_| wanted.verb != Verb::Delete && !is_repeat);
        let own = shows.filter(|_| !is_direct(exchange) || wanted.verb.makes());
        if let Some(reach) = reach {
            self.hear_write(testimony, Witness { reach, from }, exchange);
            if own.is_some() && self.stands(wanted.token) {
                testimony.exists.push(Witness { reach, from });
            }
        }
    }

    fn hear_from(
        &self,
        testimony: &mut Testimony,
        witness: Witness,
        exchange: &Exchange,
        said: Option<Said>,
    ) {
        if exchange.is_acknowledged() {
            self.hear_write(testimony, witness, exchange);
        }
        let Some(Said::Shown(seen)) = said else {
            return;
        };
        // What a refused write made it show goes with that write.
        if seen
            .tokens
            .iter()
            .all(|token| *token == 0 || self.stands(*token))
        {
            testimony.exists.push(witness);
        }
        for (field, token) in seen.tokens.into_iter().enumerate() {
            if self.stands(token) && testimony.shown.insert((witness.reach, field, token)) {
                testimony.fields[field].push((witness, token));
            }
        }
    }

    fn hear_write(&self, testimony: &mut Testimony, witness: Witness, exchange: &Exchange) {
        let Some(wanted) = exchange.wanted() else {
            return;
        };
        if !self.stands(wanted.token) {
            return;
        }
        if wanted.verb == Verb::Delete {
            testimony.deleted.push(witness);
        }
        for field in (0..FIELDS).filter(|field| wanted.verb.sets(*field)) {
            testimony.fields[field].push((witness, wanted.token));
        }
    }

    fn stands(&self, token: Token) -> bool {
        self.writes.find(token).is_some_and(|write| write.stands())
    }

    /// Until when the operation of a 202 surely waited in its buffer.
    fn waits_until(&self, exchange: &Exchange) -> Option<Micros> {
        let id = exchange.reply.as_ref()?.operation?;
        Some(self.history.outcome.ledger.get(&id)?.finished)
    }

    fn judge(
        &mut self,
        testimony: &Testimony,
        resource: Resource,
        exchange: &Exchange,
        said: Said,
    ) {
        let complaint = match said {
            Said::Shown(seen) => self.judge_shown(testimony, exchange, &seen),
            Said::Absent { from_store } => {
                let is_there = binds(&testimony.exists, exchange, from_store);
                let excused = self.writes.may_be_deleted(resource, exchange.ended);
                (is_there && !excused)
                    .then(|| (Breach::Forgotten, String::from("not there any more")))
            }
            Said::Unknown => binds(&testimony.exists, exchange, false)
                .then(|| (Breach::Forgotten, String::from("unknown all at once"))),
        };
        if let Some((breach, what)) = complaint {
            let detail = format!("{what}: {}", brief(exchange, said));
            self.verdict.add(breach, Some(resource), detail);
        }
    }

    fn judge_shown(
        &mut self,
        testimony: &Testimony,
        exchange: &Exchange,
        seen: &Seen,
    ) -> Option<(Breach, String)> {
        let from_store = seen.sync == Sync::Synced;
        if binds(&testimony.deleted, exchange, from_store) {
            return Some((Breach::Undeleted, String::from("deleted before")));
        }
        for (field, token) in seen.tokens.into_iter().enumerate() {
            self.verdict.looked.shown_fields += 1;
            if token == ALIEN {
                return Some((Breach::Doubled, format!("field {field} is nobody's")));
            }
            let shown = self.writes.find(token);
            let own = exchange.wanted().filter(|wanted| wanted.verb.sets(field));
            let own = own.map(|wanted| wanted.token);
            let told = testimony.fields[field].iter();
            let told = told.filter(|(witness, _)| witness.binds(exchange, from_store));
            let newer = told.map(|(_, token)| *token).chain(own).find(|token| {
                let told = self.writes.find(*token);
                told.is_some_and(|told| told.stands() && is_older(shown, told))
            });
            if let Some(newer) = newer {
                let what = format!("field {field} shows {token}, which is older than {newer}");
                return Some((Breach::Forgotten, what));
            }
        }
        None
    }
}

impl Witness {
    fn binds(&self, exchange: &Exchange, from_store: bool) -> bool {
        self.from <= exchange.invoked
            && match self.reach {
                Reach::Life(api, life) => exchange.api == api && exchange.life == Some(life),
                Reach::Buffer(node, until) => exchange.api.node == node && exchange.ended <= until,
                Reach::Store => from_store,
            }
    }
}

fn binds(witnesses: &[Witness], exchange: &Exchange, from_store: bool) -> bool {
    let mut witnesses = witnesses.iter();
    witnesses.any(|witness| witness.binds(exchange, from_store))
}

/// A list's other items say nothing of this resource.
fn brief(exchange: &Exchange, said: Said) -> String {
    match exchange.ask {
        Ask::List => format!(
            "{} life {:?} at {} to {} listed {said:?}",
            exchange.api, exchange.life, exchange.invoked, exchange.ended
        ),
        _ => exchange.to_string(),
    }
}
