//! Writing: straight to the store, or to the buffer.

use std::sync::PoisonError;

use tokio::time::{Instant, timeout, timeout_at};

use crate::buffer::{AcceptedChange, BufferError, KeyedWrite, PendingView, Place, Slot};
use crate::domain::{
    IdempotencyKey, Kind, Operation, OperationRecord, OperationState, Outcome, Rejection, State,
    UserId,
};
use crate::health::StoreHealth;
use crate::seeded::Bug;
use crate::store::FailureClass;
use crate::store::StoreError;
use crate::store::postgres::{Applied, Postgres};
use crate::telemetry::metric;

use super::answer::{Handling, Hindrance, WriteError, WritePath, Written};
use super::core::{Lane, Repository};

/// Times a direct write is stamped anew after meeting a faster clock. The first new stamp exceeds all it met, so a
/// second meeting takes a writer that is faster again at that very moment.
const RESTAMPS_MAX: usize = 5;

/// Times that what waits of a resource is drained while a write to it is being accepted, until its rest is no longer
/// waited for: it may then be unknown to other processes for as long as the write waits.
const OUTRUN_MAX: usize = 3;

/// How a direct attempt ended.
enum Attempt {
    Done(Box<Written>),
    Refused(Rejection),
    /// Not done, or nobody knows: `true` where it may have been done.
    Elsewhere {
        operation: Box<Operation>,
        maybe_done: bool,
    },
}

impl Attempt {
    /// The same of one that may have been done for some of its fields.
    fn in_part(self) -> Self {
        match self {
            Attempt::Elsewhere { operation, .. } => Attempt::Elsewhere {
                operation,
                maybe_done: true,
            },
            ended => ended,
        }
    }
}

impl Repository {
    /// Accepts a write of a task or a profile. The operation comes without a stamp. Handled strictly, it is either made
    /// in its store or refused; only a repeat, under an idempotency key, of one that waits in the buffer already is
    /// answered as that one was.
    ///
    /// # Errors
    /// See [`WriteError`]; the write isn't accepted then.
    pub async fn write(
        &self,
        operation: Operation,
        handling: Handling,
    ) -> Result<Written, WriteError> {
        let _running = match &operation.idempotency {
            Some(idempotency) => Some(self.claim_key(&operation.user_id, &idempotency.key)?),
            None => None,
        };
        let written = self.write_claimed(operation, handling).await?;
        let path = match written.path {
            WritePath::Direct => "direct",
            WritePath::Buffered => "buffered",
        };
        if !written.replayed {
            metrics::counter!(metric::ACCEPTED_TOTAL, "path" => path, "entity" => written.operation.entity.as_str())
                .increment(1);
        }
        Ok(written)
    }

    async fn write_claimed(
        &self,
        operation: Operation,
        handling: Handling,
    ) -> Result<Written, WriteError> {
        if self.is_embedded() {
            return self.write_embedded(operation).await;
        }
        if let Some(known) = self.known_here(&operation).await {
            return self.answer_first(known, &operation).await;
        }
        let pending = self.pending_of(&operation).await;
        let lane = match (self.0.postgres_up(), &pending) {
            (Some(lane), None) => lane,
            (lane, _) => {
                if let Some(lane) = lane
                    && let Some(replayed) = self.recorded(lane, &operation).await?
                {
                    return Ok(replayed);
                }
                let hindrance = lane.map_or(Hindrance::StoreAway, |_| Hindrance::EarlierWaits);
                refuse_strict(handling, hindrance)?;
                return self
                    .write_buffered(operation, pending, Slot::Ordinary)
                    .await;
            }
        };
        match self.attempt(lane, operation).await {
            Attempt::Done(written) => Ok(*written),
            Attempt::Refused(rejection) => Err(WriteError::Rejected(rejection)),
            Attempt::Elsewhere {
                operation,
                maybe_done,
            } => {
                // It may have waited in vain for a row that its first, long since done, doesn't need.
                if let Some(lane) = self.0.postgres_up().filter(|_| !maybe_done)
                    && let Some(replayed) = self.recorded(lane, &operation).await?
                {
                    return Ok(replayed);
                }
                let hindrance = if maybe_done {
                    Hindrance::OutcomeUnknown
                } else {
                    Hindrance::NotMade
                };
                refuse_strict(handling, hindrance)?;
                let slot = if maybe_done {
                    Slot::Reserved
                } else {
                    Slot::Ordinary
                };
                self.write_buffered(*operation, None, slot).await
            }
        }
    }

