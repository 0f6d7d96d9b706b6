//! What leaves the file with age: finished records, and dead letters by way of the archive. Pending items never do.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use redb::ReadableTable;
use serde::{Deserialize, Serialize};

use crate::domain::{OperationId, OperationRecord, Timestamp};
use crate::seeded::Bug;

use super::error::BufferError;
use super::lock::beside;
use super::schema::{
    DEAD, DeadLetter, FINISHED, FinishedBatch, REVOCATIONS, SESSIONS, encode, operation_key,
};
use super::snap::whole_value;
use super::writer::Transaction;

/// Most records removed in one transaction, so that it stays short.
const STEP_MAX: usize = 1_000;

/// What one step of retention did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RetentionReport {
    /// Finished records removed.
    pub finished_removed: u64,
    /// Dead letters moved to the archive.
    pub archived: u64,
    /// Whether there may be more to do.
    pub more: bool,
}

/// The directory of archived dead letters of a buffer.
pub fn archive_directory(buffer: &Path) -> PathBuf {
    beside(buffer, ".archive")
}

/// A line of the archive: what people read, and the whole letter for `syncd dead retry --from`.
#[derive(Debug, Serialize, Deserialize)]
struct ArchiveLine {
    operation_id: String,
    user_id: String,
    entity: String,
    entity_id: String,
    operation: String,
    reason: String,
    died_at: String,
    /// The letter in the file's own encoding, in hexadecimal.
    letter: String,
}

impl ArchiveLine {
    fn of(letter: &DeadLetter) -> Self {
        let record = letter.record();
        ArchiveLine {
            operation_id: record.id.to_string(),
            user_id: record.user_id.to_string(),
            entity: record.entity.as_str().to_owned(),
            entity_id: record.entity_id,
            operation: record.kind.as_str().to_owned(),
            reason: letter.reason.clone(),
            died_at: letter.died_at.to_string(),
            letter: encode(letter)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
        }
    }

    fn letter(&self) -> Option<DeadLetter> {
        let digits = self.letter.as_bytes();
        let bytes: Option<Vec<u8>> = digits
            .chunks(2)
            .map(|pair| {
                std::str::from_utf8(pair)
                    .ok()
                    .and_then(|hex| u8::from_str_radix(hex, 16).ok())
            })
            .collect();
        whole_value(&bytes?)
    }
}

/// Appends letters to the archive's file of the month of `now` and syncs it. A letter may come to be there twice, if
/// the process dies before the letters are removed from the buffer; never not at all.
///
/// Where an append was cut off, by a full disk or the death of a process, the letters begin on a line of their own, or
/// the first of them would be lost with the fragment.
pub(super) fn archive(buffer: &Path, letters: &[DeadLetter], now: Timestamp) -> io::Result<()> {
    let directory = archive_directory(buffer);
    if !directory.exists() {
        DirBuilder::new().mode(0o700).create(&directory)?;
        File::open(
            directory
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty())
                .unwrap_or(Path::new(".")),
        )?
        .sync_all()?;
    }
    let month = now.to_datetime().format("%Y-%m.jsonl").to_string();
    let path = directory.join(month);
    let mut file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path)?;
    let mut lines = Vec::new();
    if is_torn(&file)? {
        lines.push(b'\n');
    }
    for letter in letters {
        serde_json::to_writer(&mut lines, &ArchiveLine::of(letter))?;
        lines.push(b'\n');
    }
    or_as_before(&mut file, |file| {
        file.write_all(&lines)?;
        file.sync_all()
    })?;
    // Each time: the process that made the file may have died before it came to this.
    File::open(&directory)?.sync_all()
}

/// Whether a file's last line has no end.
fn is_torn(file: &File) -> io::Result<bool> {
    let length = file.metadata()?.len();
    if length == 0 {
        return Ok(false);
    }
    let mut last = [0];
    file.read_exact_at(&mut last, length - 1)?;
    Ok(last != *b"\n")
}

/// Does what appends to a file. When that fails the file is made as long as it was, so that a full disk leaves no
/// fragment; if that fails too, the next letters begin on a line of their own.
fn or_as_before(
    file: &mut File,
    append: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let length = file.metadata()?.len();
    let appended = append(file);
    if appended.is_err() {
        drop(file.set_len(length));
    }
    appended
}

