//! The one way by which tasks and profiles change.
//!
//! A lone operation that leaves no record is one statement, merged by PostgreSQL. Everything else (and what that
//! statement did not touch) is a transaction: read the ledger, lock the rows, judge and merge in Rust, write each
//! resource once, write the ledger. Both decide as [`judge`](crate::domain::judge) and the records' `merge` do, so
//! it doesn't matter which of them an operation takes, nor in which company.
//!
//! Transactions at the same time are let run, and the loser of a race starts again: where a row appeared that wasn't
//! there to be locked, and where the ledger has meanwhile (or had before) a record of the same id or key.
//!
//! The server's work is three quarters of a batch's time (2000 tasks of 300 bytes, 100 users, PostgreSQL 15), a third
//! of that the ledger's.

use std::collections::HashSet;

use super::connection::Connection;
use super::errors::is_race;
use super::ledger::{self, LedgerArrays, LedgerColumns, Recorded};
use super::recall::{Lookup, Recalled, Recollection};
use super::resources::Resources;
use super::{profile, task};
use crate::domain::{
    Body, IdempotencyKey, Operation, OperationId, OperationRecord, Outcome, Rejection, Row, Stamp,
    State, UserId,
};
use crate::seeded::Bug;
use crate::store::{FailureClass, StoreError};

/// How often a transaction is run when others are faster each time. A second run meets what the first one lost to,
/// so a third is rare.
const ATTEMPTS: usize = 5;

/// What became of one operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Whether it took effect; of a repeat, what was answered first.
    pub outcome: Outcome,
    /// The resource as it is now, a tombstone included; `None` where there is none or it is another user's.
    pub state: Option<State>,
    /// Whether this operation made the resource.
    pub created: bool,
    /// The record of the first time, when this is a repeat.
    pub replayed: Option<OperationRecord>,
}

/// Applies operations in their order, all or nothing. Returns as many answers, in the same order.
pub(super) async fn apply(
    connection: &mut Connection<'_>,
    operations: &[&Operation],
) -> Result<Vec<Applied>, StoreError> {
    refuse_sessions(operations)?;
    if let [operation] = operations
        && let Some(applied) = merge_alone(connection, operation).await?
    {
        return Ok(vec![applied]);
    }
    transact(connection, operations, answer_settled).await
}

/// The same, for one who wants to know the outcomes only: most of what an [`Applied`] takes is a copy of each resource.
pub(super) async fn apply_batch(
    connection: &mut Connection<'_>,
    operations: &[&Operation],
) -> Result<Vec<Outcome>, StoreError> {
    refuse_sessions(operations)?;
    transact(connection, operations, |settled, _| {
        settled.outcome_of_its_own()
    })
    .await
}

fn refuse_sessions(operations: &[&Operation]) -> Result<(), StoreError> {
    let is_session = |operation: &&Operation| matches!(operation.body, Body::Session(_));
    if operations.iter().any(is_session) {
        return Err(StoreError::new(
            FailureClass::Item,
            "sessions are not kept in postgres",
        ));
    }
    Ok(())
}

/// An operation that was settled the long way.
struct Settled<'o> {
    operation: &'o Operation,
    outcome: Outcome,
    replayed: Option<Recorded>,
}

impl Settled<'_> {
    /// What it did itself, where that isn't what was answered for the first of its key.
    fn outcome_of_its_own(&self) -> Outcome {
        let first = self.replayed.as_ref();
        let first = first.filter(|first| first.operation.id != self.operation.id);
        match (self.outcome, first) {
            (Outcome::Applied | Outcome::Superseded, Some(first)) => Outcome::Repeated(first.stamp),
            (outcome, _) => outcome,
        }
    }
}

