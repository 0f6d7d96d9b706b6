//! Reading what a damaged file still holds, without changing it.
//!
//! First by its tables, over an overlay: where all of them can be walked to their ends, that is exactly what the file
//! holds. Where one can't, or the file doesn't open, the rest is carved out of its bytes (see `carve.rs`).

use std::collections::HashSet;
use std::fs::File;
use std::ops::Bound;
use std::path::{Path, PathBuf};

use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition,
    TableError,
};
use uuid::Uuid;

use crate::domain::{OperationId, Revocation, Session};

use super::carve::Carved;
use super::error::BufferError;
use super::file::guard_path;
use super::keys::KeyedWrite;
use super::overlay::Overlay;
use super::schema::{
    CLOCK_KEY, COUNTERS_KEY, Counters, DATABASE_KEY, DEAD, DeadLetter, Decoded, EPOCHS, FINISHED,
    FinishedBatch, Item, KEYED, META, NODE_BASE_KEY, REVOCATIONS, SESSIONS, SET_ASIDE, decode,
    queues,
};
use super::snap::whole_value;

/// Most entries handed on at once.
const CHUNK: usize = 500;

/// redb's cache for a file that is read once.
const CACHE_BYTES: usize = 16 * 1024 * 1024;

/// What was found in a damaged file.
#[derive(Debug)]
pub(super) enum Piece {
    /// An item that waited.
    Item(Item),
    /// A dead letter.
    Letter(DeadLetter),
    /// Bytes of an item in a queue whose checksum is wrong.
    Damaged(Vec<u8>),
    /// The same, set aside already.
    Aside(Vec<u8>),
    /// Records of what had ended.
    Finished(FinishedBatch),
    /// A revocation.
    Revocation(Revocation),
    /// A session.
    Session(Session),
    /// What was made under an idempotency key.
    Keyed(KeyedWrite),
}

/// How a file could be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// All its tables, to their ends.
    Whole,
    /// Some of its tables only; the rest was carved out of its bytes.
    Partly,
    /// It doesn't open: all was carved out of its bytes.
    Carved,
}

/// What a file says of itself; `None` where that can't be read.
#[derive(Debug, Clone, Default)]
pub(super) struct Head {
    pub(super) counters: Option<Counters>,
    pub(super) node_base: Option<u64>,
    pub(super) database: Option<Uuid>,
    /// What it knows of PostgreSQL's clock, encoded.
    pub(super) clock: Option<Vec<u8>>,
    /// Its epochs, encoded: without them the stamps of some items could not be corrected.
    pub(super) epochs: Vec<(u128, Vec<u8>)>,
}

/// A file that may be damaged.
pub(super) struct Wreck {
    path: PathBuf,
    file: File,
    database: Option<Database>,
}

impl Wreck {
    /// Opens it, for reading only. That redb can't open it is no error.
    pub(super) fn open(path: &Path) -> Result<Self, BufferError> {
        let failed = |error: std::io::Error| BufferError::io(path, &error);
        let file = File::open(path).map_err(failed)?;
        let mut wreck = Wreck {
            path: path.to_owned(),
            database: None,
            file,
        };
        wreck.reopen();
        Ok(wreck)
    }

    /// Opens the database anew: one that has panicked may have lost its locks.
    fn reopen(&mut self) {
        self.database = open_over(&self.path).ok();
    }

    /// What it says of itself.
    pub(super) fn head(&self) -> Head {
        let read = self.read(|txn| {
            let meta = |key: &str| -> Result<Option<Vec<u8>>, BufferError> {
                let Some(table) = open_table(txn, META, &self.path)? else {
                    return Ok(None);
                };
                let value = table.get(key).map_err(|error| self.storage(error))?;
                Ok(value.map(|value| value.value().to_vec()))
            };
            let base = meta(NODE_BASE_KEY)?.and_then(|bytes| bytes.try_into().ok());
            let mut epochs = Vec::new();
            if let Some(table) = open_table(txn, EPOCHS, &self.path)? {
                for entry in table.iter().map_err(|error| self.storage(error))? {
                    let (key, bytes) = entry.map_err(|error| self.storage(error))?;
                    epochs.push((key.value(), bytes.value().to_vec()));
                }
            }
            Ok(Head {
                clock: meta(CLOCK_KEY)?,
                epochs,
                counters: meta(COUNTERS_KEY)?.and_then(|bytes| whole_value(&bytes)),
                node_base: base.map(u64::from_le_bytes),
                database: meta(DATABASE_KEY)?.and_then(|bytes| Uuid::from_slice(&bytes).ok()),
            })
        });
        read.unwrap_or_default()
    }

