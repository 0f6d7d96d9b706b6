//! `syncd drain`: has the buffer drained now, and shows how it goes.
//!
//! With a daemon running, this wakes it and watches the backlog; without one, it takes the daemon's lock and drains by
//! itself, after salvaging what was set aside, as the daemon does. Either way it ends when the buffer is empty, when
//! time is up, when what waits has nowhere to go, or, without `--wait`, when nothing more gets through.

use std::time::{Duration, Instant};

use holdfast_shared::buffer::{Buffer, DaemonLock, Lane, Reader, Snapshot};
use holdfast_shared::config::{Config, exit};
use indicatif::{ProgressBar, ProgressStyle};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::arguments::DrainArguments;
use super::salvage::{salvage_set_aside, waiting_files};
use super::{output, place};
use crate::engine::Engine;
use crate::lock::Taken;
use crate::signals::Orders;
use crate::{Failure, daemon};

/// How often it looks at the backlog.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// How long nothing may get through before it gives up, unless it is to wait: more than two probes of a store take.
const PATIENCE: Duration = Duration::from_secs(3);

/// How a drain ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    /// Nothing waits any more.
    Empty,
    /// So many still wait.
    Left(u64),
    /// All that still waits is for stores that aren't configured, as this says: waiting can't help.
    Nowhere(String),
}

