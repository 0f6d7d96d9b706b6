//! What idempotency keys stand for where no database can be asked: of writes that wait, as long as they wait; and of all
//! that was made in embedded mode, where no database has a ledger. An item of several writes has no key, and a client may
//! repeat any of them.

use redb::{ReadableTable, ReadableTableMetadata};
use serde::{Deserialize, Serialize};

use crate::domain::{
    Entity, Idempotency, IdempotencyKey, Operation, OperationRecord, OperationState, ResourceKey,
    TaskId, Timestamp, UserId,
};

use super::error::BufferError;
use super::schema::{KEYED, encode};
use super::snap::whole_value;
use super::writer::Transaction;

/// Writes that are kept however old they seem: it may be the clock that was wrong, where no database tells the time.
const KEPT_ANYWAY: u64 = if cfg!(test) { 20 } else { 10_000 };

/// Writes that are looked at whenever one is added, whether they have expired. They lie in no order, so twice as many are
/// looked at as come, and those that have expired stay few without a walk through all.
const LOOKED_AT: usize = 2;

/// A write that was made, or accepted, under a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyedWrite {
    /// The key, and what it stands for.
    pub idempotency: Idempotency,
    /// What became of the write; `pending` of one that waits.
    pub record: OperationRecord,
}

/// Where a user's key is found.
pub(super) fn place(user: &UserId, key: &IdempotencyKey) -> u128 {
    TaskId::derived(user, key).as_uuid().as_u128()
}

impl KeyedWrite {
    /// Whether it is what this user's key stands for.
    pub(super) fn is_of(&self, user: &UserId, key: &IdempotencyKey) -> bool {
        self.record.user_id == *user && self.idempotency.key == *key
    }

    /// Of an operation that waits; `None` where it has no key.
    pub(super) fn waiting(operation: &Operation) -> Option<Self> {
        Some(KeyedWrite {
            idempotency: operation.idempotency.clone()?,
            record: OperationRecord::pending(operation),
        })
    }

    /// What it is about, if it counts only as long as it waits there.
    pub(super) fn waits_at(&self) -> Option<ResourceKey> {
        if self.has_ended() {
            return None;
        }
        match self.record.entity {
            Entity::Task => TaskId::parse(&self.record.entity_id).map(ResourceKey::Task),
            Entity::Profile => Some(ResourceKey::Profile(self.record.user_id.clone())),
            Entity::Session => None,
        }
    }

    /// Whether it has ended: it counts for as long as keys are kept.
    pub(super) fn has_ended(&self) -> bool {
        self.record.state != OperationState::Pending
    }

    /// Whether it has ended and is older than keys are kept.
    fn is_expired(&self, now: Timestamp) -> bool {
        let kept_us = i64::from(IdempotencyKey::KEPT_DAYS) * 24 * 3_600 * 1_000_000;
        let age_us = now
            .as_micros()
            .saturating_sub(self.record.accepted_at.as_micros());
        self.has_ended() && age_us > kept_us
    }
}

/// What a user has made under a key.
pub(super) fn find(
    transaction: &mut Transaction<'_>,
    user: &UserId,
    key: &IdempotencyKey,
) -> Result<Option<KeyedWrite>, BufferError> {
    let table = transaction
        .txn
        .open_table(KEYED)
        .map_err(|error| transaction.storage(error))?;
    let bytes = table
        .get(place(user, key))
        .map_err(|error| transaction.storage(error))?;
    let known = bytes.and_then(|bytes| whole_value::<KeyedWrite>(bytes.value()));
    Ok(known.filter(|known| known.is_of(user, key)))
}

/// Forgets the key of an operation that waits no more: from then on the ledger knows it, if it was carried out.
pub(super) fn forget(
    transaction: &mut Transaction<'_>,
    operation: &Operation,
) -> Result<(), BufferError> {
    let Some(own) = &operation.idempotency else {
        return Ok(());
    };
    let known = find(transaction, &operation.user_id, &own.key)?;
    let is_own = |known: &KeyedWrite| !known.has_ended() && known.record.id == operation.id;
    if !known.is_some_and(|known| is_own(&known)) {
        return Ok(());
    }
    let mut table = transaction
        .txn
        .open_table(KEYED)
        .map_err(|error| transaction.storage(error))?;
    table
        .remove(place(&operation.user_id, &own.key))
        .map_err(|error| transaction.storage(error))?;
    Ok(())
}

/// Forgets all that has ended.
pub(super) fn forget_ended(transaction: &mut Transaction<'_>) -> Result<(), BufferError> {
    let mut table = transaction
        .txn
        .open_table(KEYED)
        .map_err(|error| transaction.storage(error))?;
    table
        .retain(|_, bytes| whole_value::<KeyedWrite>(bytes).is_some_and(|known| !known.has_ended()))
        .map_err(|error| transaction.storage(error))
}

/// Remembers a write, and forgets such as nobody may repeat any more among those beside it. Again: changes nothing.
pub(super) fn remember(
    transaction: &mut Transaction<'_>,
    write: &KeyedWrite,
) -> Result<(), BufferError> {
    let mut table = transaction
        .txn
        .open_table(KEYED)
        .map_err(|error| transaction.storage(error))?;
    let place = place(&write.record.user_id, &write.idempotency.key);
    table
        .insert(place, encode(write).as_slice())
        .map_err(|error| transaction.storage(error))?;
    let count = table.len().map_err(|error| transaction.storage(error))?;
    if count <= KEPT_ANYWAY {
        return Ok(());
    }
    let beside = table
        .range(place.saturating_add(1)..)
        .map_err(|error| transaction.storage(error))?;
    let mut expired = Vec::new();
    for entry in beside.take(LOOKED_AT) {
        let (other, bytes) = entry.map_err(|error| transaction.storage(error))?;
        let known: Option<KeyedWrite> = whole_value(bytes.value());
        if known.is_some_and(|known| known.is_expired(write.record.accepted_at)) {
            expired.push(other.value());
        }
    }
    for other in expired {
        table
            .remove(other)
            .map_err(|error| transaction.storage(error))?;
    }
    Ok(())
}