/// The long way, until no other transaction is faster. `answer` makes what is returned for each operation.
async fn transact<T>(
    connection: &mut Connection<'_>,
    operations: &[&Operation],
    answer: impl Fn(Settled<'_>, &Resources) -> T,
) -> Result<Vec<T>, StoreError> {
    let mut lookup = Lookup::Necessary;
    for _ in 0..ATTEMPTS {
        if let Some(answers) = attempt(connection, operations, lookup, &answer).await? {
            return Ok(answers);
        }
        lookup = Lookup::All;
    }
    Err(StoreError::new(
        FailureClass::Contended,
        "other transactions were faster each time",
    ))
}

/// The short way: one statement and round trip. `None` when the operation has to go the long way.
async fn merge_alone(
    connection: &mut Connection<'_>,
    operation: &Operation,
) -> Result<Option<Applied>, sqlx::Error> {
    if operation.leaves_record() {
        return Ok(None);
    }
    let owner = &operation.user_id;
    let merged = match &operation.body {
        Body::Task { id, change } => match change.deleted {
            None => task::merge(connection, *id, owner, change).await?,
            Some(deleted) if change.created.is_none() => {
                task::delete(connection, *id, owner, deleted).await?
            }
            Some(_) => None,
        },
        // One that sets nothing may still make the profile; the stamps of a row don't tell whether it did.
        Body::Profile { change, provision }
            if change.deleted.is_none() && change.field_stamps().any(Stamp::is_set) =>
        {
            let mut first = provision.clone();
            first.merge(change);
            profile::merge(connection, owner, &first, change).await?
        }
        Body::Profile { .. } | Body::Session(_) => None,
    };
    Ok(merged.map(|row| answer_merged(operation, row)))
}

/// After a merge a field has the operation's stamp exactly where the operation was the newest.
fn answer_merged(operation: &Operation, row: Row) -> Applied {
    let applied = operation.prevails(&row.state) || row.state.deleted().is_some();
    let outcome = if applied {
        Outcome::Applied
    } else {
        Outcome::Superseded
    };
    let created = applied && made(operation, &row.state);
    Applied {
        outcome,
        state: Some(row.state),
        created,
        replayed: None,
    }
}

/// The long way, once. `None` when another transaction was faster: nothing is written, and it has to be run again.
async fn attempt<T>(
    connection: &mut Connection<'_>,
    operations: &[&Operation],
    lookup: Lookup,
    answer: &impl Fn(Settled<'_>, &Resources) -> T,
) -> Result<Option<Vec<T>>, StoreError> {
    let mut transaction = connection.begin().await?;
    let settled = settle(&mut transaction.connection(), operations, lookup, answer).await;
    match settled {
        Ok(Some(answers)) => {
            transaction.commit().await?;
            Ok(Some(answers))
        }
        Ok(None) => {
            transaction.rollback().await?;
            Ok(None)
        }
        Err(error) => {
            transaction.rollback().await?;
            if is_race(&error) {
                Ok(None)
            } else {
                Err(error.into())
            }
        }
    }
}

async fn settle<T>(
    connection: &mut Connection<'_>,
    operations: &[&Operation],
    lookup: Lookup,
    answer: &impl Fn(Settled<'_>, &Resources) -> T,
) -> Result<Option<Vec<T>>, sqlx::Error> {
    let mut answers = Vec::with_capacity(operations.len());
    for run in runs(operations) {
        match settle_run(connection, run, lookup, answer).await? {
            Some(more) => answers.extend(more),
            None => return Ok(None),
        }
    }
    Ok(Some(answers))
}

/// Cuts the operations where an id or a key comes a second time, so that the second finds the record of the first.
fn runs<'r, 'o>(operations: &'r [&'o Operation]) -> Vec<&'r [&'o Operation]> {
    let mut ids: HashSet<OperationId> = HashSet::with_capacity(operations.len());
    let mut keys: HashSet<(&UserId, &IdempotencyKey)> = HashSet::new();
    let mut runs = Vec::new();
    let mut start = 0;
    for (index, operation) in operations.iter().enumerate() {
        let key = operation
            .idempotency
            .as_ref()
            .map(|idempotency| (&operation.user_id, &idempotency.key));
        if ids.contains(&operation.id) || key.is_some_and(|key| keys.contains(&key)) {
            runs.push(&operations[start..index]);
            start = index;
            ids.clear();
            keys.clear();
        }
        ids.insert(operation.id);
        keys.extend(key);
    }
    runs.push(&operations[start..]);
    runs
}

async fn settle_run<T>(
    connection: &mut Connection<'_>,
    run: &[&Operation],
    lookup: Lookup,
    answer: &impl Fn(Settled<'_>, &Resources) -> T,
) -> Result<Option<Vec<T>>, sqlx::Error> {
    let recollection = Recollection::read(connection, run, lookup).await?;
    // A repeat is answered with the row as it is now.
    let is_read =
        |operation: &&&Operation| lookup.covers_row(operation) || recollection.knows(operation);
    let mut resources = Resources::lock(connection, run.iter().filter(is_read)).await?;
    let mut records = Vec::with_capacity(run.len());
    let mut answers = Vec::with_capacity(run.len());
    let mut held: Option<Recorded> = None;
    let mut unrecorded: Vec<&Operation> = Vec::new();
    for &operation in run {
        let recalled = recollection.recall(operation)?;
        let is_unknown = matches!(recalled, Recalled::New);
        let is_again = matches!(recalled, Recalled::Done(..)) && operation.is_folded();
        let (outcome, replayed) = match recalled {
            Recalled::Done(..) if is_again || judges_first(operation) => {
                (resources.settle(operation), None)
            }
            Recalled::Done(outcome, record) => (outcome, Some(record)),
            Recalled::Refused(rejection) => (Outcome::Rejected(rejection), None),
            Recalled::New => (resources.settle(operation), None),
        };
        let is_new = replayed.is_none() && !is_again && !Bug::LedgerSkipped.is_on();
        if is_new && operation.leaves_record() && is_final(operation, &outcome) {
            records.push(LedgerColumns::of(operation, &outcome));
        } else if is_unknown && operation.idempotency.is_some() {
            unrecorded.push(operation);
        }
        let settled = Settled {
            operation,
            outcome,
            replayed,
        };
        held = held.or_else(|| settled.replayed.clone());
        answers.push(answer(settled, &resources));
    }
    // The first under a key may have been done while this one waited for the row, and it was judged by what that has
    // made of it. A record of its own would meet the other's; without one it has to look again.
    if !Recollection::read(connection, &unrecorded, lookup)
        .await?
        .is_empty()
    {
        return Ok(None);
    }
    if let Some(recorded) = held {
        ledger::hold(connection, &recorded).await?;
    }
    resources.write(connection).await?;
    records.sort_unstable_by_key(|record: &LedgerColumns<'_>| (record.user_id, record.id));
    let records = LedgerArrays::from_iter(records);
    if !records.is_empty() {
        ledger::insert(connection, &records).await?;
    }
    Ok(Some(answers))
}

fn answer_settled(settled: Settled<'_>, resources: &Resources) -> Applied {
    let state = resources.visible_to(settled.operation);
    let created = settled.outcome == Outcome::Applied
        && state
            .as_ref()
            .is_some_and(|state| made(settled.operation, state));
    Applied {
        outcome: settled.outcome,
        state,
        created,
        replayed: settled.replayed.map(|first| first.operation),
    }
}

/// Never, but with a seeded bug: a repeat must get its first answer before its condition is judged.
fn judges_first(operation: &Operation) -> bool {
    Bug::ConditionBeforeLedger.is_on() && operation.precondition.is_some()
}

/// Whether an outcome is worth a record. What isn't there may still come from another node, and is tried again; a
/// direct write that met a faster clock is stamped anew, and applied again under the same id; and one whose condition
/// failed was told so and did nothing, so its key is free for the same with another condition.
fn is_final(operation: &Operation, outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Applied => true,
        Outcome::Superseded => operation.buffered,
        Outcome::Repeated(_) => false,
        Outcome::Rejected(Rejection::NotFound) => false,
        Outcome::Rejected(Rejection::PreconditionFailed) => operation.buffered,
        Outcome::Rejected(_) => true,
    }
}

/// Whether this operation's is the write that made the resource.
fn made(operation: &Operation, state: &State) -> bool {
    let (first, created) = match (&operation.body, state) {
        (Body::Task { change, .. }, State::Task(task)) => (change.created, task.created),
        (Body::Profile { change, provision }, State::Profile(profile)) => {
            (change.created.or(provision.created), profile.created)
        }
        _ => (None, None),
    };
    first.is_some() && first == created
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Idempotency, Kind, Precondition, Priority, TaskId, TaskState, Timestamp};

    fn operation(id: OperationId, key: Option<&str>) -> Operation {
        Operation {
            id,
            stamp: Stamp::from_i64(1),
            user_id: UserId::parse("ann").expect("valid"),
            kind: Kind::Update,
            body: Body::Task {
                id: TaskId::generate(),
                change: TaskState::default(),
            },
            precondition: Some(Precondition::Exists),
            idempotency: key.map(|key| Idempotency {
                key: IdempotencyKey::parse(key).expect("valid"),
                fingerprint: [0; 32],
            }),
            accepted_at: Timestamp::from_micros(0),
            priority: Priority::default(),
            buffered: false,
        }
    }

    #[test]
    fn a_slice_is_cut_before_each_repeat_of_an_id_or_a_key() {
        let [a, b, c] = [
            OperationId::generate(),
            OperationId::generate(),
            OperationId::generate(),
        ];
        let slice = [
            operation(a, None),
            operation(b, Some("k")),
            operation(a, None),
            operation(c, Some("k")),
            operation(b, Some("k")),
        ];
        let slice: Vec<&Operation> = slice.iter().collect();
        let lengths: Vec<usize> = runs(&slice).into_iter().map(<[_]>::len).collect();
        assert_eq!(lengths, [2, 2, 1]);
        assert_eq!(runs(&slice[..2]).len(), 1);
    }
}
