//! How things stand, in the shape of the API's `/health` plus the lanes: for `syncd status` and the status page.

use std::time::Duration;

use holdfast_shared::buffer::{Lane, Snapshot};
use holdfast_shared::domain::Timestamp;
use holdfast_shared::health::StoreStatus;
use serde::Serialize;

use crate::drain::time::since;

/// The whole picture.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// `online`, `offline`, `catching_up` or `embedded`.
    pub status: &'static str,
    /// The stores.
    pub stores: Stores,
    /// The buffer.
    pub buffer: BufferState,
    /// The daemon.
    pub syncd: Running,
    /// This program's version.
    pub version: &'static str,
    /// The lanes.
    pub lanes: Lanes,
}

/// The stores.
#[derive(Debug, Clone, Serialize)]
pub struct Stores {
    /// PostgreSQL.
    pub postgres: StoreState,
    /// Redis.
    pub redis: StoreState,
}

/// One store.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StoreState {
    /// `up`, `down` or `disabled`.
    pub state: &'static str,
    /// Since when.
    pub since: Option<String>,
    /// How long the last look took.
    pub latency_ms: Option<f64>,
    /// Why it is down, in our own words.
    pub error: Option<String>,
}

/// The buffer. What is in it is `None`, null, while it can't be read: nobody knows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BufferState {
    /// `ok`, `full` or `unavailable`.
    pub state: &'static str,
    /// Items waiting.
    pub pending: Option<u64>,
    /// Dead letters.
    pub dead: Option<u64>,
    /// Age of the oldest item waiting.
    pub oldest_age_seconds: Option<u64>,
    /// Size of the file.
    pub bytes: Option<u64>,
    /// Most items that may wait.
    pub max_items: u64,
    /// Items set aside as damaged.
    pub damaged_items: Option<u64>,
    /// Damaged files beside the buffer, salvaged or not.
    pub damaged_files: Option<u64>,
}

/// Whether a daemon runs.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Running {
    /// It does; null when this user may not know.
    pub running: Option<bool>,
}

/// The lanes.
#[derive(Debug, Clone, Serialize)]
pub struct Lanes {
    /// Tasks and profiles.
    pub postgres: LaneState,
    /// Revocations of sessions.
    pub redis: LaneState,
}

/// One lane.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LaneState {
    /// Items waiting; null while the buffer can't be read.
    pub pending: Option<u64>,
    /// The same by priority.
    pub by_priority: Option<ByPriority>,
    /// How fast they get fewer.
    pub items_per_second: f64,
    /// How long the rest will take; null when there is no telling.
    pub eta_seconds: Option<f64>,
}

/// Items waiting by priority, the most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ByPriority {
    /// Of priority 1.
    #[serde(rename = "1")]
    pub one: u64,
    /// Of priority 2.
    #[serde(rename = "2")]
    pub two: u64,
    /// Of priority 3.
    #[serde(rename = "3")]
    pub three: u64,
    /// Of priority 4.
    #[serde(rename = "4")]
    pub four: u64,
    /// Of priority 5.
    #[serde(rename = "5")]
    pub five: u64,
}

impl From<[u64; 5]> for ByPriority {
    fn from([one, two, three, four, five]: [u64; 5]) -> Self {
        ByPriority {
            one,
            two,
            three,
            four,
            five,
        }
    }
}

/// What the picture is made of.
pub struct Sources<'s> {
    /// PostgreSQL.
    pub postgres: StoreState,
    /// Redis.
    pub redis: StoreState,
    /// The buffer; an error's text when it can't be read.
    pub buffer: Result<&'s Snapshot, String>,
    /// Most items that may wait.
    pub max_items: u64,
    /// Whether a daemon holds the buffer's lock; `None` when that can't be told.
    pub running: Option<bool>,
    /// How fast each lane drains.
    pub per_second: [f64; 2],
    /// How long each lane will take.
    pub eta: [Option<Duration>; 2],
    /// The time.
    pub now: Timestamp,
}

