//! The ballast: a file of a fixed size beside the buffer, whose room is given up so that draining goes on when the
//! disk is full. On a full disk even removing an item from the buffer fails, since that writes new pages first.
//!
//! While it is there, anybody may append. While it is not, nothing new is accepted, so its room is for the drain
//! alone. It is given up by syncd when a settlement finds the disk full, and by a process that can't even register
//! as a writer; it is made again as soon as the disk has room for it and some more, by syncd, by a process that opens
//! the buffer, and by a writer that would otherwise refuse. All of that happens only in one's turn to write (see
//! `lock.rs`), so no transaction that has seen the ballast runs while it goes.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::posix_fallocate;
use nix::sys::statvfs::statvfs;

use super::lock::{Turn, beside};

/// Size of the ballast. Half of it let 87 100 items drain on a full disk; a batch of the largest items needs about
/// 4 MiB before it frees anything.
pub(super) const BALLAST_BYTES: u64 = 8 * 1024 * 1024;

/// Room that must be there beside the ballast before it is made again, so that the disk isn't full again at once.
const MARGIN_BYTES: u64 = 4 * 1024 * 1024;

/// A disk with less room than this is called full.
const LOW_BYTES: u64 = 1024 * 1024;

/// The ballast of a buffer.
#[derive(Debug, Clone)]
pub(super) struct Ballast {
    path: PathBuf,
}

impl Ballast {
    /// That of this buffer, whether it is there or not.
    pub(super) fn of(buffer: &Path) -> Self {
        Ballast {
            path: beside(buffer, ".ballast"),
        }
    }

    /// Whether it is there, whole.
    pub(super) fn is_there(&self) -> bool {
        self.path
            .metadata()
            .is_ok_and(|metadata| metadata.len() == BALLAST_BYTES)
    }

    /// Whether the buffer's disk takes nothing more for now.
    pub(super) fn is_disk_full(&self) -> bool {
        !self.is_there() || self.room().is_ok_and(|room| room < LOW_BYTES)
    }

    /// Whether, while the ballast is gone, enough of its room is left for what can't be refused.
    pub(super) fn has_rest(&self) -> bool {
        self.room().is_ok_and(|room| room >= BALLAST_BYTES / 2)
    }

    /// Gives its room up. Tells whether there was any.
    pub(super) fn release(&self, _turn: &Turn<'_>) -> io::Result<bool> {
        match fs::remove_file(&self.path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes it again if the disk has room for it and [`MARGIN_BYTES`] more. Tells whether it is there now.
    pub(super) fn restore(&self, turn: &Turn<'_>) -> io::Result<bool> {
        if self.is_there() {
            return Ok(true);
        }
        if self.room()? < BALLAST_BYTES + MARGIN_BYTES {
            return Ok(false);
        }
        self.make(turn).map(|()| true)
    }

    /// Makes it where it isn't there: under another name first, so that half a ballast is never taken for one.
    pub(super) fn make(&self, _turn: &Turn<'_>) -> io::Result<()> {
        if self.is_there() {
            return Ok(());
        }
        let unfinished = beside(&self.path, ".new");
        let made = allocate(&unfinished).and_then(|()| fs::rename(&unfinished, &self.path));
        if made.is_err() {
            // What it has already taken would be missing to others.
            match fs::remove_file(&unfinished) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        made
    }

    /// Bytes the disk has left. What a file system keeps back for root or for itself isn't counted, also for root: the
    /// two can't be told apart.
    fn room(&self) -> io::Result<u64> {
        let directory = self
            .path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let found = statvfs(directory.unwrap_or(Path::new(".")))?;
        Ok(found
            .blocks_available()
            .saturating_mul(found.fragment_size()))
    }
}

/// Makes a file whose every block is really there.
fn allocate(path: &Path) -> io::Result<()> {
    let file: File = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    let length = i64::try_from(BALLAST_BYTES).expect("a few MiB");
    posix_fallocate(&file, 0, length)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::super::lock::Turnstile;
    use super::*;

    #[test]
    fn it_takes_real_room_goes_and_comes_back() -> io::Result<()> {
        let directory = tempfile::tempdir()?;
        let buffer = directory.path().join("buffer.redb");
        let turnstile = Turnstile::open(&buffer)?;
        let (turn, ballast) = (turnstile.enter()?, Ballast::of(&buffer));
        assert!(!ballast.is_there());
        ballast.make(&turn)?;
        assert!(ballast.is_there());
        assert!(beside(&buffer, ".ballast").metadata()?.blocks() * 512 >= BALLAST_BYTES);
        assert!(ballast.release(&turn)? && !ballast.is_there());
        assert!(!ballast.release(&turn)?);
        assert!(ballast.is_disk_full() && ballast.has_rest());
        assert!(ballast.restore(&turn)? && ballast.is_there());
        Ok(())
    }

    #[test]
    fn half_a_ballast_is_none() -> io::Result<()> {
        let directory = tempfile::tempdir()?;
        let buffer = directory.path().join("buffer.redb");
        fs::write(beside(&buffer, ".ballast"), b"short")?;
        let (turnstile, ballast) = (Turnstile::open(&buffer)?, Ballast::of(&buffer));
        assert!(!ballast.is_there());
        assert!(ballast.restore(&turnstile.enter()?)? && ballast.is_there());
        Ok(())
    }
}
