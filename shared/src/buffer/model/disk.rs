//! A disk that fails when it is told to: under a buffer file, it keeps what is there apart from what would be there
//! after a power cut, and counts the steps (writes, syncs, changes of length) at which something can go wrong.
//!
//! The file itself is what is there (the page cache of a real disk), so locks and inodes are the real ones. Beside it
//! stands the durable image, to which a sync adds what has changed since the last. A power cut ends all access; when
//! power returns, the file is the durable image and as much of the rest as chance lets survive, in sectors.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};

/// What a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;

static DISKS: Mutex<BTreeMap<PathBuf, Arc<Disk>>> = Mutex::new(BTreeMap::new());

/// What happens at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::buffer) enum Fault {
    /// The power goes: nothing works any more until [`Disk::restore_power`].
    PowerCut,
    /// This step alone fails: a write after its first half, a sync after losing what it should have kept (Linux drops
    /// what it could not write, and the next sync succeeds).
    Error(io::ErrorKind),
}

/// What survives a power cut of what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::buffer) enum Survivors {
    /// Nothing.
    None,
    /// Everything, though no sync said so.
    All,
    /// Each sector by chance, of this seed.
    Chance(u64),
}

#[derive(Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
}

#[derive(Debug, Default)]
struct State {
    durable: Vec<u8>,
    unsynced: Vec<Change>,
    steps: u64,
    fault: Option<(u64, Fault)>,
    without_power: bool,
}

/// See the module's documentation.
#[derive(Debug)]
pub(in crate::buffer) struct Disk {
    path: PathBuf,
    state: Mutex<State>,
}

/// redb's way to the file, over a disk where there is one for its path.
#[derive(Debug)]
pub(in crate::buffer) struct Backend {
    file: FileBackend,
    disk: Option<Arc<Disk>>,
}

impl Disk {
    /// Puts a disk under the file that will be made at this path.
    pub(in crate::buffer) fn under(path: &Path) -> Arc<Self> {
        let disk = Arc::new(Disk {
            path: path.to_owned(),
            state: Mutex::default(),
        });
        hold(&DISKS).insert(path.to_owned(), Arc::clone(&disk));
        disk
    }

    /// Has this happen at the step of this number (the first is 1), once.
    pub(in crate::buffer) fn plan(&self, step: u64, fault: Fault) {
        hold(&self.state).fault = Some((step, fault));
    }

    /// Steps taken so far.
    pub(in crate::buffer) fn steps(&self) -> u64 {
        hold(&self.state).steps
    }

    /// Whether what was planned has not happened yet.
    pub(in crate::buffer) fn is_fault_ahead(&self) -> bool {
        hold(&self.state).fault.is_some()
    }

    /// Whether the power is cut.
    pub(in crate::buffer) fn is_without_power(&self) -> bool {
        hold(&self.state).without_power
    }

    /// Cuts the power now.
    pub(in crate::buffer) fn cut_power(&self) {
        hold(&self.state).without_power = true;
    }

    /// Makes the file what a power cut leaves of it, and forgets what was planned. Nobody may have the file open.
    pub(in crate::buffer) fn restore_power(&self, survivors: Survivors) -> io::Result<()> {
        let mut state = hold(&self.state);
        let mut dice = match survivors {
            Survivors::None => Dice::Never,
            Survivors::All => Dice::Always,
            Survivors::Chance(seed) => Dice::Seeded(seed),
        };
        let unsynced = std::mem::take(&mut state.unsynced);
        for change in unsynced {
            match change {
                Change::Length(length) if dice.survives() => resize(&mut state.durable, length),
                Change::Length(_) => {}
                Change::Write(offset, data) => tear(&mut state.durable, offset, &data, &mut dice),
            }
        }
        (state.without_power, state.fault) = (false, None);
        std::fs::write(&self.path, &state.durable)
    }

