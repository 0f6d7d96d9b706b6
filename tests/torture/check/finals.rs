//! Rows at the end: nothing lost, doubled, stale, undeleted or buried.

use std::collections::{BTreeSet, HashMap};

use super::order::{Fate, Write, Writes, is_older};
use super::{Breach, Verdict};
use crate::history::{FIELDS, History, ORIGIN_FIELD, Resource, Row, Thing, Token, Verb};

/// Compares every acknowledged write with the rows, and every row with the
/// writes.
pub fn check(history: &History, writes: &Writes<'_>, verdict: &mut Verdict) {
    for write in writes.all() {
        check_operations(history, write, verdict);
        check_death(history, writes, write, verdict);
        check_identity(write, verdict);
        if write.stands() {
            verdict.looked.acknowledged += 1;
            check_effect(history, writes, write, verdict);
        }
    }
    check_rows(history, writes, verdict);
}

/// Every operation that an answer named has ended somewhere.
fn check_operations(history: &History, write: &Write<'_>, verdict: &mut Verdict) {
    let outcome = &history.outcome;
    let user = write.attempts.first().map(|attempt| attempt.user);
    let of_key = || {
        let own = |entry: &crate::history::Entry| {
            entry.key == Some(write.token) && Some(entry.user) == user
        };
        write.keyed && outcome.ledger.values().any(own)
    };
    for attempt in &write.attempts {
        let Some(id) = attempt.reply.as_ref().and_then(|reply| reply.operation) else {
            continue;
        };
        let ended = outcome.ledger.contains_key(&id) || outcome.dead.contains_key(&id);
        if attempt.is_acknowledged() && !ended && !of_key() {
            let detail = format!("operation {id} of write {} vanished", write.token);
            verdict.add(Breach::Lost, write.resource, detail);
        }
    }
}

fn check_death(history: &History, writes: &Writes<'_>, write: &Write<'_>, verdict: &mut Verdict) {
    let (Fate::Dead(reason), Some(resource)) = (&write.fate, write.resource) else {
        return;
    };
    let never_there = || {
        let mut nodes = write.attempts.iter().map(|attempt| attempt.api.node);
        nodes.all(|node| !writes.is_made(resource, node, write.begin()))
    };
    let justified = match reason.as_str() {
        "deleted" => writes.may_be_deleted(resource, u64::MAX),
        "not_found" => never_there(),
        other => other.strip_prefix("blocked_by ").is_some_and(|blocker| {
            let mut dead = history.outcome.dead.keys();
            dead.any(|id| id.to_string() == blocker)
        }),
    };
    if !justified {
        let detail = format!("write {} is dead: {reason}", write.token);
        verdict.add(Breach::Buried, Some(resource), detail);
    }
}

/// All answers to one key, or one request, name the same resource.
fn check_identity(write: &Write<'_>, verdict: &mut Verdict) {
    let shown = write.attempts.iter().filter_map(|attempt| attempt.seen());
    let things: BTreeSet<Thing> = shown.map(|seen| seen.thing).collect();
    if things.len() > 1 {
        let detail = format!("write {} made several: {things:?}", write.token);
        verdict.add(Breach::Doubled, write.resource, detail);
    }
}

fn check_effect(history: &History, writes: &Writes<'_>, write: &Write<'_>, verdict: &mut Verdict) {
    let Some(resource) = write.resource else {
        return;
    };
    let row = history.outcome.rows.get(&resource);
    match (write.verb, row) {
        (Verb::Delete, Some(row)) if !row.deleted => {
            let detail = format!("delete {} was acknowledged", write.token);
            verdict.add(Breach::Undeleted, Some(resource), detail);
        }
        (Verb::Delete, _) => {}
        (_, None) => {
            let detail = format!("write {} was acknowledged, there is no row", write.token);
            verdict.add(Breach::Lost, Some(resource), detail);
        }
        (_, Some(row)) if row.deleted => {
            if !writes.may_be_deleted(resource, u64::MAX) {
                let detail = format!("write {}: deleted, and by nobody", write.token);
                verdict.add(Breach::Lost, Some(resource), detail);
            }
        }
        (_, Some(row)) => check_fields(writes, write, row, verdict),
    }
}

fn check_fields(writes: &Writes<'_>, write: &Write<'_>, row: &Row, verdict: &mut Verdict) {
    for field in (0..FIELDS).filter(|field| write.verb.sets(*field)) {
        let there = row.tokens[field];
        let is_alien = there != 0 && writes.find(there).is_none();
        // An alien is complained of where rows are compared with the writes.
        if is_alien || !is_older(writes.find(there), write) {
            continue;
        }
        let breach = if there == 0 {
            Breach::Lost
        } else {
            Breach::Stale
        };
        let detail = format!(
            "field {field} holds {there}, which is older than {}",
            write.token
        );
        verdict.add(breach, write.resource, detail);
    }
}

/// Every row was asked for, once, and holds only what was asked for.
fn check_rows(history: &History, writes: &Writes<'_>, verdict: &mut Verdict) {
    let mut made: HashMap<Token, Resource> = HashMap::new();
    for (resource, row) in &history.outcome.rows {
        let is_task = matches!(resource.thing, Thing::Task(_));
        if is_task && writes.of_resource(*resource).next().is_none() {
            let detail = String::from("a row that no request is known to have made");
            verdict.add(Breach::Doubled, Some(*resource), detail);
        }
        if row.deleted {
            continue;
        }
        if is_task && let Some(other) = made.insert(row.tokens[ORIGIN_FIELD], *resource) {
            let detail = format!("made by the same write as {other}");
            verdict.add(Breach::Doubled, Some(*resource), detail);
        }
        for (field, token) in row.tokens.iter().enumerate() {
            check_origin(writes, (*resource, field), *token, verdict);
        }
    }
}

/// Whoever set a field was asked to, and wasn't told that it is refused.
fn check_origin(
    writes: &Writes<'_>,
    (resource, field): (Resource, usize),
    token: Token,
    verdict: &mut Verdict,
) {
    let fits = writes.find(token).is_some_and(|write| {
        write.resource == Some(resource) && write.verb.sets(field) && !write.is_refused()
    });
    let untouched_profile = token == 0 && resource.thing == Thing::Profile;
    if !fits && !untouched_profile {
        let detail = format!("field {field} holds {token}, which nobody was to set");
        verdict.add(Breach::Doubled, Some(resource), detail);
    }
}