    /// Hands on all that can be read, in pieces whose order within a resource is that in which it was accepted.
    pub(super) fn read_out(
        &mut self,
        take: &mut dyn FnMut(Vec<Piece>) -> Result<(), BufferError>,
    ) -> Result<Reading, BufferError> {
        let (mut seen, mut is_whole) = (HashSet::new(), self.database.is_some());
        for (_, _, table) in queues() {
            is_whole &= self.walk(table, 0, &mut seen, take, item_piece)?;
        }
        is_whole &= self.walk(DEAD, 0, &mut seen, take, |bytes| {
            whole_value(bytes).map(Piece::Letter)
        })?;
        is_whole &= self.walk(FINISHED, 0, &mut seen, take, |bytes| {
            whole_value(bytes).map(Piece::Finished)
        })?;
        is_whole &= self.walk(SET_ASIDE, 0, &mut seen, take, |bytes| {
            Some(Piece::Aside(bytes.to_vec()))
        })?;
        is_whole &= self.named(REVOCATIONS, take, Piece::Revocation)?;
        is_whole &= self.named(SESSIONS, take, Piece::Session)?;
        is_whole &= self.walk(KEYED, 0, &mut seen, take, |bytes| {
            whole_value(bytes).map(Piece::Keyed)
        })?;
        if is_whole {
            return Ok(Reading::Whole);
        }
        self.carve(&seen, take)?;
        let opened = self.database.is_some();
        Ok(if opened {
            Reading::Partly
        } else {
            Reading::Carved
        })
    }

    /// Walks a table as far as it can be read; tells whether that was to its end.
    fn walk<K>(
        &mut self,
        table: TableDefinition<'static, K, &'static [u8]>,
        first: K,
        seen: &mut HashSet<OperationId>,
        take: &mut dyn FnMut(Vec<Piece>) -> Result<(), BufferError>,
        piece: impl Fn(&[u8]) -> Option<Piece>,
    ) -> Result<bool, BufferError>
    where
        K: redb::Key + Copy + 'static + for<'k> redb::Value<SelfType<'k> = K>,
    {
        let mut from = Bound::Included(first);
        loop {
            let (mut pieces, mut last) = (Vec::new(), None);
            let walked = self.read(|txn| {
                let Some(table) = open_table(txn, table, &self.path)? else {
                    return Ok(());
                };
                let entries = table
                    .range::<K>((from, Bound::Unbounded))
                    .map_err(|error| self.storage(error))?;
                for entry in entries.take(CHUNK) {
                    let (key, bytes) = entry.map_err(|error| self.storage(error))?;
                    last = Some(key.value());
                    pieces.extend(piece(bytes.value()));
                }
                Ok(())
            });
            seen.extend(pieces.iter().flat_map(operations_of));
            take(pieces)?;
            if walked.is_err() {
                self.reopen();
                return Ok(false);
            }
            match last {
                Some(key) => from = Bound::Excluded(key),
                None => return Ok(true),
            }
        }
    }

    /// Reads a small table, keyed by name.
    fn named<T: serde::de::DeserializeOwned>(
        &mut self,
        table: TableDefinition<'static, &'static str, &'static [u8]>,
        take: &mut dyn FnMut(Vec<Piece>) -> Result<(), BufferError>,
        piece: impl Fn(T) -> Piece,
    ) -> Result<bool, BufferError> {
        let mut pieces = Vec::new();
        let walked = self.read(|txn| {
            let Some(table) = open_table(txn, table, &self.path)? else {
                return Ok(());
            };
            for entry in table.iter().map_err(|error| self.storage(error))? {
                let (_, bytes) = entry.map_err(|error| self.storage(error))?;
                pieces.extend(whole_value(bytes.value()).map(&piece));
            }
            Ok(())
        });
        take(pieces)?;
        if walked.is_err() {
            self.reopen();
        }
        Ok(walked.is_ok())
    }

