//! The ledger: the rows of `applied_operations`, which say what became of an operation.
//!
//! It is written in the transaction that applies the operation and read before anything is judged, so that a repeat
//! (of an id, or under an idempotency key) gets the first answer, whatever has happened to the resource since.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::connection::Connection;
use super::values::{columns, read_user, stored_time, unreadable};
use crate::domain::{
    Entity, Idempotency, IdempotencyKey, Kind, Operation, OperationId, OperationRecord,
    OperationState, Outcome, Priority, Rejection, Stamp, Timestamp, UserId,
};

/// Days a record is kept at least: as long as a client may repeat a request under its key.
pub const RECORD_DAYS: i32 = IdempotencyKey::KEPT_DAYS;

/// What is recorded of an operation.
#[derive(Debug, Clone)]
pub(super) struct Recorded {
    pub(super) operation: OperationRecord,
    pub(super) idempotency: Option<Idempotency>,
    /// With which it was judged.
    pub(super) stamp: Stamp,
}

impl Recorded {
    /// The outcome it tells.
    pub(super) fn outcome(&self) -> Result<Outcome, sqlx::Error> {
        match self.operation.state {
            OperationState::Applied => Ok(Outcome::Applied),
            OperationState::Superseded => Ok(Outcome::Superseded),
            OperationState::Dead => Ok(Outcome::Rejected(read_rejection(
                self.operation.last_error.as_deref(),
            )?)),
            OperationState::Pending => Err(unreadable("a pending operation in the ledger")),
        }
    }
}

/// What to look for: by id and by key, each with its user.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    id_users: Vec<String>,
    ids: Vec<Uuid>,
    key_users: Vec<String>,
    keys: Vec<String>,
}

impl Wanted {
    /// Adds an operation's id.
    pub(super) fn id(&mut self, user: &UserId, id: OperationId) {
        self.id_users.push(user.as_str().to_owned());
        self.ids.push(id.as_uuid());
    }

    /// Adds a key.
    pub(super) fn key(&mut self, user: &UserId, key: &IdempotencyKey) {
        self.key_users.push(user.as_str().to_owned());
        self.keys.push(key.as_str().to_owned());
    }

    /// Whether there is nothing to look for.
    pub(super) fn is_empty(&self) -> bool {
        self.ids.is_empty() && self.keys.is_empty()
    }
}

