//! Finding what was written to a file without its order: every value carries its length, in its encoding, and its
//! checksum, so whole values can be told anywhere in a heap of bytes.
//!
//! What was freed long ago may still lie there. Of the versions of one item the newest counts; one that ended
//! according to a record that is found as well is left out; and of the rest, the store knows what it has had.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde::de::DeserializeOwned;

use crate::domain::{OperationId, Revocation, Session};

use super::schema::{Counters, DeadLetter, FinishedBatch, Item, VALUE_START, decode_prefix};

/// How much is looked at in one go.
const WINDOW_BYTES: usize = 8 * 1024 * 1024;

/// The longest value that is sure to be found: windows overlap by so much. The largest item is a few hundred KiB.
const VALUE_BYTES_MAX: usize = 1024 * 1024;

/// Where an item lies, and what is needed to choose among its versions and to put them in order.
#[derive(Debug, Clone, Copy)]
struct Spot {
    stamp: i64,
    retries: u32,
    offset: u64,
    length: usize,
}

/// What lies in a file.
#[derive(Debug, Default)]
pub(super) struct Carved {
    items: HashMap<OperationId, Spot>,
    /// Letters found, each once.
    pub(super) letters: HashMap<OperationId, DeadLetter>,
    /// Operations that have ended, by the records found.
    pub(super) finished: HashSet<OperationId>,
    /// Revocations found.
    pub(super) revocations: Vec<Revocation>,
    /// Sessions found.
    pub(super) sessions: Vec<Session>,
    /// The latest counters found.
    pub(super) counters: Option<Counters>,
}

impl Carved {
    /// Looks through a whole file.
    pub(super) fn out_of(file: &File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let (mut carved, mut offset) = (Carved::default(), 0);
        let mut window = Vec::new();
        while offset < length {
            let wanted = usize::try_from(length - offset).unwrap_or(usize::MAX);
            window.resize(wanted.min(WINDOW_BYTES + VALUE_BYTES_MAX), 0);
            file.read_exact_at(&mut window, offset)?;
            carved.look_through(&window, offset);
            offset += WINDOW_BYTES as u64;
        }
        Ok(carved)
    }

    /// Ids of the items that have not ended as far as is known, the oldest first.
    pub(super) fn waiting(&self) -> Vec<OperationId> {
        let ended = |id: &OperationId| self.finished.contains(id) || self.letters.contains_key(id);
        let mut waiting: Vec<(&OperationId, &Spot)> =
            self.items.iter().filter(|(id, _)| !ended(id)).collect();
        waiting.sort_by_key(|(id, spot)| (spot.stamp, **id));
        waiting.into_iter().map(|(id, _)| *id).collect()
    }

    /// Reads an item that was found.
    pub(super) fn read(&self, file: &File, id: OperationId) -> io::Result<Option<Item>> {
        let Some(spot) = self.items.get(&id) else {
            return Ok(None);
        };
        let mut bytes = vec![0; spot.length];
        file.read_exact_at(&mut bytes, spot.offset)?;
        Ok(decode_prefix(&bytes).map(|(item, _)| item))
    }

    fn look_through(&mut self, window: &[u8], offset: u64) {
        let mut at = 0;
        let end = window.len().min(WINDOW_BYTES);
        while at < end {
            let Some(next) = window[at..end].iter().position(|byte| *byte == VALUE_START) else {
                return;
            };
            at += next;
            at += self.take(&window[at..], offset + at as u64).unwrap_or(1);
        }
    }

    /// Takes the value that begins here, if one does; gives its length.
    fn take(&mut self, bytes: &[u8], offset: u64) -> Option<usize> {
        if let Some((item, length)) = decode_prefix::<Item>(bytes) {
            self.note_item(&item, offset, length);
            return Some(length);
        }
        if let Some((letter, length)) = decode_prefix::<DeadLetter>(bytes) {
            self.letters.insert(letter.item.operation.id, letter);
            return Some(length);
        }
        if let Some((batch, length)) = decode_prefix::<FinishedBatch>(bytes) {
            self.finished
                .extend(batch.records.iter().map(|record| record.id));
            return Some(length);
        }
        if let Some((counters, length)) = decode_prefix::<Counters>(bytes) {
            let latest = self
                .counters
                .filter(|known| known.accepted > counters.accepted);
            self.counters = Some(latest.unwrap_or(counters));
            return Some(length);
        }
        take_into(&mut self.revocations, bytes).or_else(|| take_into(&mut self.sessions, bytes))
    }

    fn note_item(&mut self, item: &Item, offset: u64, length: usize) {
        let spot = Spot {
            stamp: item.operation.stamp.as_i64(),
            retries: item.retries,
            offset,
            length,
        };
        let known = self.items.entry(item.operation.id).or_insert(spot);
        if (known.stamp, known.retries) < (spot.stamp, spot.retries) {
            *known = spot;
        }
    }
}

fn take_into<T: DeserializeOwned>(found: &mut Vec<T>, bytes: &[u8]) -> Option<usize> {
    let (value, length) = decode_prefix(bytes)?;
    found.push(value);
    Some(length)
}
