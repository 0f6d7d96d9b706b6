//! Writes, put together from the requests that asked for them, and which of two
//! is surely the older.

use std::collections::{BTreeMap, HashMap};

use crate::history::{
    Api, End, Exchange, History, Micros, ORIGIN_FIELD, Resource, Thing, Token, Verb,
};

/// How far apart two processes' clocks may be: each corrects its own to
/// PostgreSQL's to within half a probe, which takes at most a second.
pub const CLOCK_SLACK: Micros = 1_000_000;

/// What became of a write as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// Nobody was told that it was accepted.
    Unacknowledged,
    /// It was accepted.
    Accepted,
    /// It was accepted, and its operation is dead, for this reason.
    Dead(String),
}

/// A write: one request, or all those under one idempotency key.
#[derive(Debug, Clone)]
pub struct Write<'h> {
    /// Its token.
    pub token: Token,
    /// What it is about, where that is known.
    pub resource: Option<Resource>,
    /// How it was asked for.
    pub verb: Verb,
    /// Whether it has an idempotency key.
    pub keyed: bool,
    /// The requests, in the order they were sent.
    pub attempts: Vec<&'h Exchange>,
    /// What became of it.
    pub fate: Fate,
}

/// All writes of a run.
#[derive(Debug)]
pub struct Writes<'h> {
    by_token: BTreeMap<Token, Write<'h>>,
    by_resource: HashMap<Resource, Vec<Token>>,
}

impl<'h> Writes<'h> {
    /// Puts them together.
    pub fn of(history: &'h History) -> Self {
        let mut by_token: BTreeMap<Token, Write<'h>> = BTreeMap::new();
        for exchange in &history.exchanges {
            let Some(wanted) = exchange.wanted() else {
                continue;
            };
            let write = by_token.entry(wanted.token).or_insert_with(|| Write {
                token: wanted.token,
                resource: None,
                verb: wanted.verb,
                keyed: wanted.keyed,
                attempts: Vec::new(),
                fate: Fate::Unacknowledged,
            });
            let thing = wanted.thing.or(exchange.seen().map(|seen| seen.thing));
            let user = exchange.user;
            write.resource = write
                .resource
                .or(thing.map(|thing| Resource { user, thing }));
            write.attempts.push(exchange);
        }
        find_unanswered(&mut by_token, history);
        let mut by_resource: HashMap<Resource, Vec<Token>> = HashMap::new();
        for write in by_token.values_mut() {
            write.attempts.sort_by_key(|attempt| attempt.invoked);
            write.fate = fate(write, history);
            if let Some(resource) = write.resource {
                by_resource.entry(resource).or_default().push(write.token);
            }
        }
        Self {
            by_token,
            by_resource,
        }
    }

    /// The write with this token.
    pub fn find(&self, token: Token) -> Option<&Write<'h>> {
        self.by_token.get(&token)
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Write<'h>> {
        self.by_token.values()
    }

    /// Those of a resource.
    pub fn of_resource(&self, resource: Resource) -> impl Iterator<Item = &Write<'h>> {
        let tokens = self.by_resource.get(&resource).map(Vec::as_slice);
        tokens
            .unwrap_or_default()
            .iter()
            .filter_map(|token| self.find(*token))
    }

    /// Every resource that a write is about.
    pub fn resources(&self) -> impl Iterator<Item = Resource> {
        self.by_resource.keys().copied()
    }

    /// Whether a delete of it, acknowledged or not, was sent before `time`.
    pub fn may_be_deleted(&self, resource: Resource, time: Micros) -> bool {
        self.of_resource(resource)
            .any(|write| write.verb == Verb::Delete && write.begin() < time)
    }

    /// Whether a write surely is there for a process of `node` at `time`: it
    /// was acknowledged before, either as committed in PostgreSQL or by this
    /// node's buffer.
    pub fn is_made(&self, resource: Resource, node: u8, time: Micros) -> bool {
        self.of_resource(resource).any(|write| {
            let reached = |attempt: &&Exchange| {
                attempt.ended <= time
                    && attempt.is_acknowledged()
                    && (is_direct(attempt) || attempt.api.node == node)
            };
            write.verb.makes() && write.fate == Fate::Accepted && write.attempts.iter().any(reached)
        })
    }
}

