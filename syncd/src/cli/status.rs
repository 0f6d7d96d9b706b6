//! `syncd status`: how things stand, as seen from here, whether a daemon runs or not.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{ErrorKind, IsTerminal};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use comfy_table::Cell;
use holdfast_shared::buffer::{BufferError, DaemonLock, Lane, Reader, Snapshot};
use holdfast_shared::config::{Config, exit};
use holdfast_shared::domain::Timestamp;
use holdfast_shared::health::{Probe, Probed};
use holdfast_shared::store::StoreError;
use holdfast_shared::store::postgres::{Postgres, Timeouts};
use holdfast_shared::store::redis::Redis;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::arguments::StatusArguments;
use super::output::{self, Form, printable};
use super::place;
use crate::Failure;
use crate::drain::eta;
use crate::status::{BufferState, LaneState, Sources, Status, StoreState, or_unknown};

/// How long a store is given to answer.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);

/// Over how long the rate is measured: the figures of two looks at the buffer so far apart.
const RATE_INTERVAL: Duration = Duration::from_millis(500);

/// How often `--watch` looks.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Up to so many waiting items are told apart by entity; of more, tasks and profiles are one figure.
const MOST_TOLD_APART: usize = 20_000;

/// How long the daemon is given to say how it is.
const DAEMON_DEADLINE: Duration = Duration::from_millis(500);

/// More than any status line takes.
const MOST_ANSWER_BYTES: u64 = 16 * 1024;

/// Puts the cursor home and clears the terminal (ECMA-48).
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";

/// Shows the status, once or again and again.
///
/// # Errors
/// When the settings have faults or the output can't be written. A buffer or a store that can't be used is part of the
/// status; with a buffer this user may not read, the exit code is 74.
pub async fn status(arguments: StatusArguments) -> Result<u8, Failure> {
    let config = Config::load()?;
    let (form, mut looker) = (Form::from(arguments.json), Looker::new(&config));
    loop {
        let began = Instant::now();
        let look = looker.look().await;
        let text = match (form, arguments.watch) {
            (Form::Json, false) => output::json(&look.status)?,
            (Form::Json, true) => {
                serde_json::to_string(&look.status).map_err(Failure::internal)? + "\n"
            }
            (Form::Text, false) => describe(&look),
            (Form::Text, true) if std::io::stdout().is_terminal() => {
                format!("{CLEAR}{}", describe(&look))
            }
            (Form::Text, true) => describe(&look) + "\n",
        };
        if !arguments.watch && look.is_forbidden {
            output::print(&text)?;
            return Ok(exit::IO);
        }
        if output::print(&text)? == output::Reader::Gone || !arguments.watch {
            return Ok(exit::OK);
        }
        tokio::time::sleep(WATCH_INTERVAL.saturating_sub(began.elapsed())).await;
    }
}

/// Items waiting by entity and priority.
type ByEntity = BTreeMap<&'static str, [u64; 5]>;

/// One look.
struct Look {
    status: Status,
    /// `None` when too many wait to be told apart.
    by_entity: Option<ByEntity>,
    buffer_error: Option<String>,
    /// Whether this user may not read the buffer.
    is_forbidden: bool,
    /// The buffer's file, and whether it is there.
    file: String,
    /// What the daemon says of itself.
    daemon: Option<String>,
}

/// Looks at everything, again and again over the same connections.
struct Looker<'c> {
    config: &'c Config,
    postgres: Option<Postgres>,
    redis: Option<Redis>,
    last: Option<(Instant, Snapshot)>,
}

impl<'c> Looker<'c> {
    fn new(config: &'c Config) -> Self {
        let connect = |postgres| Postgres::new(postgres, Timeouts::direct(PROBE_DEADLINE));
        Looker {
            config,
            postgres: config.postgres.as_ref().map(connect),
            redis: config
                .redis
                .as_ref()
                .map(|redis| Redis::new(redis, PROBE_DEADLINE)),
            last: None,
        }
    }