/// Reads an archive file. Gives its letters, each once, and the numbers of the lines (from 1) that can't be read,
/// whatever bytes they are.
///
/// # Errors
/// When the file can't be opened or read.
pub fn read_archive(path: &Path) -> io::Result<(Vec<DeadLetter>, Vec<usize>)> {
    let mut letters: Vec<DeadLetter> = Vec::new();
    let mut unreadable = Vec::new();
    let lines = BufReader::new(File::open(path)?).split(b'\n');
    for (number, line) in lines.enumerate() {
        let line = line?;
        if line.trim_ascii().is_empty() {
            continue;
        }
        let letter = serde_json::from_slice::<ArchiveLine>(&line)
            .ok()
            .and_then(|line| line.letter());
        match letter {
            Some(letter)
                if letters
                    .iter()
                    .any(|known| known.item.operation.id == letter.item.operation.id) => {}
            Some(letter) => letters.push(letter),
            None => unreadable.push(number + 1),
        }
    }
    Ok((letters, unreadable))
}

/// One step: the oldest finished records past `age`, then the dead letters past it, which are archived (and synced)
/// before they are removed.
pub(super) fn step(
    transaction: &mut Transaction<'_>,
    buffer: &Path,
    age: Duration,
    now: Timestamp,
) -> Result<RetentionReport, BufferError> {
    let age_us = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
    let cutoff = Timestamp::from_micros(now.as_micros().saturating_sub(age_us));
    let finished_removed = remove_finished(transaction, cutoff)?;
    let letters = old_letters(transaction, cutoff)?;
    if !letters.is_empty() {
        let archived = archive(buffer, &letters, now);
        if !Bug::RemovedUnarchived.is_on() {
            archived.map_err(|error| BufferError::io(buffer, &error))?;
        }
        remove_dead(
            transaction,
            letters.iter().map(|letter| letter.item.operation.id),
        )?;
        transaction.counters.archived += letters.len() as u64;
    }
    let more = finished_removed >= STEP_MAX as u64 || letters.len() >= STEP_MAX;
    Ok(RetentionReport {
        finished_removed,
        archived: letters.len() as u64,
        more,
    })
}

/// Removes the batches of finished records that ended before the cutoff; gives how many records.
fn remove_finished(transaction: &Transaction<'_>, cutoff: Timestamp) -> Result<u64, BufferError> {
    let mut finished = transaction
        .txn
        .open_table(FINISHED)
        .map_err(|error| transaction.storage(error))?;
    let mut removed = 0;
    loop {
        let oldest = finished
            .first()
            .map_err(|error| transaction.storage(error))?;
        let batch = oldest.map(|(_, bytes)| whole_value::<FinishedBatch>(bytes.value()));
        let Some(batch) = batch else { break };
        let records = batch.map(|batch| batch.records).unwrap_or_default();
        let is_young = |record: &OperationRecord| {
            record
                .finished_at
                .is_some_and(|finished_at| finished_at > cutoff)
        };
        if records.iter().any(is_young) || removed >= STEP_MAX as u64 {
            break;
        }
        removed += records.len().max(1) as u64;
        finished
            .pop_first()
            .map_err(|error| transaction.storage(error))?;
    }
    Ok(removed)
}

fn old_letters(
    transaction: &Transaction<'_>,
    cutoff: Timestamp,
) -> Result<Vec<DeadLetter>, BufferError> {
    let dead = transaction
        .txn
        .open_table(DEAD)
        .map_err(|error| transaction.storage(error))?;
    let mut letters = Vec::new();
    for entry in dead.iter().map_err(|error| transaction.storage(error))? {
        let (_, bytes) = entry.map_err(|error| transaction.storage(error))?;
        let letter: Option<DeadLetter> = whole_value(bytes.value());
        letters.extend(letter.filter(|letter| letter.died_at <= cutoff));
        if letters.len() >= STEP_MAX {
            break;
        }
    }
    Ok(letters)
}