impl Status {
    /// Puts the picture together.
    pub fn new(sources: &Sources<'_>) -> Self {
        let buffer = buffer_state(sources);
        Status {
            status: mode(
                &sources.postgres,
                &sources.redis,
                buffer.pending.unwrap_or_default(),
            ),
            stores: Stores {
                postgres: sources.postgres.clone(),
                redis: sources.redis.clone(),
            },
            buffer,
            syncd: Running {
                running: sources.running,
            },
            version: env!("CARGO_PKG_VERSION"),
            lanes: Lanes {
                postgres: lane_state(sources, Lane::Postgres),
                redis: lane_state(sources, Lane::Redis),
            },
        }
    }
}

impl StoreState {
    /// Of a store that isn't configured.
    pub fn disabled() -> Self {
        StoreState {
            state: "disabled",
            since: None,
            latency_ms: None,
            error: None,
        }
    }

    /// Of a store that is up, as a look has just shown.
    pub fn up(latency: Duration, since: Timestamp) -> Self {
        StoreState {
            state: "up",
            since: Some(since.to_string()),
            latency_ms: Some(milliseconds(latency)),
            error: None,
        }
    }

    /// Of a store that is down.
    pub fn down(error: String, since: Timestamp) -> Self {
        StoreState {
            state: "down",
            since: Some(since.to_string()),
            latency_ms: None,
            error: Some(error),
        }
    }

    /// Of a store that is being watched.
    pub fn watched(status: &StoreStatus, is_up: bool) -> Self {
        StoreState {
            state: if is_up { "up" } else { "down" },
            since: Some(status.since.to_string()),
            latency_ms: status.latency.map(milliseconds),
            error: status.error.clone(),
        }
    }
}

impl LaneState {
    /// Items waiting of each priority, the most urgent first, and of all.
    pub fn numbers(&self) -> [Option<u64>; 6] {
        let by = self.by_priority;
        [
            by.map(|by| by.one),
            by.map(|by| by.two),
            by.map(|by| by.three),
            by.map(|by| by.four),
            by.map(|by| by.five),
            self.pending,
        ]
    }
}

/// A figure for people.
pub fn or_unknown(number: Option<u64>) -> String {
    number.map_or_else(|| "unknown".to_owned(), |number| number.to_string())
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

fn mode(postgres: &StoreState, redis: &StoreState, pending: u64) -> &'static str {
    if postgres.state == "disabled" {
        "embedded"
    } else if postgres.state == "down" || redis.state == "down" {
        "offline"
    } else if pending > 0 {
        "catching_up"
    } else {
        "online"
    }
}

fn buffer_state(sources: &Sources<'_>) -> BufferState {
    let max_items = sources.max_items;
    let Ok(snapshot) = sources.buffer.as_ref() else {
        return BufferState {
            state: "unavailable",
            pending: None,
            dead: None,
            oldest_age_seconds: None,
            bytes: None,
            max_items,
            damaged_items: None,
            damaged_files: None,
        };
    };
    let pending = snapshot.counters.pending;
    let oldest_age = snapshot
        .oldest_accepted_at
        .map(|then| since(then, sources.now))
        .unwrap_or_default();
    BufferState {
        state: if snapshot.disk_full || pending >= max_items {
            "full"
        } else {
            "ok"
        },
        pending: Some(pending),
        dead: Some(snapshot.counters.dead),
        oldest_age_seconds: Some(oldest_age.as_secs()),
        bytes: Some(snapshot.size_bytes),
        max_items,
        damaged_items: Some(snapshot.set_aside),
        damaged_files: Some(snapshot.damaged_files),
    }
}