/// Finds records, in no particular order; one that is wanted by its id and by its key comes twice.
pub(super) async fn find(
    connection: &mut Connection<'_>,
    wanted: &Wanted,
) -> Result<Vec<Recorded>, sqlx::Error> {
    let rows = sqlx::query_as!(
        LedgerRow,
        "SELECT l.user_id AS \"user_id!\", l.id AS \"id!\", l.idempotency_key, l.fingerprint, \
             l.entity AS \"entity!\", l.entity_id AS \"entity_id!\", l.operation AS \"operation!\", \
             l.state AS \"state!\", l.reason, l.priority AS \"priority!\", l.retries AS \"retries!\", \
             l.stamp AS \"stamp!\", l.accepted_at AS \"accepted_at!\", l.finished_at AS \"finished_at!\" \
         FROM UNNEST($1::text[], $2::uuid[]) AS wanted (user_id, id) \
         JOIN applied_operations AS l ON l.user_id = wanted.user_id AND l.id = wanted.id \
         UNION ALL \
         SELECT l.user_id, l.id, l.idempotency_key, l.fingerprint, l.entity, l.entity_id, l.operation, l.state, \
             l.reason, l.priority, l.retries, l.stamp, l.accepted_at, l.finished_at \
         FROM UNNEST($3::text[], $4::text[]) AS wanted (user_id, key) \
         JOIN applied_operations AS l ON l.user_id = wanted.user_id AND l.idempotency_key = wanted.key",
        &wanted.id_users,
        &wanted.ids,
        &wanted.key_users,
        &wanted.keys,
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(LedgerRow::into_recorded).collect()
}

/// Locks a record, which writes to PostgreSQL's log. A transaction that only finds what another has done writes nothing,
/// and its commit waits for no synchronous standby; with this it does, and so for all that it has seen.
pub(super) async fn hold(
    connection: &mut Connection<'_>,
    recorded: &Recorded,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "SELECT FROM applied_operations WHERE user_id = $1 AND id = $2 FOR KEY SHARE",
        recorded.operation.user_id.as_str(),
        recorded.operation.id.as_uuid(),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A user's records, newest id first, beginning after `before`.
pub(super) async fn list(
    connection: &mut Connection<'_>,
    user: &UserId,
    state: Option<OperationState>,
    before: Option<OperationId>,
    limit: i64,
) -> Result<Vec<OperationRecord>, sqlx::Error> {
    let rows = sqlx::query_as!(
        LedgerRow,
        "SELECT user_id, id, idempotency_key, fingerprint, entity, entity_id, operation, state, reason, priority, \
             retries, stamp, accepted_at, finished_at \
         FROM applied_operations \
         WHERE user_id = $1 AND id < $2 AND ($3::text IS NULL OR state = $3) \
         ORDER BY id DESC LIMIT $4",
        user.as_str(),
        before.map_or(Uuid::max(), OperationId::as_uuid),
        state.map(OperationState::as_str),
        limit,
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| Ok(row.into_recorded()?.operation))
        .collect()
}

/// Records operations that have ended now. Where one is recorded already, by its id or its key, it fails with a unique
/// violation.
pub(super) async fn insert(
    connection: &mut Connection<'_>,
    records: &LedgerArrays<'_>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "INSERT INTO applied_operations (user_id, id, idempotency_key, fingerprint, entity, entity_id, operation, \
             state, reason, priority, stamp, accepted_at, finished_at) \
         SELECT UNNEST($1::text[]), UNNEST($2::uuid[]), UNNEST($3::text[]), UNNEST($4::bytea[]), UNNEST($5::text[]), \
             UNNEST($6::text[]), UNNEST($7::text[]), UNNEST($8::text[]), UNNEST($9::text[]), UNNEST($10::smallint[]), \
             UNNEST($11::bigint[]), UNNEST($12::timestamptz[]), clock_timestamp()",
        &records.user_id as &[&str],
        &records.id,
        &records.idempotency_key as &[Option<&str>],
        &records.fingerprint as &[Option<&[u8]>],
        &records.entity as &[&str],
        &records.entity_id,
        &records.operation as &[&str],
        &records.state as &[&str],
        &records.reason as &[Option<&str>],
        &records.priority,
        &records.stamp,
        &records.accepted_at,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Before when records may have been removed, by the database's clock.
pub(super) async fn horizon(connection: &mut Connection<'_>) -> Result<Timestamp, sqlx::Error> {
    let horizon = sqlx::query_scalar!(
        "SELECT clock_timestamp() - make_interval(days => $1) AS \"horizon!\"",
        RECORD_DAYS
    );
    Ok(horizon.fetch_one(connection).await?.into())
}

/// Removes the oldest records that ended before `older_than`, at most `limit`. Returns how many.
pub(super) async fn remove(
    connection: &mut Connection<'_>,
    older_than: Timestamp,
    limit: i64,
) -> Result<u64, sqlx::Error> {
    let removed = sqlx::query!(
        "DELETE FROM applied_operations WHERE ctid = ANY(ARRAY( \
             SELECT ctid FROM applied_operations WHERE finished_at < $1 ORDER BY finished_at LIMIT $2))",
        stored_time(older_than),
        limit,
    )
    .execute(connection)
    .await?;
    Ok(removed.rows_affected())
}

/// How many records there are.
pub(super) async fn count(connection: &mut Connection<'_>) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar!("SELECT count(*) AS \"count!\" FROM applied_operations")
        .fetch_one(connection)
        .await
}

columns! {
    /// A record as columns.
    LedgerColumns,
    /// Records, column by column, as `UNNEST` takes them.
    LedgerArrays {
        user_id: &'a str,
        id: Uuid,
        idempotency_key: Option<&'a str>,
        fingerprint: Option<&'a [u8]>,
        entity: &'a str,
        entity_id: String,
        operation: &'a str,
        state: &'a str,
        reason: Option<&'a str>,
        priority: i16,
        stamp: i64,
        accepted_at: DateTime<Utc>,
    }
}

impl<'a> LedgerColumns<'a> {
    /// The record of an operation that ended like this. One that was refused for its key doesn't hold that key.
    pub(super) fn of(operation: &'a Operation, outcome: &Outcome) -> Self {
        let reason = match outcome {
            Outcome::Rejected(rejection) => Some(rejection.as_str()),
            Outcome::Applied | Outcome::Superseded | Outcome::Repeated(_) => None,
        };
        let own_key = *outcome != Outcome::Rejected(Rejection::KeyReused);
        let idempotency = operation.idempotency.as_ref().filter(|_| own_key);
        LedgerColumns {
            user_id: operation.user_id.as_str(),
            id: operation.id.as_uuid(),
            idempotency_key: idempotency.map(|idempotency| idempotency.key.as_str()),
            fingerprint: idempotency.map(|idempotency| idempotency.fingerprint.as_slice()),
            entity: operation.entity().as_str(),
            entity_id: operation.resource().to_string(),
            operation: operation.kind.as_str(),
            state: OperationState::from(outcome).as_str(),
            reason,
            priority: operation.priority.number().into(),
            stamp: operation.stamp.as_i64(),
            accepted_at: stored_time(operation.accepted_at),
        }
    }
}

/// A row as it is read.
struct LedgerRow {
    user_id: String,
    id: Uuid,
    idempotency_key: Option<String>,
    fingerprint: Option<Vec<u8>>,
    entity: String,
    entity_id: String,
    operation: String,
    state: String,
    reason: Option<String>,
    priority: i16,
    retries: i32,
    stamp: i64,
    accepted_at: DateTime<Utc>,
    finished_at: DateTime<Utc>,
}

impl LedgerRow {
    fn into_recorded(self) -> Result<Recorded, sqlx::Error> {
        let idempotency = read_idempotency(self.idempotency_key, self.fingerprint)?;
        let operation = OperationRecord {
            id: OperationId::from_uuid(self.id),
            user_id: read_user(&self.user_id)?,
            entity: read_entity(&self.entity)?,
            entity_id: self.entity_id,
            kind: read_kind(&self.operation)?,
            state: OperationState::parse(&self.state)
                .ok_or_else(|| unreadable("an unknown state"))?,
            priority: Priority::parse(self.priority.into()).map_err(unreadable)?,
            retries: u32::try_from(self.retries).map_err(unreadable)?,
            last_error: self.reason,
            accepted_at: self.accepted_at.into(),
            finished_at: Some(self.finished_at.into()),
        };
        Ok(Recorded {
            operation,
            idempotency,
            stamp: Stamp::from_i64(self.stamp),
        })
    }
}

fn read_idempotency(
    key: Option<String>,
    fingerprint: Option<Vec<u8>>,
) -> Result<Option<Idempotency>, sqlx::Error> {
    let (Some(key), Some(fingerprint)) = (key, fingerprint) else {
        return Ok(None);
    };
    let key = IdempotencyKey::parse(&key).map_err(unreadable)?;
    let fingerprint = fingerprint
        .try_into()
        .map_err(|_| unreadable("a fingerprint that isn't 32 bytes"))?;
    Ok(Some(Idempotency { key, fingerprint }))
}

fn read_entity(word: &str) -> Result<Entity, sqlx::Error> {
    let known = [Entity::Task, Entity::Profile, Entity::Session];
    known
        .into_iter()
        .find(|entity| entity.as_str() == word)
        .ok_or_else(|| unreadable("an unknown entity"))
}

fn read_kind(word: &str) -> Result<Kind, sqlx::Error> {
    let known = [Kind::Create, Kind::Update, Kind::Delete];
    known
        .into_iter()
        .find(|kind| kind.as_str() == word)
        .ok_or_else(|| unreadable("an unknown kind of operation"))
}

fn read_rejection(word: Option<&str>) -> Result<Rejection, sqlx::Error> {
    let known = [
        Rejection::NotFound,
        Rejection::NotOwner,
        Rejection::Deleted,
        Rejection::PreconditionFailed,
        Rejection::KeyReused,
        Rejection::TooOld,
    ];
    let found = known
        .into_iter()
        .find(|rejection| Some(rejection.as_str()) == word);
    found.ok_or_else(|| unreadable("an unknown reason"))
}