    async fn look(&mut self) -> Look {
        let (postgres, redis) =
            tokio::join!(probe(self.postgres.as_ref()), probe(self.redis.as_ref()));
        let seen = self.look_at_buffer().await;
        let snapshot = seen.as_ref().map(|(snapshot, _)| snapshot);
        let per_second = self.measure(snapshot.ok());
        let time_left = |lane: Lane| {
            let waiting = snapshot.ok()?.waiting_in(lane);
            eta(waiting, per_second[lane as usize])
        };
        let status = Status::new(&Sources {
            postgres,
            redis,
            buffer: snapshot.map_err(Clone::clone),
            max_items: self.config.buffer.max_items,
            running: DaemonLock::is_held(&self.config.buffer.path).ok(),
            per_second,
            eta: Lane::ALL.map(time_left),
            now: now(),
        });
        let daemon = if status.syncd.running == Some(true) {
            ask_daemon(self.config).await
        } else {
            None
        };
        let path = &self.config.buffer.path;
        let (by_entity, buffer_error) = match seen {
            Ok((_, by_entity)) => (by_entity, None),
            Err(error) => (None, Some(error)),
        };
        Look {
            status,
            by_entity,
            is_forbidden: buffer_error.is_some() && is_forbidden(path),
            buffer_error,
            file: place_of(path),
            daemon,
        }
    }

    /// Looks at the buffer; at first twice when something waits, to see how fast it gets less.
    async fn look_at_buffer(&mut self) -> Result<(Snapshot, Option<ByEntity>), String> {
        let reader = place::reader(self.config).map_err(|failure| failure.to_string())?;
        let Some(reader) = reader else {
            return Ok((Snapshot::default(), Some(ByEntity::new())));
        };
        if self.last.is_none() {
            let snapshot = reader.snapshot().map_err(|error| error.to_string())?;
            if snapshot.counters.pending > 0 {
                self.last = Some((Instant::now(), snapshot));
                tokio::time::sleep(RATE_INTERVAL).await;
            }
        }
        read(&reader).map_err(|error| error.to_string())
    }

    /// How fast each lane got less since the last look.
    fn measure(&mut self, snapshot: Option<&Snapshot>) -> [f64; 2] {
        let now = Instant::now();
        let before = std::mem::replace(
            &mut self.last,
            snapshot.map(|snapshot| (now, snapshot.clone())),
        );
        let (Some((at, before)), Some(snapshot)) = (before, snapshot) else {
            return [0.0; 2];
        };
        let seconds = now.duration_since(at).as_secs_f64().max(0.001);
        Lane::ALL.map(|lane| decline(&before, snapshot, lane) / seconds)
    }
}

/// A path, with the note that nothing is there where that is so.
fn place_of(path: &Path) -> String {
    let note = match place::is_there(path) {
        Ok(false) => " (not there)",
        Ok(true) | Err(_) => "",
    };
    format!("{}{note}", path.display())
}

/// Whether the system keeps this user from reading a file, or from writing it: one that wasn't closed wants a repair
/// before it can be read.
fn is_forbidden(path: &Path) -> bool {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn decline(before: &Snapshot, now: &Snapshot, lane: Lane) -> f64 {
    before.waiting_in(lane).saturating_sub(now.waiting_in(lane)) as f64
}

/// What the running daemon says of itself on `SYNCD_ADDR`; `None` when it doesn't answer there, or has no address.
async fn ask_daemon(config: &Config) -> Option<String> {
    let mut address = config.syncd_addr?;
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            Ipv4Addr::LOCALHOST.into()
        } else {
            Ipv6Addr::LOCALHOST.into()
        });
    }
    timeout(DAEMON_DEADLINE, ask(address)).await.ok()?.ok()
}

async fn ask(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream
        .write_all(format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes())
        .await?;
    let mut answer = String::new();
    stream
        .take(MOST_ANSWER_BYTES)
        .read_to_string(&mut answer)
        .await?;
    let body = answer
        .split_once("\r\n\r\n")
        .map(|(_, body)| body.trim().to_owned());
    body.ok_or_else(|| std::io::ErrorKind::InvalidData.into())
}

async fn probe<P: Probe>(store: Option<&P>) -> StoreState {
    let Some(store) = store else {
        return StoreState::disabled();
    };
    let answer: Result<Result<Probed, StoreError>, _> =
        timeout(PROBE_DEADLINE, store.probe()).await;
    match answer {
        Ok(Ok(probed)) => StoreState::up(probed.latency, now()),
        Ok(Err(error)) => StoreState::down(error.to_string(), now()),
        Err(_) => StoreState::down("it did not answer in time".to_owned(), now()),
    }
}

