//! Which database the file belongs to: its items must never go into another one by mistake.

use redb::{ReadableTable, ReadableTableMetadata};
use uuid::Uuid;

use super::error::BufferError;
use super::schema::{DATABASE_KEY, Lane, META, queues};
use super::writer::Transaction;

/// Which database the file belongs to, after a store has said which it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binding {
    /// The one it belonged to.
    Same,
    /// It belongs to this one from now on: it belonged to none, or held nothing.
    Bound,
    /// Another one, and items of it are waiting: nothing was changed.
    Foreign {
        /// How many.
        waiting: u64,
    },
}

/// Makes the file belong to this database if it belongs to none, or holds nothing for the one it belongs to.
pub(super) fn bind(
    transaction: &mut Transaction<'_>,
    database: Option<Uuid>,
) -> Result<Binding, BufferError> {
    let bound = bound(transaction)?;
    if bound == database {
        return Ok(Binding::Same);
    }
    let waiting = waiting_for_postgres(transaction)?;
    if bound.is_some() && waiting > 0 {
        return Ok(Binding::Foreign { waiting });
    }
    adopt(transaction, database)?;
    Ok(Binding::Bound)
}

/// Makes the file belong to this database, whatever it holds.
pub(super) fn adopt(
    transaction: &mut Transaction<'_>,
    database: Option<Uuid>,
) -> Result<(), BufferError> {
    let mut meta = transaction
        .txn
        .open_table(META)
        .map_err(|error| transaction.storage(error))?;
    match database {
        Some(id) => meta
            .insert(DATABASE_KEY, id.as_bytes().as_slice())
            .map(drop),
        None => meta.remove(DATABASE_KEY).map(drop),
    }
    .map_err(|error| transaction.storage(error))
}

/// The database the file belongs to.
pub(super) fn bound(transaction: &Transaction<'_>) -> Result<Option<Uuid>, BufferError> {
    let meta = transaction
        .txn
        .open_table(META)
        .map_err(|error| transaction.storage(error))?;
    let stored = meta
        .get(DATABASE_KEY)
        .map_err(|error| transaction.storage(error))?;
    Ok(stored.and_then(|bytes| Uuid::from_slice(bytes.value()).ok()))
}

fn waiting_for_postgres(transaction: &Transaction<'_>) -> Result<u64, BufferError> {
    let mut waiting = 0;
    for (_, _, definition) in queues().filter(|(lane, _, _)| *lane == Lane::Postgres) {
        let table = transaction
            .txn
            .open_table(definition)
            .map_err(|error| transaction.storage(error))?;
        waiting += table.len().map_err(|error| transaction.storage(error))?;
    }
    Ok(waiting)
}
