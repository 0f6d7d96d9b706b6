//! The daemon's lock on its buffer: one syncd drains at a time.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, Instant};

use holdfast_shared::buffer::DaemonLock;
use tokio::sync::watch;

use crate::signals::told_to_stop;
use crate::systemd::Pulse;

/// How often a standby asks for the lock. Waiting for it in the kernel would hold a thread that no order to stop can
/// free.
const STANDBY_INTERVAL: Duration = Duration::from_millis(250);

/// How asking for the lock went.
#[derive(Debug)]
pub enum Taken {
    /// It is ours until it is dropped.
    Lock(DaemonLock),
    /// Another process has it.
    Held {
        /// Its id, if it left one.
        by: Option<i32>,
    },
}

/// Asks for the lock. Makes the buffer's directory (0700) where there is none, since the lock lies in it.
///
/// # Errors
/// When the lock file can't be made or locked.
pub fn take(buffer: &Path) -> io::Result<Taken> {
    make_directory(buffer)?;
    match DaemonLock::try_acquire(buffer)? {
        Some(lock) => Ok(Taken::Lock(lock)),
        None => Ok(Taken::Held {
            by: DaemonLock::holder(buffer)?,
        }),
    }
}

/// Waits for the lock, telling the service manager so; `None` when told to stop before.
///
/// # Errors
/// As [`take`].
pub async fn wait(
    buffer: &Path,
    mut stop: watch::Receiver<bool>,
) -> io::Result<Option<DaemonLock>> {
    let mut pulse = Pulse::from_environment();
    loop {
        if let Taken::Lock(lock) = take(buffer)? {
            return Ok(Some(lock));
        }
        pulse.beat(Instant::now(), "standby: another syncd drains this buffer");
        tokio::select! {
            () = tokio::time::sleep(STANDBY_INTERVAL) => {}
            () = told_to_stop(&mut stop) => return Ok(None),
        }
    }
}

fn make_directory(buffer: &Path) -> io::Result<()> {
    match buffer.parent() {
        Some(parent) if !parent.as_os_str().is_empty() && !parent.exists() => {
            DirBuilder::new().recursive(true).mode(0o700).create(parent)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_standby_gets_the_lock_once_it_is_free_and_gives_up_when_told() -> io::Result<()> {
        let directory = tempfile::tempdir()?;
        let buffer = directory.path().join("data/buffer.redb");
        let Taken::Lock(lock) = take(&buffer)? else {
            panic!("nobody else has it")
        };
        assert!(matches!(take(&buffer)?, Taken::Held { by: Some(_) }));

        let (give_stop, stop) = watch::channel(true);
        assert!(wait(&buffer, stop).await?.is_none());
        give_stop.send_replace(false);
        let standby = wait(&buffer, give_stop.subscribe());
        drop(lock);
        assert!(standby.await?.is_some());
        Ok(())
    }
}