/// Removes dead letters; gives those that were there. The caller counts what they become.
pub(super) fn remove_dead(
    transaction: &mut Transaction<'_>,
    ids: impl IntoIterator<Item = OperationId>,
) -> Result<Vec<DeadLetter>, BufferError> {
    let mut dead = transaction
        .txn
        .open_table(DEAD)
        .map_err(|error| transaction.storage(error))?;
    let mut removed = Vec::new();
    for id in ids {
        let bytes = dead
            .remove(operation_key(id))
            .map_err(|error| transaction.storage(error))?;
        removed.extend(bytes.and_then(|bytes| whole_value::<DeadLetter>(bytes.value())));
    }
    drop(dead);
    transaction.counters.dead = transaction
        .counters
        .dead
        .saturating_sub(removed.len() as u64);
    Ok(removed)
}

/// Removes revocations and sessions that no token can need any more.
pub(super) fn remove_expired(
    transaction: &mut Transaction<'_>,
    now: Timestamp,
) -> Result<(), BufferError> {
    let expired = |bytes: &[u8]| {
        let revocation: Option<crate::domain::Revocation> = whole_value(bytes);
        revocation.is_some_and(|revocation| revocation.keep_until < now)
    };
    let mut revocations = transaction
        .txn
        .open_table(REVOCATIONS)
        .map_err(|error| transaction.storage(error))?;
    revocations
        .retain(|_, bytes| !expired(bytes))
        .map_err(|error| transaction.storage(error))?;
    let mut sessions = transaction
        .txn
        .open_table(SESSIONS)
        .map_err(|error| transaction.storage(error))?;
    sessions
        .retain(|_, bytes| {
            let session: Option<crate::domain::Session> = whole_value(bytes);
            session.is_none_or(|session| session.expires_at >= now)
        })
        .map_err(|error| transaction.storage(error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::schema::Item;
    use super::super::tests::create;
    use super::*;
    use crate::domain::TaskId;

    fn letter(title: &str) -> DeadLetter {
        DeadLetter {
            item: Item::new(create("ann", TaskId::generate(), title), None),
            reason: "22001".to_owned(),
            died_at: Timestamp::from_micros(0),
        }
    }

    /// What an archive gives of a letter, then these bytes, then another letter; beside the two.
    fn read_around(bytes: &[u8]) -> io::Result<([DeadLetter; 2], Vec<DeadLetter>, Vec<usize>)> {
        let directory = tempfile::tempdir()?;
        let buffer = directory.path().join("buffer.redb");
        let now = Timestamp::from_micros(1_795_000_000_000_000);
        let letters = [letter("bread"), letter("milk")];
        archive(&buffer, &letters[..1], now)?;
        let path =
            archive_directory(&buffer).join(now.to_datetime().format("%Y-%m.jsonl").to_string());
        OpenOptions::new()
            .append(true)
            .open(&path)?
            .write_all(bytes)?;
        archive(&buffer, &letters[1..], now)?;
        let (found, unreadable) = read_archive(&path)?;
        Ok((letters, found, unreadable))
    }

    #[test]
    fn a_torn_line_costs_only_itself() -> io::Result<()> {
        let (letters, found, unreadable) = read_around(b"{\"operation_id\":\"01")?;
        assert_eq!(found, letters);
        assert_eq!(unreadable, [2]);
        Ok(())
    }

    #[test]
    fn a_line_that_is_no_text_costs_only_itself() -> io::Result<()> {
        let (letters, found, unreadable) = read_around(b"\xff\xfe\n\n{}\n")?;
        assert_eq!(found, letters);
        assert_eq!(unreadable, [2, 4]);
        Ok(())
    }

    #[test]
    fn an_append_that_fails_leaves_the_file_as_it_was() -> io::Result<()> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("2026-11.jsonl");
        fs::write(&path, "whole\n")?;
        let mut file = OpenOptions::new().append(true).open(&path)?;
        let failed = or_as_before(&mut file, |file| {
            file.write_all(b"a frag")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert!(failed.is_err());
        assert_eq!(fs::read_to_string(&path)?, "whole\n");
        Ok(())
    }
}
