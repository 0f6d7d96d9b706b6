//! Locks beside the file: the turnstile that makes writers take turns, and the lock syncd holds for its life.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::unistd::geteuid;

/// A path beside the buffer file: the same with this ending appended.
pub(crate) fn beside(buffer: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(buffer);
    name.push(ending);
    PathBuf::from(name)
}

/// Opens (or makes) a file of ours beside the buffer, readable by its owner only.
fn open_lock_file(buffer: &Path, ending: &str) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(beside(buffer, ending))?;
    hand_over(&file, buffer)?;
    Ok(file)
}

/// Gives what root has made to the owner of the buffer, which it is or lies beside, or else of its directory: the
/// service, which is not root, has to open it too.
pub(super) fn hand_over(file: &File, buffer: &Path) -> io::Result<()> {
    if !geteuid().is_root() || file.metadata()?.uid() != 0 {
        return Ok(());
    }
    let directory = buffer
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    for place in [buffer, directory.unwrap_or(Path::new("."))] {
        match place.metadata() {
            Ok(owner) if owner.uid() != 0 => {
                return fchown(file, Some(owner.uid()), Some(owner.gid()));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Makes the processes that write the file take turns.
///
/// redb's own lock is not fair: two writers in contention wait up to 250 ms now and then. A writer takes `wait`, then
/// `turn`, lets `wait` go, writes, and lets `turn` go, so whoever has just written queues behind whoever waits
/// (append p99/max 9.3/12 ms against 9.0/26 without, a drain beside 500 appends/s). The kernel frees both locks of a
/// process that dies.
#[derive(Debug)]
pub(super) struct Turnstile {
    wait: File,
    turn: File,
}

impl Turnstile {
    /// Opens the two lock files.
    pub(super) fn open(buffer: &Path) -> io::Result<Self> {
        Ok(Turnstile {
            wait: open_lock_file(buffer, ".wait")?,
            turn: open_lock_file(buffer, ".turn")?,
        })
    }

    /// The same, if they are there; `None` where nobody has written yet.
    pub(super) fn open_existing(buffer: &Path) -> io::Result<Option<Self>> {
        let open = |ending| {
            let path = beside(buffer, ending);
            match OpenOptions::new().read(true).write(true).open(path) {
                Ok(file) => Ok(Some(file)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            }
        };
        let (wait, turn) = (open(".wait")?, open(".turn")?);
        Ok(wait.zip(turn).map(|(wait, turn)| Turnstile { wait, turn }))
    }

    /// Waits for this process' turn; it lasts until the answer is dropped. Blocks while another process is in its own,
    /// also while that one is stopped: callers bound their wait by withdrawing their request.
    pub(super) fn enter(&self) -> io::Result<Turn<'_>> {
        self.wait.lock()?;
        let turn = self.turn.lock();
        self.wait.unlock()?;
        turn.map(|()| Turn(&self.turn))
    }
}

/// How often [`lock_until`] asks: flock(2) knows no deadline.
const ASK_INTERVAL: Duration = Duration::from_millis(10);

impl Turnstile {
    /// As [`Turnstile::enter`], but for no longer than this; `None` then.
    pub(super) fn enter_within(&self, patience: Duration) -> io::Result<Option<Turn<'_>>> {
        let until = Instant::now() + patience;
        if !lock_until(&self.wait, until)? {
            return Ok(None);
        }
        let turn = lock_until(&self.turn, until);
        self.wait.unlock()?;
        Ok(turn?.then_some(Turn(&self.turn)))
    }
}

/// Locks a file, unless another keeps it locked for this long.
fn lock_until(file: &File, until: Instant) -> io::Result<bool> {
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if Instant::now() >= until => return Ok(false),
            Err(TryLockError::WouldBlock) => std::thread::sleep(ASK_INTERVAL),
        }
    }
}

/// This process' turn to write.
#[derive(Debug)]
pub(super) struct Turn<'t>(&'t File);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.unlock() {
            tracing::error!(%error, "can't release the buffer's turnstile");
        }
    }
}

/// The lock a syncd holds for its life, so that there is one a buffer: `BUFFER_PATH.syncd.lock`, which names its
/// process id. An open-file-description lock (fcntl(2)), so that asking about it takes nothing.
#[derive(Debug)]
pub struct DaemonLock {
    _file: File,
}

impl DaemonLock {
    const ENDING: &str = ".syncd.lock";

    /// The lock file of a buffer.
    pub fn path(buffer: &Path) -> PathBuf {
        beside(buffer, DaemonLock::ENDING)
    }

    /// Takes the lock; `None` when another process has it.
    ///
    /// # Errors
    /// When the file can't be made or locked; nothing is held then.
    pub fn try_acquire(buffer: &Path) -> io::Result<Option<Self>> {
        let file = open_lock_file(buffer, DaemonLock::ENDING)?;
        let whole = whole_file(libc::F_WRLCK);
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole)) {
            Ok(_) => DaemonLock::sign(file).map(Some),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Takes the lock, waiting for as long as another process has it. Blocks the thread.
    ///
    /// # Errors
    /// When the file can't be made or locked; nothing is held then.
    pub fn acquire(buffer: &Path) -> io::Result<Self> {
        let file = open_lock_file(buffer, DaemonLock::ENDING)?;
        let whole = whole_file(libc::F_WRLCK);
        loop {
            match fcntl(&file, FcntlArg::F_OFD_SETLKW(&whole)) {
                Ok(_) => return DaemonLock::sign(file),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Whether some process has the lock, without taking it. A lock file that isn't there is held by nobody.
    ///
    /// # Errors
    /// When the file can't be read or asked about.
    pub fn is_held(buffer: &Path) -> io::Result<bool> {
        let file = match OpenOptions::new().read(true).open(DaemonLock::path(buffer)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let mut asked = whole_file(libc::F_WRLCK);
        fcntl(&file, FcntlArg::F_OFD_GETLK(&mut asked))?;
        Ok(i32::from(asked.l_type) != libc::F_UNLCK)
    }

    /// The process id the holder wrote; `None` when nobody holds the lock or no number is there.
    ///
    /// # Errors
    /// When the file can't be read or asked about.
    pub fn holder(buffer: &Path) -> io::Result<Option<i32>> {
        if !DaemonLock::is_held(buffer)? {
            return Ok(None);
        }
        let mut text = String::new();
        File::open(DaemonLock::path(buffer))?.read_to_string(&mut text)?;
        Ok(text.trim().parse().ok())
    }

    fn sign(mut file: File) -> io::Result<Self> {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())?;
        Ok(DaemonLock { _file: file })
    }
}

fn whole_file(kind: i32) -> libc::flock {
    let short =
        |number: i32| i16::try_from(number).expect("lock types and SEEK_SET are small numbers");
    libc::flock {
        l_type: short(kind),
        l_whence: short(libc::SEEK_SET),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemon_lock_is_for_one_and_asking_does_not_take_it() -> io::Result<()> {
        let directory = tempfile::tempdir()?;
        let buffer = directory.path().join("buffer.redb");
        assert!(!DaemonLock::is_held(&buffer)?);
        let held = DaemonLock::try_acquire(&buffer)?;
        assert!(held.is_some());
        assert!(DaemonLock::is_held(&buffer)? && DaemonLock::is_held(&buffer)?);
        assert_eq!(
            DaemonLock::holder(&buffer)?,
            i32::try_from(std::process::id()).ok()
        );
        assert!(DaemonLock::try_acquire(&buffer)?.is_none());
        drop(held);
        assert!(DaemonLock::try_acquire(&buffer)?.is_some());
        Ok(())
    }
}