/// A `POST` that was never answered may have made a task all the same: its
/// origin, which nothing else sets, says which.
fn find_unanswered(by_token: &mut BTreeMap<Token, Write<'_>>, history: &History) {
    for (resource, row) in &history.outcome.rows {
        let origin = row.tokens[ORIGIN_FIELD];
        if let (Thing::Task(_), Some(write)) = (resource.thing, by_token.get_mut(&origin)) {
            write.resource.get_or_insert(*resource);
        }
    }
}

fn fate(write: &Write<'_>, history: &History) -> Fate {
    let accepted = || {
        write
            .attempts
            .iter()
            .filter(|attempt| attempt.is_acknowledged())
    };
    if accepted().next().is_none() {
        return Fate::Unacknowledged;
    }
    // Of a key's requests one alone took effect; it lives if any of them does.
    let mut reasons = accepted().map(|attempt| reason_of_death(attempt, history));
    let first = reasons.next().flatten();
    match first {
        Some(reason) if reasons.all(|other| other.is_some()) => Fate::Dead(reason),
        _ => Fate::Accepted,
    }
}

fn reason_of_death(attempt: &Exchange, history: &History) -> Option<String> {
    let id = attempt.reply.as_ref()?.operation?;
    let outcome = &history.outcome;
    match outcome.ledger.get(&id).map(|entry| &entry.end) {
        Some(End::Dead(reason)) => Some(reason.clone()),
        Some(End::Applied | End::Superseded) => None,
        None => outcome.dead.get(&id).cloned(),
    }
}

/// Whether the answer says that it is committed in PostgreSQL.
pub fn is_direct(attempt: &Exchange) -> bool {
    matches!(attempt.status(), Some(200 | 201 | 204))
}

impl Write<'_> {
    /// When it was first sent.
    pub fn begin(&self) -> Micros {
        self.attempts.first().map_or(0, |attempt| attempt.invoked)
    }

    /// When its place in time was settled at the latest.
    pub fn end(&self) -> Micros {
        let ends = self.attempts.iter().map(|attempt| attempt.ended);
        ends.max().unwrap_or(0)
    }

    /// Whether it was accepted and isn't dead.
    pub fn stands(&self) -> bool {
        self.fate == Fate::Accepted
    }

    /// Whether all its requests were answered with a refusal that can't have
    /// taken effect.
    pub fn is_refused(&self) -> bool {
        self.attempts
            .iter()
            .all(|attempt| matches!(attempt.status(), Some(400..=499)))
    }

    fn is_direct(&self) -> bool {
        self.attempts.iter().all(|attempt| is_direct(attempt))
    }

    fn is_acknowledged_throughout(&self) -> bool {
        self.attempts
            .iter()
            .all(|attempt| attempt.is_acknowledged())
    }

    fn node(&self) -> Option<u8> {
        one(self.attempts.iter().map(|attempt| attempt.api.node))
    }

    fn life(&self) -> Option<(Api, u32)> {
        let lives = self
            .attempts
            .iter()
            .map(|attempt| attempt.life.map(|life| (attempt.api, life)));
        one(lives).flatten()
    }
}

fn one<T: PartialEq>(mut values: impl Iterator<Item = T>) -> Option<T> {
    let first = values.next()?;
    values.all(|other| other == first).then_some(first)
}

/// Whether `old` is surely the older: it had ended before `new` began, by more
/// than their clocks may be apart. Nobody's write is older than any.
pub fn is_older(old: Option<&Write<'_>>, new: &Write<'_>) -> bool {
    old.is_none_or(|old| {
        old.token != new.token && old.end().saturating_add(slack(old, new)) <= new.begin()
    })
}

/// By how much the clocks that stamped two writes may differ. None of it matters:
///
/// - when both went through one life of one process, whose clock only rises;
/// - when PostgreSQL took the newer directly, since that is stamped above what
///   PostgreSQL holds, and the older was there by then (or in this node's buffer,
///   and then the newer would have followed it into the buffer).
fn slack(old: &Write<'_>, new: &Write<'_>) -> Micros {
    let surely = old.is_acknowledged_throughout() && new.is_acknowledged_throughout();
    let one_life = old.life().is_some() && old.life() == new.life();
    let one_node = old.node().is_some() && old.node() == new.node();
    if surely && (one_life || (new.is_direct() && (old.is_direct() || one_node))) {
        0
    } else {
        CLOCK_SLACK
    }
}
