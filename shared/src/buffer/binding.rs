//! Which database the file belongs to: its items must never go into another one by mistake.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use redb::{ReadableTable, ReadableTableMetadata};
use uuid::Uuid;

use super::error::BufferError;
use super::keys;
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

/// The database that this process uses the file for. Another process may be set up for another database and find the
/// file empty; what is accepted here must not go there, so whoever adds to the file or takes from it asks first.
#[derive(Debug, Default)]
pub(super) struct Claim(Mutex<Option<Option<Uuid>>>);

impl Claim {
    /// Sets it (`None`: no database is configured). Gives what it was before; `None` where nothing was known.
    pub(super) fn set(&self, database: Option<Uuid>) -> Option<Option<Uuid>> {
        let mut claim = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        claim.replace(database)
    }

    /// Whether this process has no database.
    pub(super) fn is_for_none(&self) -> bool {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) == Some(None)
    }

    /// Refuses a file that belongs to another database by now. One that belongs to none is anybody's.
    pub(super) fn check(&self, bound: Option<Uuid>, path: &Path) -> Result<(), BufferError> {
        let claim = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match claim {
            Some(claimed) if bound.is_some() && bound != claimed => {
                Err(BufferError::OtherDatabase {
                    path: path.to_owned(),
                })
            }
            _ => Ok(()),
        }
    }
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

/// Makes the file belong to this database, whatever it holds. If it belonged to another, what had been made under keys is
/// there: here these keys are free.
pub(super) fn adopt(
    transaction: &mut Transaction<'_>,
    database: Option<Uuid>,
) -> Result<(), BufferError> {
    if bound(transaction)?.is_some_and(|bound| Some(bound) != database) {
        keys::forget_ended(transaction)?;
    }
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

/// Refuses to add to a file that belongs to another database than this process uses it for.
pub(super) fn check(transaction: &Transaction<'_>, claim: &Claim) -> Result<(), BufferError> {
    claim.check(bound(transaction)?, transaction.path())
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