    /// What the operation's key stands for in the buffer: a write that waits, of whatever resource, or one from the time
    /// when this node had no database.
    async fn known_here(&self, operation: &Operation) -> Option<KeyedWrite> {
        let own = operation.idempotency.clone()?;
        let user = operation.user_id.clone();
        let found = self
            .0
            .read(move |reader| reader.find_keyed(&user, &own.key));
        found.await.unwrap_or_else(|error| {
            tracing::warn!(%error, "can't read the buffer before a write");
            None
        })
    }

    /// The answer to an operation whose key stands for another one in the buffer: a repeat is shown the resource as it is
    /// now, which is what waits over what PostgreSQL has, or over what this node knows besides.
    async fn answer_first(
        &self,
        known: KeyedWrite,
        operation: &Operation,
    ) -> Result<Written, WriteError> {
        let own = operation.idempotency.as_ref();
        if own.is_none_or(|own| own.fingerprint != known.idempotency.fingerprint) {
            return Err(WriteError::Rejected(Rejection::KeyReused));
        }
        let (user, key) = (&operation.user_id, operation.resource());
        if let Some(lane) = self.0.postgres_up()
            && let Some(Some(now)) = self
                .soon(lane, self.find_over_store(lane, user, &key))
                .await
        {
            return Ok(shown_first(known.record, now));
        }
        // It may have been drained meanwhile, and this process need not have seen it: then what it knows besides is older.
        let pending = self.pending_of(operation).await;
        let waits = pending.as_ref().is_some_and(|view| {
            let mut items = view.operations.iter();
            items.any(|item| item.operation.id == known.record.id)
        });
        let now = if waits {
            self.without_store(user, &key, pending).await.ok()
        } else {
            None
        };
        Ok(shown_first(known.record, now.map(|found| found.value)))
    }