fn lane_state(sources: &Sources<'_>, lane: Lane) -> LaneState {
    let snapshot = sources.buffer.as_ref().ok();
    let waiting = snapshot.map(|snapshot| snapshot.waiting[lane as usize]);
    LaneState {
        pending: waiting.map(|waiting| waiting.iter().sum()),
        by_priority: waiting.map(ByPriority::from),
        items_per_second: (sources.per_second[lane as usize] * 10.0).round() / 10.0,
        eta_seconds: sources.eta[lane as usize]
            .map(|eta| (eta.as_secs_f64() * 10.0).round() / 10.0),
    }
}

#[cfg(test)]
mod tests {
    use holdfast_shared::buffer::Counters;

    use super::*;

    fn snapshot(pending: u64) -> Snapshot {
        Snapshot {
            waiting: [[0, 0, pending, 0, 0], [0; 5]],
            oldest_accepted_at: Some(Timestamp::from_micros(1_000_000)),
            size_bytes: 4096,
            counters: Counters {
                pending,
                dead: 2,
                ..Counters::default()
            },
            ..Snapshot::default()
        }
    }

    fn status(postgres: StoreState, snapshot: Result<&Snapshot, String>) -> Status {
        Status::new(&Sources {
            postgres,
            redis: StoreState::disabled(),
            buffer: snapshot,
            max_items: 10,
            running: Some(true),
            per_second: [2.0, 0.0],
            eta: [Some(Duration::from_millis(2_500)), None],
            now: Timestamp::from_micros(61_000_000),
        })
    }

    fn up() -> StoreState {
        StoreState::up(Duration::from_micros(1_234), Timestamp::from_micros(0))
    }

    #[test]
    fn the_word_for_how_things_stand_follows_stores_and_backlog() {
        let (empty, some) = (snapshot(0), snapshot(3));
        let down = StoreState::down(
            "postgres can't be reached".to_owned(),
            Timestamp::from_micros(0),
        );
        assert_eq!(status(up(), Ok(&empty)).status, "online");
        assert_eq!(status(up(), Ok(&some)).status, "catching_up");
        assert_eq!(status(down, Ok(&some)).status, "offline");
        assert_eq!(status(StoreState::disabled(), Ok(&some)).status, "embedded");
    }

    #[test]
    fn the_buffer_is_full_at_its_cap_and_unavailable_when_unreadable() {
        assert_eq!(status(up(), Ok(&snapshot(9))).buffer.state, "ok");
        assert_eq!(status(up(), Ok(&snapshot(10))).buffer.state, "full");
        assert_eq!(
            status(up(), Err("gone".to_owned())).buffer.state,
            "unavailable"
        );
    }

    #[test]
    fn what_cannot_be_read_is_null_and_no_figure() -> serde_json::Result<()> {
        let json = serde_json::to_value(status(up(), Err("gone".to_owned())))?;
        assert!(json["buffer"]["pending"].is_null());
        assert!(json["buffer"]["bytes"].is_null());
        assert!(json["lanes"]["postgres"]["pending"].is_null());
        assert!(json["lanes"]["postgres"]["by_priority"].is_null());
        assert_eq!(json["buffer"]["max_items"], 10);
        Ok(())
    }

    #[test]
    fn the_json_has_the_shape_of_health_plus_lanes() -> serde_json::Result<()> {
        let json = serde_json::to_value(status(up(), Ok(&snapshot(5))))?;
        assert_eq!(json["stores"]["postgres"]["latency_ms"], 1.234);
        assert_eq!(json["stores"]["redis"]["state"], "disabled");
        assert_eq!(json["buffer"]["oldest_age_seconds"], 60);
        assert_eq!(json["buffer"]["dead"], 2);
        assert_eq!(json["syncd"]["running"], true);
        assert_eq!(json["lanes"]["postgres"]["by_priority"]["3"], 5);
        assert_eq!(json["lanes"]["postgres"]["eta_seconds"], 2.5);
        assert!(json["lanes"]["redis"]["eta_seconds"].is_null());
        Ok(())
    }
}