    /// Hands on what lies in the file's bytes and has not been seen in its tables.
    fn carve(
        &self,
        seen: &HashSet<OperationId>,
        take: &mut dyn FnMut(Vec<Piece>) -> Result<(), BufferError>,
    ) -> Result<(), BufferError> {
        let failed = |error: std::io::Error| BufferError::io(&self.path, &error);
        let mut carved = Carved::out_of(&self.file).map_err(failed)?;
        let mut waiting = carved.waiting();
        waiting.retain(|id| !seen.contains(id));
        for ids in waiting.chunks(CHUNK) {
            let mut pieces = Vec::with_capacity(ids.len());
            for id in ids {
                let item = carved.read(&self.file, *id).map_err(failed)?;
                pieces.extend(item.map(Piece::Item));
            }
            take(pieces)?;
        }
        let letters = std::mem::take(&mut carved.letters).into_values();
        let mut rest: Vec<Piece> = letters
            .filter(|letter| !seen.contains(&letter.item.operation.id))
            .map(Piece::Letter)
            .collect();
        rest.extend(carved.revocations.drain(..).map(Piece::Revocation));
        rest.extend(carved.sessions.drain(..).map(Piece::Session));
        take(rest)
    }

    fn read<T>(
        &self,
        work: impl FnOnce(&ReadTransaction) -> Result<T, BufferError>,
    ) -> Result<T, BufferError> {
        let Some(database) = &self.database else {
            return Err(BufferError::Damaged {
                path: self.path.clone(),
                detail: "it does not open".to_owned(),
            });
        };
        guard_path(&self.path, || {
            let txn = database.begin_read().map_err(|error| self.storage(error))?;
            work(&txn)
        })
    }

    fn storage(&self, error: impl Into<redb::Error>) -> BufferError {
        BufferError::storage(&self.path, error)
    }
}

/// Opens a file as a database whose changes stay in memory.
pub(super) fn open_over(path: &Path) -> Result<Database, BufferError> {
    let failed = |error: std::io::Error| BufferError::io(path, &error);
    let file = File::open(path).map_err(failed)?;
    let overlay = Overlay::over(file).map_err(failed)?;
    if overlay.len().map_err(failed)? == 0 {
        return Err(BufferError::Damaged {
            path: path.to_owned(),
            detail: "it is empty".to_owned(),
        });
    }
    guard_path(path, || {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        builder
            .create_with_backend(overlay)
            .map_err(|error| BufferError::storage(path, error))
    })
}

/// A table; `None` where nothing has made it.
fn open_table<K: redb::Key + 'static, V: redb::Value + 'static>(
    txn: &ReadTransaction,
    definition: TableDefinition<'_, K, V>,
    path: &Path,
) -> Result<Option<redb::ReadOnlyTable<K, V>>, BufferError> {
    match txn.open_table(definition) {
        Ok(table) => Ok(Some(table)),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(BufferError::storage(path, error)),
    }
}

/// What lies in a queue. An item of a newer program is kept as bytes: the one it is salvaged into may be as old.
fn item_piece(bytes: &[u8]) -> Option<Piece> {
    Some(match decode::<Item>(bytes) {
        Decoded::Whole(item) => Piece::Item(item),
        Decoded::Damaged | Decoded::Newer => Piece::Damaged(bytes.to_vec()),
    })
}

fn operations_of(piece: &Piece) -> Vec<OperationId> {
    match piece {
        Piece::Item(item) => vec![item.operation.id],
        Piece::Letter(letter) => vec![letter.item.operation.id],
        Piece::Finished(batch) => batch.records.iter().map(|record| record.id).collect(),
        _ => Vec::new(),
    }
}