    /// Counts a step and says what happens at it.
    fn step(&self) -> Result<Option<Fault>, io::Error> {
        let mut state = hold(&self.state);
        if state.without_power {
            return Err(no_power());
        }
        state.steps += 1;
        let steps = state.steps;
        let due = state.fault.take_if(|(step, _)| *step <= steps);
        Ok(due.map(|(_, fault)| fault))
    }

    fn note(&self, change: Change) {
        hold(&self.state).unsynced.push(change);
    }

    /// What was written is safe from now on.
    fn keep(&self) {
        let mut state = hold(&self.state);
        let unsynced = std::mem::take(&mut state.unsynced);
        for change in unsynced {
            match change {
                Change::Length(length) => resize(&mut state.durable, length),
                Change::Write(offset, data) => {
                    let end = offset + data.len() as u64;
                    if end > state.durable.len() as u64 {
                        resize(&mut state.durable, end);
                    }
                    let offset = position(offset);
                    state.durable[offset..offset + data.len()].copy_from_slice(&data);
                }
            }
        }
    }

    fn forget(&self) {
        hold(&self.state).unsynced.clear();
    }
}

impl Backend {
    /// redb's way to this file.
    pub(in crate::buffer) fn new(path: &Path, file: FileBackend) -> Self {
        let disk = hold(&DISKS).get(path).cloned();
        Backend { file, disk }
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if self
            .disk
            .as_ref()
            .is_some_and(|disk| disk.is_without_power())
        {
            return Err(no_power());
        }
        self.file.read(offset, out)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let Some(disk) = &self.disk else {
            return self.file.set_len(length);
        };
        if let Some(fault) = disk.step()? {
            return Err(fault.strike(disk));
        }
        self.file.set_len(length)?;
        disk.note(Change::Length(length));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let Some(disk) = &self.disk else {
            return self.file.sync_data();
        };
        match disk.step()? {
            None => {
                disk.keep();
                Ok(())
            }
            Some(fault) => {
                if matches!(fault, Fault::Error(_)) {
                    disk.forget();
                }
                Err(fault.strike(disk))
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let Some(disk) = &self.disk else {
            return self.file.write(offset, data);
        };
        let fault = disk.step()?;
        let written = match fault {
            Some(Fault::Error(_)) => &data[..data.len() / 2],
            _ => data,
        };
        self.file.write(offset, written)?;
        disk.note(Change::Write(offset, written.to_vec()));
        fault.map_or(Ok(()), |fault| Err(fault.strike(disk)))
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}

impl Fault {
    fn strike(self, disk: &Disk) -> io::Error {
        match self {
            Fault::PowerCut => {
                disk.cut_power();
                no_power()
            }
            Fault::Error(kind) => kind.into(),
        }
    }
}

/// Decides what survives.
enum Dice {
    Never,
    Always,
    Seeded(u64),
}

impl Dice {
    fn survives(&mut self) -> bool {
        match self {
            Dice::Never => false,
            Dice::Always => true,
            Dice::Seeded(state) => {
                // Knuth's MMIX generator; its high bits are the random ones.
                *state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                *state >> 63 == 1
            }
        }
    }
}

/// Writes those sectors that survive, as far as the file reaches: what lies beyond a length that did not survive is
/// gone with it.
fn tear(image: &mut [u8], offset: u64, data: &[u8], dice: &mut Dice) {
    for (number, sector) in data.chunks(SECTOR_BYTES).enumerate() {
        let start = position(offset) + number * SECTOR_BYTES;
        if !dice.survives() || start >= image.len() {
            continue;
        }
        let length = sector.len().min(image.len() - start);
        image[start..start + length].copy_from_slice(&sector[..length]);
    }
}

fn resize(image: &mut Vec<u8>, length: u64) {
    image.resize(position(length), 0);
}

fn position(offset: u64) -> usize {
    usize::try_from(offset).expect("a test's file fits into memory")
}

fn no_power() -> io::Error {
    io::Error::other("no power")
}

fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