    /// What a store says before its writer has had to wait for long; `None` when it doesn't.
    async fn soon<T>(&self, lane: &Lane<Postgres>, asking: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            said = timeout(self.0.store_timeout / 4, asking) => said.ok(),
            () = lane.health.went_down() => None,
        }
    }

    /// The answer of PostgreSQL's ledger to a repeat that is not to be judged there, with the resource as it is now. Where
    /// both can't be had now, none is known, and the drain finds out: told that it is done, this node's client would
    /// look for it here in the next outage, and the node that did it may be another.
    async fn recorded(
        &self,
        lane: &Lane<Postgres>,
        operation: &Operation,
    ) -> Result<Option<Written>, WriteError> {
        let Some(own) = &operation.idempotency else {
            return Ok(None);
        };
        let user = &operation.user_id;
        let asking = lane.store.find_by_key(user, &own.key);
        let known = match self.soon(lane, asking).await {
            Some(Ok(Some(known))) => known,
            Some(Ok(None)) | None => return Ok(None),
            Some(Err(error)) => {
                lane.health.report_failure(&error);
                tracing::debug!(operation_id = %operation.id, %error, "postgres can't be asked for a key");
                return Ok(None);
            }
        };
        if known.fingerprint != own.fingerprint {
            return Err(WriteError::Rejected(Rejection::KeyReused));
        }
        match known.outcome {
            Outcome::Rejected(rejection) => Err(WriteError::Rejected(rejection)),
            _ => {
                let key = operation.resource();
                let asking = self.find_over_store(lane, user, &key);
                let now = self.soon(lane, asking).await.flatten();
                Ok(now.map(|now| shown_first(known.operation, now)))
            }
        }
    }

    /// What is pending of the operation's resource. A buffer that can't be read counts as empty: PostgreSQL alone
    /// still serves.
    async fn pending_of(&self, operation: &Operation) -> Option<PendingView> {
        let (user, key) = (operation.user_id.clone(), operation.resource());
        match self
            .0
            .read(move |reader| reader.find_pending(&user, &key))
            .await
        {
            Ok(view) => view,
            Err(error) => {
                tracing::warn!(%error, "can't read the buffer before a write");
                None
            }
        }
    }

    async fn write_embedded(&self, operation: Operation) -> Result<Written, WriteError> {
        let record = OperationRecord::pending(&operation);
        let folded = self.0.buffer.fold(operation).await.map_err(refusal)?;
        if let Some(known) = folded.replayed {
            return Ok(shown_first(known.record, folded.state));
        }
        match folded.outcome {
            Outcome::Rejected(rejection) => Err(WriteError::Rejected(rejection)),
            outcome => Ok(Written {
                path: WritePath::Direct,
                state: shown(folded.state),
                created: folded.created,
                operation: OperationRecord {
                    state: OperationState::from(&outcome),
                    ..record
                },
                replayed: false,
            }),
        }
    }

    /// Tries the store. A write that turns out superseded has met a faster clock: it observes that and is stamped
    /// anew, since a write the store is answering now is the newest there is. However often that happens, all of it
    /// shares one deadline.
    async fn attempt(&self, lane: &Lane<Postgres>, mut operation: Operation) -> Attempt {
        let clock = self.0.buffer.clock();
        let deadline = Instant::now() + self.0.store_timeout;
        for round in 0..RESTAMPS_MAX {
            operation.restamp(clock.stamp());
            let applying = self.apply(lane, &operation);
            // The first call has the same deadline of its own, and says what was late.
            let applied = match round {
                0 => applying.await,
                _ => timeout_at(deadline, applying).await.unwrap_or(Err(None)),
            };
            let applied = match applied {
                Ok(applied) => applied,
                Err(failure) => {
                    // The round before may have set the fields in which it was the newest.
                    let in_part = round > 0 && operation.changes_row(&Outcome::Superseded);
                    let failed = after_failure(&lane.health, failure, operation);
                    return if in_part { failed.in_part() } else { failed };
                }
            };
            if let Some(state) = &applied.state {
                self.note_stored(&operation.user_id, operation.resource(), state);
            }
            match applied.outcome {
                Outcome::Rejected(rejection) => return Attempt::Refused(rejection),
                Outcome::Superseded
                    if applied.replayed.is_none() && !is_deleted(applied.state.as_ref()) => {}
                outcome => {
                    return Attempt::Done(Box::new(written_direct(&operation, &outcome, applied)));
                }
            }
        }
        Attempt::Elsewhere {
            maybe_done: operation.changes_row(&Outcome::Superseded),
            operation: Box::new(operation),
        }
    }

    /// One call, given up as soon as the store is known to be down.
    async fn apply(
        &self,
        lane: &Lane<Postgres>,
        operation: &Operation,
    ) -> Result<Applied, Option<StoreError>> {
        let batch = std::slice::from_ref(operation);
        let answered = tokio::select! {
            answered = lane.store.apply(batch) => answered.map_err(Some)?,
            () = lane.health.went_down() => return Err(None),
        };
        answered.into_iter().next().ok_or(None)
    }

    /// Accepts a write into the buffer. It relies on what waits of its resource, so where that was drained just before,
    /// it is looked again what is known.
    async fn write_buffered(
        &self,
        operation: Operation,
        mut pending: Option<PendingView>,
        slot: Slot,
    ) -> Result<Written, WriteError> {
        if Bug::OutageFailsWrites.is_on() {
            return Err(WriteError::Unavailable);
        }
        for _ in 0..OUTRUN_MAX {
            let behind = pending.as_ref().map(|view| view.last);
            match self.accept(&operation, pending, (slot, behind)).await {
                Err(BufferError::Outrun) => pending = self.pending_of(&operation).await,
                accepted => return self.answer_accepted(accepted, &operation).await,
            }
        }
        let accepted = self.accept(&operation, pending, (slot, None)).await;
        self.answer_accepted(accepted, &operation).await
    }

    async fn answer_accepted(
        &self,
        accepted: Result<Written, BufferError>,
        operation: &Operation,
    ) -> Result<Written, WriteError> {
        match accepted {
            Err(BufferError::KeyTaken(known)) => self.answer_first(*known, operation).await,
            accepted => accepted.map_err(refusal),
        }
    }

    async fn accept(
        &self,
        operation: &Operation,
        pending: Option<PendingView>,
        (slot, behind): (Slot, Option<Place>),
    ) -> Result<Written, BufferError> {
        let (user, key) = (operation.user_id.clone(), operation.resource());
        if let Some(view) = &pending {
            self.note_view(&user, key.clone(), view);
        }
        let remembered = self.recall(&user, &key, pending.as_ref()).await;
        let base = remembered
            .as_ref()
            .and_then(|remembered| remembered.stored.clone());
        let (operation, buffer) = (operation.clone(), &self.0.buffer);
        let item = match behind {
            Some(behind) => buffer.append_behind(operation, base, behind, slot).await?,
            None => buffer.append(operation, base, slot).await?,
        };
        let change = AcceptedChange::of(&item);
        self.0.cache.note_accepted(&user, key, change);
        let accepted = item.operation;
        let parts = [
            remembered.and_then(|remembered| remembered.state()),
            pending.map(|view| view.state),
            accepted.change(),
        ];
        let state = merged(parts);
        Ok(Written {
            path: WritePath::Buffered,
            state: shown(state),
            created: accepted.kind == Kind::Create,
            operation: OperationRecord::pending(&accepted),
            replayed: false,
        })
    }

    fn claim_key(&self, user: &UserId, key: &IdempotencyKey) -> Result<KeyClaim<'_>, WriteError> {
        let claim = (user.clone(), key.clone());
        let mut keys = self
            .0
            .keys_in_use
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if !keys.insert(claim.clone()) {
            return Err(WriteError::KeyInUse);
        }
        Ok(KeyClaim {
            repository: self,
            claim,
        })
    }
}

