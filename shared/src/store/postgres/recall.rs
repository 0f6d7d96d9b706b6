//! What is already known of operations that are about to be applied.

use std::collections::HashMap;

use super::connection::Connection;
use super::ledger::{self, Recorded, Wanted};
use crate::domain::{
    Idempotency, IdempotencyKey, Operation, OperationId, Outcome, Rejection, Timestamp, UserId,
};

/// How much is looked up before operations are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lookup {
    /// What can't be known: the records of operations with a key or a condition, and the rows that a condition is about
    /// or that aren't being made; and those of repeats, to be shown. Any other operation can be judged again without
    /// harm. If the ledger has it after all, or the task is there already, its new record or row meets the old one, and
    /// the transaction starts again. That takes a repeat, which comes after crashes only; to look for one in vain takes
    /// a fifth of a batch's time.
    Necessary,
    /// The records of all that leave one, and all rows.
    All,
}

/// The ledger's records of some operations, and of those under the same keys.
pub(super) struct Recollection {
    by_id: HashMap<(UserId, OperationId), Recorded>,
    by_key: HashMap<(UserId, IdempotencyKey), Recorded>,
    horizon: Option<Timestamp>,
}

/// What is known of one operation.
pub(super) enum Recalled {
    /// Nothing: it has to be judged.
    New,
    /// It was applied before, with this outcome.
    Done(Outcome, Recorded),
    /// It must not be judged at all.
    Refused(Rejection),
}

impl Lookup {
    /// Whether the row an operation is about is read.
    pub(super) fn covers_row(self, operation: &Operation) -> bool {
        self == Lookup::All || operation.precondition.is_some() || !operation.brings_its_id()
    }

    /// Whether the ledger is asked about an operation.
    fn covers_record(self, operation: &Operation) -> bool {
        match self {
            Lookup::Necessary => {
                operation.idempotency.is_some() || operation.precondition.is_some()
            }
            Lookup::All => operation.leaves_record(),
        }
    }
}

impl Recollection {
    /// Reads what the ledger knows; asks nothing when there is nothing to look for.
    pub(super) async fn read(
        connection: &mut Connection<'_>,
        operations: &[&Operation],
        lookup: Lookup,
    ) -> Result<Self, sqlx::Error> {
        let mut wanted = Wanted::default();
        for operation in operations
            .iter()
            .filter(|operation| lookup.covers_record(operation))
        {
            wanted.id(&operation.user_id, operation.id);
            if let Some(idempotency) = &operation.idempotency {
                wanted.key(&operation.user_id, &idempotency.key);
            }
        }
        let mut recollection = Recollection {
            by_id: HashMap::new(),
            by_key: HashMap::new(),
            horizon: None,
        };
        if wanted.is_empty() {
            return Ok(recollection);
        }
        for recorded in ledger::find(connection, &wanted).await? {
            recollection.keep(recorded);
        }
        if operations
            .iter()
            .any(|operation| depends_on_the_past(operation))
        {
            recollection.horizon = Some(ledger::horizon(connection).await?);
        }
        Ok(recollection)
    }

    fn keep(&mut self, recorded: Recorded) {
        let user = &recorded.operation.user_id;
        if let Some(idempotency) = &recorded.idempotency {
            self.by_key
                .insert((user.clone(), idempotency.key.clone()), recorded.clone());
        }
        self.by_id
            .insert((user.clone(), recorded.operation.id), recorded);
    }

    /// Whether the ledger knows none of them.
    pub(super) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Whether there is a record of this operation, or of another under its key.
    pub(super) fn knows(&self, operation: &Operation) -> bool {
        if self.is_empty() {
            return false;
        }
        let user = &operation.user_id;
        let own = operation.idempotency.as_ref();
        self.by_id.contains_key(&(user.clone(), operation.id))
            || own.is_some_and(|own| self.by_key.contains_key(&(user.clone(), own.key.clone())))
    }

    /// What is known of this operation: by its id, else by its key.
    pub(super) fn recall(&self, operation: &Operation) -> Result<Recalled, sqlx::Error> {
        if self.is_empty() && self.horizon.is_none() {
            return Ok(Recalled::New);
        }
        let user = &operation.user_id;
        if let Some(recorded) = self.by_id.get(&(user.clone(), operation.id)) {
            return Ok(Recalled::Done(recorded.outcome()?, recorded.clone()));
        }
        if let Some(own) = &operation.idempotency
            && let Some(recorded) = self.by_key.get(&(user.clone(), own.key.clone()))
        {
            return recall_by_key(own, recorded);
        }
        let is_too_old = depends_on_the_past(operation)
            && self
                .horizon
                .is_some_and(|horizon| operation.accepted_at < horizon);
        Ok(if is_too_old {
            Recalled::Refused(Rejection::TooOld)
        } else {
            Recalled::New
        })
    }
}

fn recall_by_key(own: &Idempotency, recorded: &Recorded) -> Result<Recalled, sqlx::Error> {
    let first = recorded.idempotency.as_ref().map(|first| first.fingerprint);
    if first != Some(own.fingerprint) {
        return Ok(Recalled::Refused(Rejection::KeyReused));
    }
    Ok(Recalled::Done(recorded.outcome()?, recorded.clone()))
}

/// Whether judging it again, after its record was removed, could give another answer than the first time.
fn depends_on_the_past(operation: &Operation) -> bool {
    operation.buffered && operation.precondition.is_some()
}