fn read(reader: &Reader) -> Result<(Snapshot, Option<ByEntity>), BufferError> {
    let snapshot = reader.snapshot()?;
    if snapshot.counters.pending > MOST_TOLD_APART as u64 {
        return Ok((snapshot, None));
    }
    let mut by_entity = ByEntity::new();
    for lane in Lane::ALL {
        for queued in reader.list_items(lane, MOST_TOLD_APART)? {
            let counts = by_entity
                .entry(queued.item.operation.entity().as_str())
                .or_default();
            counts[usize::from(queued.place.priority().number()) - 1] += 1;
        }
    }
    Ok((snapshot, Some(by_entity)))
}

fn now() -> Timestamp {
    chrono::Utc::now().into()
}

/// The status for people.
fn describe(look: &Look) -> String {
    let status = &look.status;
    let mut text = format!("{}\n\n", status.status.replace('_', " "));
    let mut stores = output::table(&["store", "state", "latency", "error"]);
    for (name, store) in [
        ("postgres", &status.stores.postgres),
        ("redis", &status.stores.redis),
    ] {
        let latency = store
            .latency_ms
            .map(|latency| format!("{latency:.1} ms"))
            .unwrap_or_default();
        let error = store.error.clone().unwrap_or_default();
        stores.add_row([
            Cell::new(name),
            Cell::new(store.state),
            output::number(latency),
            Cell::new(error),
        ]);
    }
    text += &output::rendered(&stores);
    text += "\n";
    text += &backlog(look);
    text += "\n";
    text += &facts(look);
    text
}

fn backlog(look: &Look) -> String {
    let mut table = output::table(&[
        "waiting",
        "1",
        "2",
        "3",
        "4",
        "5",
        "all",
        "per second",
        "time left",
    ]);
    let lanes = &look.status.lanes;
    match &look.by_entity {
        Some(by_entity) => {
            for (entity, counts) in by_entity {
                let numbers = counts
                    .iter()
                    .copied()
                    .chain([counts.iter().sum()])
                    .map(output::number);
                table.add_row(std::iter::once(Cell::new(entity)).chain(numbers));
            }
            table.add_row(lane_row("postgres lane", &lanes.postgres));
            table.add_row(lane_row("redis lane", &lanes.redis));
        }
        None => {
            table.add_row(lane_row(
                "tasks and profiles (postgres lane)",
                &lanes.postgres,
            ));
            table.add_row(lane_row("sessions (redis lane)", &lanes.redis));
        }
    }
    output::rendered(&table)
}

fn lane_row(name: &str, lane: &LaneState) -> Vec<Cell> {
    let left = lane
        .eta_seconds
        .map_or_else(|| "unknown".to_owned(), output::duration);
    let mut row = vec![Cell::new(name)];
    row.extend(lane.numbers().map(or_unknown).map(output::number));
    row.extend([
        output::number(format!("{:.0}", lane.items_per_second)),
        output::number(left),
    ]);
    row
}

fn facts(look: &Look) -> String {
    let (buffer, syncd) = (&look.status.buffer, look.status.syncd);
    let mut text = format!("buffer file   {}\n", printable(&look.file));
    text += &match &look.buffer_error {
        Some(error) => format!("buffer        {}: {error}\n", buffer.state),
        None => fill(buffer),
    };
    text += &format!(
        "dead letters  {}{}\n",
        or_unknown(buffer.dead),
        if buffer.dead > Some(0) {
            " (syncd dead list)"
        } else {
            ""
        }
    );
    let (items, files) = (buffer.damaged_items, buffer.damaged_files);
    if items > Some(0) || files > Some(0) {
        text += &format!(
            "damage        {} items (syncd dead list), {} files beside the buffer\n",
            or_unknown(items),
            or_unknown(files)
        );
    }
    let running = match syncd.running {
        Some(true) => "running",
        Some(false) => "not running",
        None => "unknown",
    };
    let says = look
        .daemon
        .as_ref()
        .map(|says| format!(", {}", printable(says)))
        .unwrap_or_default();
    text += &format!("syncd         {running}{says}\n");
    text
}

/// What is in the buffer, of one that could be read.
fn fill(buffer: &BufferState) -> String {
    let (pending, bytes) = (buffer.pending.unwrap_or_default(), buffer.bytes);
    #[expect(clippy::cast_precision_loss, reason = "an age for people")]
    let oldest = output::duration(buffer.oldest_age_seconds.unwrap_or_default() as f64);
    format!(
        "buffer        {}, {pending} of at most {} items, oldest {oldest}, {}\n",
        buffer.state,
        buffer.max_items,
        output::bytes(bytes.unwrap_or_default())
    )
}