/// An idempotency key whose first request runs.
struct KeyClaim<'r> {
    repository: &'r Repository,
    claim: (UserId, IdempotencyKey),
}

impl Drop for KeyClaim<'_> {
    fn drop(&mut self) {
        let mut keys = self
            .repository
            .0
            .keys_in_use
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        keys.remove(&self.claim);
    }
}

fn after_failure(
    health: &StoreHealth,
    failure: Option<StoreError>,
    operation: Operation,
) -> Attempt {
    let operation = Box::new(operation);
    let Some(error) = failure else {
        return Attempt::Elsewhere {
            operation,
            maybe_done: true,
        };
    };
    health.report_failure(&error);
    match error.class() {
        // One bad item or a bad deployment: telling them apart, and trying again, is the drain's.
        FailureClass::Item => {
            tracing::error!(operation_id = %operation.id, %error, "postgres will not take a valid write; it goes to the buffer");
        }
        class => {
            tracing::debug!(operation_id = %operation.id, %error, ?class, "direct write goes to the buffer");
        }
    }
    Attempt::Elsewhere {
        operation,
        maybe_done: error.outcome_unknown(),
    }
}

fn written_direct(operation: &Operation, outcome: &Outcome, applied: Applied) -> Written {
    let record = OperationRecord {
        state: OperationState::from(outcome),
        ..OperationRecord::pending(operation)
    };
    let replayed = applied.replayed.is_some();
    Written {
        path: WritePath::Direct,
        state: shown(applied.state),
        created: applied.created || (replayed && operation.kind == Kind::Create),
        operation: applied.replayed.unwrap_or(record),
        replayed,
    }
}

/// The answer to a repeat of this one.
fn shown_first(first: OperationRecord, state: Option<State>) -> Written {
    Written {
        path: if first.state == OperationState::Pending {
            WritePath::Buffered
        } else {
            WritePath::Direct
        },
        state: shown(state),
        created: first.kind == Kind::Create,
        operation: first,
        replayed: true,
    }
}

fn refuse_strict(handling: Handling, hindrance: Hindrance) -> Result<(), WriteError> {
    match handling {
        Handling::Strict => Err(WriteError::NotDirect(hindrance)),
        Handling::Lenient => Ok(()),
    }
}

fn is_deleted(state: Option<&State>) -> bool {
    state.is_some_and(|state| state.deleted().is_some())
}

/// A record that can be shown: complete, and not deleted.
fn shown(state: Option<State>) -> Option<State> {
    state.filter(State::is_complete)
}

/// Records of one resource, merged.
pub(super) fn merged(parts: impl IntoIterator<Item = Option<State>>) -> Option<State> {
    parts.into_iter().flatten().reduce(|mut whole, part| {
        whole.merge(&part);
        whole
    })
}

fn refusal(error: BufferError) -> WriteError {
    match error {
        error if error.is_full() => WriteError::Full,
        error => {
            tracing::error!(%error, "the buffer can't take a write");
            WriteError::Unavailable
        }
    }
}

#[cfg(test)]
mod tests;
