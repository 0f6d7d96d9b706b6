//! How things stand, for `/health` and `/readyz`.

use crate::buffer::{BufferError, DaemonLock, Reader, Snapshot};
use crate::health::{StoreHealth, StoreState};

use super::answer::{BufferReport, HealthReport, Mode, StoreReport};
use super::core::{Lane, Repository};
use super::follower::oldest_age;

impl Repository {
    /// How things stand.
    pub async fn health(&self) -> HealthReport {
        let snapshot = self.0.read(Reader::snapshot).await;
        let buffer = self.buffer_report(&snapshot);
        let path = self.0.buffer.path().to_owned();
        let held = tokio::task::spawn_blocking(move || DaemonLock::is_held(&path)).await;
        HealthReport {
            status: self.mode(buffer.pending),
            ready: self.0.postgres_up().is_some() || buffer.state != BufferReport::UNAVAILABLE,
            postgres: store_report(self.0.postgres.as_ref()),
            redis: store_report(self.0.redis.as_ref()),
            buffer,
            syncd_running: matches!(held, Ok(Ok(true))),
        }
    }

    fn mode(&self, pending: u64) -> Mode {
        let usable = |health: Option<&StoreHealth>| health.is_none_or(StoreHealth::is_up);
        let postgres = self.0.postgres.as_ref().map(|lane| &lane.health);
        let redis = self.0.redis.as_ref().map(|lane| &lane.health);
        match (postgres, usable(postgres) && usable(redis), pending) {
            (None, ..) => Mode::Embedded,
            (Some(_), false, _) => Mode::Offline,
            (Some(_), true, 0) => Mode::Online,
            (Some(_), true, _) => Mode::CatchingUp,
        }
    }

    fn buffer_report(&self, snapshot: &Result<Snapshot, BufferError>) -> BufferReport {
        let max_items = self.0.buffer.max_items();
        match snapshot {
            Ok(snapshot) => BufferReport {
                state: if snapshot.disk_full || snapshot.counters.pending >= max_items {
                    BufferReport::FULL
                } else {
                    BufferReport::OK
                },
                pending: snapshot.counters.pending,
                dead: snapshot.counters.dead,
                oldest_age: oldest_age(snapshot, self.now()),
                bytes: snapshot.size_bytes,
                max_items,
                damaged_items: snapshot.set_aside,
                damaged_files: snapshot.damaged_files,
            },
            Err(_) => BufferReport {
                state: BufferReport::UNAVAILABLE,
                pending: 0,
                dead: 0,
                oldest_age: std::time::Duration::ZERO,
                bytes: 0,
                max_items,
                damaged_items: 0,
                damaged_files: 0,
            },
        }
    }
}

fn store_report<S>(lane: Option<&Lane<S>>) -> StoreReport {
    let Some(lane) = lane else {
        return StoreReport {
            state: StoreReport::DISABLED,
            since: None,
            latency: None,
            error: None,
        };
    };
    let status = lane.health.status();
    StoreReport {
        state: match status.state {
            StoreState::Up => StoreReport::UP,
            StoreState::Down => StoreReport::DOWN,
        },
        since: Some(status.since),
        latency: status.latency,
        error: status.error,
    }
}
