//! `syncd drain`: has the buffer drained now, and shows how it goes.
//!
//! With a daemon running, this wakes it and watches the backlog; without one, it takes the daemon's lock and drains by
//! itself. Either way it ends when the buffer is empty, when time is up, or, without `--wait`, when nothing more gets
//! through.

use std::time::{Duration, Instant};

use holdfast_shared::buffer::{Buffer, DaemonLock, Reader};
use holdfast_shared::config::{Config, exit};
use indicatif::{ProgressBar, ProgressStyle};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::arguments::DrainArguments;
use super::{output, place};
use crate::engine::Engine;
use crate::lock::{self, Taken};
use crate::signals::Orders;
use crate::{Failure, daemon};

/// How often it looks at the backlog.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// How long nothing may get through before it gives up, unless it is to wait: more than two probes of a store take.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long closing the buffer may take.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Nothing waits any more.
    Empty,
    /// So many still wait.
    Left(u64),
}

/// Drains, and exits with 0 when the buffer is empty, with 75 when it is not.
///
/// # Errors
/// When the settings have faults, or the buffer can't be used.
pub async fn drain(arguments: DrainArguments) -> Result<u8, Failure> {
    let config = Config::load()?;
    let Some(reader) = place::reader(&config)? else {
        return report(End::Empty, None);
    };
    let mut progress = Progress::new(&arguments, waiting(&reader)?);
    let (end, why) = loop {
        match take_lock(&config)? {
            Taken::Lock(lock) => {
                let ended = drain_here(&config, &mut progress).await?;
                drop(lock);
                break ended;
            }
            Taken::Held { by } => {
                if let Some(end) = watch_daemon(&config, &reader, by, &mut progress).await? {
                    break (end, None);
                }
            }
        }
    };
    progress.bar.finish_and_clear();
    report(end, why)
}

fn take_lock(config: &Config) -> Result<Taken, Failure> {
    lock::take(&config.buffer.path).map_err(|error| {
        let file = DaemonLock::path(&config.buffer.path);
        Failure::io(format!(
            "can't use the lock file {}: {error}",
            file.display()
        ))
    })
}

/// Wakes the daemon and watches the backlog; `None` when the daemon ends before that does.
async fn watch_daemon(
    config: &Config,
    reader: &Reader,
    daemon: Option<i32>,
    progress: &mut Progress,
) -> Result<Option<End>, Failure> {
    if let Some(pid) = daemon {
        wake(pid)?;
    }
    loop {
        if let Some(end) = progress.see(waiting(reader)?) {
            return Ok(Some(end));
        }
        if !DaemonLock::is_held(&config.buffer.path).map_err(Failure::io)? {
            return Ok(None);
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// A daemon that has just ended, or that belongs to somebody else, is not woken; the backlog shows what it does.
fn wake(pid: i32) -> Result<(), Failure> {
    use nix::errno::Errno;
    match kill(Pid::from_raw(pid), Signal::SIGUSR1) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(Errno::EPERM) => {
            output::complain("syncd: can't wake the daemon, which is another user's; watching it");
            Ok(())
        }
        Err(errno) => Err(Failure::internal(format!(
            "can't wake the daemon (pid {pid}): {errno}"
        ))),
    }
}

/// Drains in this process.
async fn drain_here(
    config: &Config,
    progress: &mut Progress,
) -> Result<(End, Option<String>), Failure> {
    let buffer = daemon::open_buffer(config).await?;
    let (_stop, orders) = Orders::by_hand();
    let mut engine = Engine::start(config, &buffer, &orders.look, None);
    let end = watch_engine(&buffer, &mut engine, progress).await;
    let why = engine.board().report().status_line();
    let deadline = config.shutdown_timeout;
    if tokio::time::timeout(deadline, engine.finish())
        .await
        .is_err()
    {
        output::complain(
            "syncd: the last batch was not finished in time; it will be applied again",
        );
    }
    drop(engine);
    daemon::close(buffer, CLOSE_DEADLINE).await;
    Ok((end?, Some(why)))
}

async fn watch_engine(
    buffer: &Buffer,
    engine: &mut Engine,
    progress: &mut Progress,
) -> Result<End, Failure> {
    loop {
        let counters = buffer.read(Reader::counters).await?;
        if let Some(end) = progress.see(counters.pending) {
            return Ok(end);
        }
        tokio::select! {
            ended = engine.watch() => ended?,
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
    }
}

fn waiting(reader: &Reader) -> Result<u64, Failure> {
    Ok(reader.counters()?.pending)
}

fn report(end: End, why: Option<String>) -> Result<u8, Failure> {
    match end {
        End::Empty => {
            output::print("the buffer is empty\n")?;
            Ok(exit::OK)
        }
        End::Left(items) => {
            let why = why.unwrap_or_else(|| format!("{items} items wait; see `syncd status`"));
            Err(Failure::try_later(format!(
                "the buffer is not empty: {why}"
            )))
        }
    }
}

/// How far a drain has come, and when to give up.
struct Progress {
    bar: ProgressBar,
    most: u64,
    least: u64,
    moved_at: Instant,
    gives_up_after: Option<Duration>,
    ends_at: Option<Instant>,
}

impl Progress {
    fn new(arguments: &DrainArguments, waiting: u64) -> Self {
        let now = Instant::now();
        let template = "{bar:40} {pos}/{len} items, {per_sec}, {eta} left";
        let style =
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        // On standard error, and only where that is a terminal.
        let bar = ProgressBar::new(waiting).with_style(style);
        Progress {
            bar,
            most: waiting,
            least: waiting,
            moved_at: now,
            gives_up_after: (!arguments.wait).then_some(PATIENCE),
            ends_at: arguments
                .timeout
                .map(|seconds| now + Duration::from_secs(seconds.into())),
        }
    }

    /// Notes how many items wait now; says when that is the end.
    fn see(&mut self, waiting: u64) -> Option<End> {
        let now = Instant::now();
        self.most = self.most.max(waiting);
        self.bar.set_length(self.most);
        self.bar.set_position(self.most - waiting);
        if waiting == 0 {
            return Some(End::Empty);
        }
        if waiting < self.least {
            self.least = waiting;
            self.moved_at = now;
        }
        let stuck = self
            .gives_up_after
            .is_some_and(|patience| now.duration_since(self.moved_at) >= patience);
        let late = self.ends_at.is_some_and(|ends_at| now >= ends_at);
        (stuck || late).then_some(End::Left(waiting))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(wait: bool, timeout: Option<u32>) -> Progress {
        Progress::new(&DrainArguments { wait, timeout }, 10)
    }

    #[test]
    fn an_empty_buffer_is_the_end_and_time_may_be_up() {
        assert_eq!(progress(true, None).see(0), Some(End::Empty));
        assert_eq!(progress(true, None).see(5), None);
        assert_eq!(progress(true, Some(0)).see(5), Some(End::Left(5)));
    }

    #[test]
    fn without_wait_it_gives_up_once_nothing_gets_through() {
        let mut impatient = progress(false, None);
        assert_eq!(impatient.see(9), None);
        impatient.moved_at = Instant::now()
            .checked_sub(PATIENCE)
            .expect("the clock runs longer than that");
        assert_eq!(impatient.see(9), Some(End::Left(9)));
        assert_eq!(impatient.see(8), None, "it moved again");
    }
}
