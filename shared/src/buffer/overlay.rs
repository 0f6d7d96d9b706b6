//! A file seen through an overlay: what is written to it stays in memory, so that redb can open, repair and check a
//! file that must not be changed: one that others have open, that can't be written, or that is evidence.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

/// What is kept in memory at once: redb writes whole pages of this size or multiples of it.
const BLOCK_BYTES: u64 = 4096;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Overlay {
    file: File,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    length: u64,
    /// Up to where the file's own content counts: what was cut off once reads as zeros afterwards.
    beneath: u64,
    written: BTreeMap<u64, Vec<u8>>,
}

impl Overlay {
    /// Over this file, which is only read.
    pub(super) fn over(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Overlay {
            file,
            state: Mutex::new(State {
                length,
                beneath: length,
                written: BTreeMap::new(),
            }),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A block as the file has it, with zeros where it has nothing.
    fn beneath(&self, state: &State, number: u64) -> io::Result<Vec<u8>> {
        let mut block = vec![0; size(BLOCK_BYTES)];
        let start = number * BLOCK_BYTES;
        let there = size(state.beneath.saturating_sub(start).min(BLOCK_BYTES));
        self.file.read_exact_at(&mut block[..there], start)?;
        Ok(block)
    }
}

/// A length within a block or a request of redb's.
fn size(bytes: u64) -> usize {
    usize::try_from(bytes).expect("no longer than what is in memory")
}

/// The parts of a range that lie in one block each: the block's number, and the range within it.
fn blocks(offset: u64, length: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let end = offset + length as u64;
    let first = offset / BLOCK_BYTES;
    (first..end.div_ceil(BLOCK_BYTES)).map(move |number| {
        let start = number * BLOCK_BYTES;
        let from = size(offset.max(start) - start);
        let to = size(end.min(start + BLOCK_BYTES) - start);
        (number, from..to)
    })
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        if offset + out.len() as u64 > state.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if state.written.is_empty() && offset + out.len() as u64 <= state.beneath {
            return self.file.read_exact_at(out, offset);
        }
        let mut done = 0;
        for (number, part) in blocks(offset, out.len()) {
            let into = &mut out[done..done + part.len()];
            done += part.len();
            match state.written.get(&number) {
                Some(block) => into.copy_from_slice(&block[part]),
                None => into.copy_from_slice(&self.beneath(&state, number)?[part]),
            }
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut state = self.state();
        state.length = length;
        state.beneath = state.beneath.min(length);
        let kept = length.div_ceil(BLOCK_BYTES);
        state.written.split_off(&kept);
        if let Some(block) = state.written.get_mut(&(length / BLOCK_BYTES)) {
            block[size(length % BLOCK_BYTES)..].fill(0);
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let mut done = 0;
        for (number, part) in blocks(offset, data.len()) {
            let from = &data[done..done + part.len()];
            done += part.len();
            if !state.written.contains_key(&number) {
                let block = self.beneath(&state, number)?;
                state.written.insert(number, block);
            }
            if let Some(block) = state.written.get_mut(&number) {
                block[part].copy_from_slice(from);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_written_is_read_and_the_file_stays_as_it_was() -> io::Result<()> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("file");
        let content: Vec<u8> = (0..10_000u32).map(|number| (number % 251) as u8).collect();
        fs::write(&path, &content)?;
        let overlay = Overlay::over(File::open(&path)?)?;
        let mut expected = content.clone();
        overlay.write(4_090, &[7; 5_000])?;
        expected[4_090..9_090].fill(7);
        let mut read = vec![0; 10_000];
        overlay.read(0, &mut read)?;
        assert_eq!(read, expected);

        overlay.set_len(5_000)?;
        overlay.set_len(12_000)?;
        expected.truncate(5_000);
        expected.resize(12_000, 0);
        let mut read = vec![1; 12_000];
        overlay.read(0, &mut read)?;
        assert_eq!(read, expected);
        assert!(overlay.read(11_999, &mut [0; 2]).is_err());
        assert_eq!(fs::read(&path)?, content);
        Ok(())
    }
}