/// Drains, and exits with 0 when the buffer is empty, with 75 when it is not, or with 78 when it was to wait and that
/// can't help.
///
/// # Errors
/// When the settings have faults, or there is no buffer or it can't be used.
pub async fn drain(arguments: DrainArguments) -> Result<u8, Failure> {
    let config = Config::load()?;
    let reader = place::reader(&config)?.ok_or_else(|| place::no_file(&config.buffer.path))?;
    place::prepare_for_lock()?;
    let mut progress = Progress::new(&arguments, reader.counters()?.pending);
    let (end, why) = loop {
        match place::lock(&config)? {
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
    if end == End::Empty
        && let Some(file) = waiting_files(&config.buffer.path)?.first()
    {
        let file = file.display();
        return Err(Failure::try_later(format!(
            "the buffer is empty, but {file}, which was set aside as damaged, may hold more: run `syncd salvage {file}`"
        )));
    }
    report(end, why, &arguments)
}

/// Wakes the daemon and watches the backlog; `None` when the daemon ends before that does. A daemon that has just
/// found a damaged file is given time to salvage it.
async fn watch_daemon(
    config: &Config,
    reader: &Reader,
    daemon: Option<i32>,
    progress: &mut Progress,
) -> Result<Option<End>, Failure> {
    if let Some(pid) = daemon {
        wake(pid)?;
    }
    let mut empty_since = None;
    loop {
        match progress.look(config, &reader.snapshot()?) {
            Some(End::Empty) if is_salvaging(config, &mut empty_since)? => {}
            Some(end) => return Ok(Some(end)),
            None => empty_since = None,
        }
        let path = &config.buffer.path;
        let is_held = DaemonLock::is_held(path);
        if !is_held.map_err(|error| place::unusable_lock(path, &error))? {
            return Ok(None);
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Whether a file that was set aside still waits for the daemon, which has had little time for it.
fn is_salvaging(config: &Config, empty_since: &mut Option<Instant>) -> Result<bool, Failure> {
    let empty_for = empty_since.get_or_insert_with(Instant::now).elapsed();
    Ok(empty_for < PATIENCE && !waiting_files(&config.buffer.path)?.is_empty())
}

/// A daemon that has just ended, or that belongs to somebody else, is not woken; the backlog shows what it does.
fn wake(pid: i32) -> Result<(), Failure> {
    use nix::errno::Errno;
    if !is_syncd(pid) {
        return Ok(());
    }
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

/// Whether a process is a syncd. The lock file may name one that was killed, until the next holder has signed, and its
/// number be another program's by now, which SIGUSR1 would end.
fn is_syncd(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "syncd")
}

/// Drains in this process.
async fn drain_here(
    config: &Config,
    progress: &mut Progress,
) -> Result<(End, Option<String>), Failure> {
    let buffer = daemon::open_buffer(config).await?;
    salvage_set_aside(config, &buffer).await?;
    progress.begin_anew();
    let (_stop, orders) = Orders::by_hand();
    let mut engine = Engine::start(config, &buffer, &orders.look, None);
    let end = watch_engine(config, &buffer, &mut engine, progress).await;
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
    daemon::close(buffer, daemon::CLOSE_DEADLINE).await;
    Ok((end?, Some(why)))
}

async fn watch_engine(
    config: &Config,
    buffer: &Buffer,
    engine: &mut Engine,
    progress: &mut Progress,
) -> Result<End, Failure> {
    loop {
        let snapshot = buffer.read(Reader::snapshot).await?;
        if let Some(end) = progress.look(config, &snapshot) {
            return Ok(end);
        }
        tokio::select! {
            ended = engine.watch() => ended?,
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
    }
}

/// Why nothing of what waits will ever get through with these settings; `None` when something may. A buffer that
/// belongs to a database, while none is configured, is the daemon's to judge: a shell may lack its settings.
fn dead_end(config: &Config, snapshot: &Snapshot) -> Option<String> {
    let has_store = |lane: &Lane| match lane {
        Lane::Postgres => config.postgres.is_some(),
        Lane::Redis => config.redis.is_some(),
    };
    let (with, without): (Vec<Lane>, Vec<Lane>) = Lane::ALL.into_iter().partition(has_store);
    let waiting = |lanes: &[Lane]| -> u64 {
        let counts = lanes.iter().map(|lane| snapshot.waiting_in(*lane));
        counts.sum()
    };
    let stuck = waiting(&without);
    let is_anothers = config.postgres.is_none() && snapshot.database.is_some();
    if stuck == 0 || waiting(&with) > 0 || is_anothers {
        return None;
    }
    Some(match without.as_slice() {
        [Lane::Postgres] => {
            format!("{stuck} waiting for postgres, which is not configured: set DATABASE_URL")
        }
        [Lane::Redis] => {
            format!("{stuck} waiting for redis, which is not configured: set REDIS_URL")
        }
        _ => format!("{stuck} waiting; embedded, no store is configured"),
    })
}

fn report(end: End, why: Option<String>, arguments: &DrainArguments) -> Result<u8, Failure> {
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
        End::Nowhere(why) => {
            let message = format!("the buffer is not empty: {why}");
            Err(if arguments.wait {
                Failure::config(message)
            } else {
                Failure::try_later(message)
            })
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

    /// Is patient anew: salvaging has taken its time and may have brought items in.
    fn begin_anew(&mut self) {
        self.least = u64::MAX;
        self.moved_at = Instant::now();
    }

    /// Notes how things stand; says when that is the end.
    fn look(&mut self, config: &Config, snapshot: &Snapshot) -> Option<End> {
        let end = self.see(snapshot.counters.pending);
        if end == Some(End::Empty) {
            return end;
        }
        dead_end(config, snapshot).map(End::Nowhere).or(end)
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
    use holdfast_shared::buffer::Counters;
    use uuid::Uuid;

    use super::*;

    fn config(pairs: &[(&str, &str)]) -> Config {
        let pairs = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::from_pairs(pairs).expect("valid settings")
    }

    /// A buffer with so many items in the lanes of PostgreSQL and Redis.
    fn snapshot(postgres: u64, redis: u64) -> Snapshot {
        Snapshot {
            waiting: [[0, 0, postgres, 0, 0], [redis, 0, 0, 0, 0]],
            counters: Counters {
                pending: postgres + redis,
                ..Counters::default()
            },
            ..Snapshot::default()
        }
    }

    #[test]
    fn what_no_configured_store_takes_is_not_waited_for() {
        let (embedded, postgres) = (config(&[]), config(&[("DB_HOST", "db")]));
        let why = dead_end(&embedded, &snapshot(2, 1)).expect("an end");
        assert_eq!(why, "3 waiting; embedded, no store is configured");
        assert_eq!(dead_end(&embedded, &snapshot(0, 0)), None);
        assert_eq!(dead_end(&postgres, &snapshot(2, 0)), None);
        assert_eq!(dead_end(&postgres, &snapshot(2, 1)), None);
        let why = dead_end(&postgres, &snapshot(0, 1)).expect("an end");
        assert!(why.contains("set REDIS_URL"), "{why}");
        let of_a_database = Snapshot {
            database: Some(Uuid::nil()),
            ..snapshot(2, 0)
        };
        assert_eq!(dead_end(&embedded, &of_a_database), None);
    }

    #[test]
    fn a_dead_end_is_the_settings_fault_for_those_who_would_wait() {
        let code = |wait| {
            let arguments = DrainArguments {
                wait,
                timeout: None,
            };
            let end = End::Nowhere("3 waiting".to_owned());
            report(end, None, &arguments).map_err(|failure| failure.code)
        };
        assert_eq!(code(true), Err(exit::CONFIG));
        assert_eq!(code(false), Err(exit::TRY_LATER));
    }

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
