//! The buffers' counters against each other, and against the ledger.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::order::Writes;
use super::{Breach, Verdict};
use crate::history::{Books, Exchange, History};

/// Checks every node's counters, and all of them against the ledger.
pub fn check(history: &History, writes: &Writes<'_>, verdict: &mut Verdict) {
    for (node, books) in history.outcome.books.iter().enumerate() {
        let ended = books.applied + books.superseded + books.dead;
        if books.pending != 0 || books.astray != 0 || books.accepted != ended {
            let detail = format!("the counters of node {node} don't add up: {books:?}");
            verdict.add(Breach::Unbalanced, None, detail);
        }
    }
    check_ledger(history, writes, verdict);
}

/// Operations without a key are in the ledger exactly when they were buffered;
/// of those with a key, a repeat that was buffered too leaves no row, so how many
/// the buffers counted is known up to the requests without an answer.
fn check_ledger(history: &History, writes: &Writes<'_>, verdict: &mut Verdict) {
    let outcome = &history.outcome;
    let counted: u64 = outcome.books.iter().map(ended).sum();
    let without_key = outcome.ledger.values().filter(|entry| entry.key.is_none());
    let unrecorded = outcome
        .dead
        .keys()
        .filter(|id| !outcome.ledger.contains_key(id));
    let explained = without_key.count() + unrecorded.clone().count();
    let unrecorded: BTreeSet<&Uuid> = unrecorded.collect();

    let mut surely: BTreeSet<Uuid> = BTreeSet::new();
    let mut perhaps = 0_u64;
    for attempt in keyed_attempts(writes) {
        match (attempt.status(), operation(attempt)) {
            (Some(202), Some(id)) if !unrecorded.contains(&id) => {
                surely.insert(id);
            }
            (None | Some(500..), _) => perhaps += 1,
            _ => {}
        }
    }
    let low = explained as u64 + surely.len() as u64;
    if counted < low || counted > low + perhaps {
        let detail = format!(
            "the buffers ended {counted} operations; the ledger and the answers tell of {low} \
             to {}",
            low + perhaps
        );
        verdict.add(Breach::Unbalanced, None, detail);
    }
}

fn ended(books: &Books) -> u64 {
    books.applied + books.superseded + books.dead
}

fn keyed_attempts<'w>(writes: &'w Writes<'_>) -> impl Iterator<Item = &'w Exchange> {
    let keyed = writes.all().filter(|write| write.keyed);
    keyed.flat_map(|write| write.attempts.iter().copied())
}

fn operation(attempt: &Exchange) -> Option<Uuid> {
    attempt.reply.as_ref()?.operation
}
