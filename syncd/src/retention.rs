//! What has had its time leaves: finished records and dead letters the buffer file, old records PostgreSQL.
//!
//! Each cycle takes bounded steps until nothing more is due. Pending items have no time; they never leave this way.

use holdfast_shared::buffer::{Buffer, BufferError, Reader, RetentionReport};
use holdfast_shared::clock::Reading;
use holdfast_shared::config::SyncConfig;
use holdfast_shared::domain::Timestamp;
use holdfast_shared::health::StoreHealth;
use holdfast_shared::store::StoreError;
use holdfast_shared::store::postgres::{Postgres, RECORD_DAYS};
use tokio::sync::watch;

use crate::drain::with_causes;
use crate::signals::told_to_stop;

/// Most records one statement removes.
const RECORDS_PER_STEP: usize = 1_000;

/// Most steps of a cycle in PostgreSQL: a backlog of old records goes over several cycles.
const MOST_STEPS: usize = 100;

const DAY_US: i64 = 24 * 3600 * 1_000_000;

/// How far the wall clock may come away from the boot clock without having been set: both are slewed by some 500 ppm.
const DRIFT_US: i64 = 3600 * 1_000_000;

/// The keeper of retention.
pub struct Retention {
    buffer: Buffer,
    postgres: Option<(Postgres, StoreHealth)>,
    steady: Steady,
}

/// Since when nobody has set the wall clock. Where no database tells the time, one that has gone on undisturbed for a day
/// is believed: what starts with a wrong one is set right within minutes, or not at all.
#[derive(Debug, Default)]
struct Steady {
    since: Option<Reading>,
}

impl Steady {
    /// Whether the wall clock can be believed now.
    fn holds(&mut self, now: Reading) -> bool {
        let since = self.since.get_or_insert(now);
        let passed_us = now.since_boot_us() - since.since_boot_us();
        let said_us = now.wall.as_micros() - since.wall.as_micros();
        if (said_us - passed_us).abs() > DRIFT_US {
            *since = now;
            return false;
        }
        passed_us >= DAY_US
    }
}

impl Retention {
    /// For this buffer, and PostgreSQL where it is configured.
    pub fn new(buffer: Buffer, postgres: Option<(Postgres, StoreHealth)>) -> Self {
        Retention {
            buffer,
            postgres,
            steady: Steady::default(),
        }
    }

    /// Runs a cycle each interval until it is told to stop.
    pub async fn run(
        mut self,
        settings: watch::Receiver<SyncConfig>,
        mut stop: watch::Receiver<bool>,
    ) {
        let work = async {
            loop {
                self.cycle().await;
                let interval = settings.borrow().interval;
                tokio::time::sleep(interval).await;
            }
        };
        tokio::select! {
            () = work => {}
            () = told_to_stop(&mut stop) => {}
        }
    }

    /// Does all that is due. What fails is due again in the next cycle. Where PostgreSQL's time is to be known but isn't
    /// yet, nothing is due: by a wrong clock everything may be too old.
    async fn cycle(&mut self) {
        let clock = self.buffer.clock();
        let is_told = clock.boot_distance_us().is_some();
        if self.postgres.is_some() && !is_told {
            return;
        }
        let is_sure = self.steady.holds(clock.read()) || is_told;
        if let Err(error) = self.clear_buffer(is_sure).await {
            tracing::warn!(%error, "retention can't clear the buffer, and tries again");
        }
        if let Err(error) = self.clear_postgres().await {
            tracing::warn!(error, "retention can't remove old records, and tries again");
        }
    }

    async fn clear_buffer(&self, is_sure_of_time: bool) -> Result<(), BufferError> {
        let mut total = RetentionReport::default();
        loop {
            let report = self.buffer.retain(is_sure_of_time).await?;
            total.finished_removed += report.finished_removed;
            total.archived += report.archived;
            if !report.more {
                break;
            }
        }
        let RetentionReport {
            finished_removed,
            archived,
            ..
        } = total;
        if archived > 0 {
            tracing::info!(archived, "dead letters moved to the archive");
        }
        if finished_removed > 0 {
            tracing::debug!(finished_removed, "finished records removed");
        }
        Ok(())
    }

    async fn clear_postgres(&self) -> Result<(), String> {
        let Some((postgres, health)) = &self.postgres else {
            return Ok(());
        };
        if !health.is_up() {
            return Ok(());
        }
        let oldest = self
            .buffer
            .read(Reader::snapshot)
            .await
            .map_err(|error| error.to_string())?
            .oldest_accepted_at;
        let cutoff = cutoff(self.buffer.clock().now(), oldest);
        let removed = remove_records(postgres, cutoff)
            .await
            .map_err(|error| with_causes(&error))?;
        if removed > 0 {
            tracing::info!(removed, "old records of operations removed from postgres");
        }
        Ok(())
    }
}

async fn remove_records(postgres: &Postgres, cutoff: Timestamp) -> Result<u64, StoreError> {
    let mut total = 0;
    for _ in 0..MOST_STEPS {
        let removed = postgres
            .remove_old_records(cutoff, RECORDS_PER_STEP)
            .await?;
        total += removed;
        if removed < RECORDS_PER_STEP as u64 {
            break;
        }
    }
    Ok(total)
}

/// Records before this may go: older than [`RECORD_DAYS`], and than everything that waits, since a record may be what
/// keeps a replay from being applied twice.
fn cutoff(now: Timestamp, oldest_pending: Option<Timestamp>) -> Timestamp {
    let age_us = i64::from(RECORD_DAYS) * DAY_US;
    let by_age = Timestamp::from_micros(now.as_micros().saturating_sub(age_us));
    oldest_pending.map_or(by_age, |oldest| oldest.min(by_age))
}

#[cfg(test)]
mod tests {
    use holdfast_shared::buffer::{
        Lane, Settlement, Slot, Verdict, archive_directory, read_archive,
    };
    use holdfast_shared::domain::{Kind, TaskId};

    use super::*;
    use crate::drain::rig::{open_buffer, operation};

    #[tokio::test]
    async fn dead_letters_past_their_time_go_to_the_archive_and_what_waits_stays()
    -> Result<(), Box<dyn std::error::Error>> {
        let directory = tempfile::tempdir()?;
        let buffer = open_buffer(directory.path(), std::time::Duration::ZERO)?;
        for _ in 0..2 {
            let create = operation(&buffer, TaskId::generate(), Kind::Create)?;
            buffer.append(create, None, Slot::Ordinary).await?;
        }
        let queued = buffer
            .read(|reader| reader.list_items(Lane::Postgres, 1))
            .await?;
        let dead = |queued| Settlement {
            queued,
            verdict: Verdict::Dead {
                reason: "failed".to_owned(),
            },
        };
        buffer
            .settle(queued.into_iter().map(dead).collect())
            .await?;

        Retention::new(buffer.clone(), None).cycle().await;
        let counters = buffer.read(Reader::counters).await?;
        assert_eq!(
            (counters.dead, counters.archived, counters.pending),
            (0, 1, 1)
        );
        let file = std::fs::read_dir(archive_directory(buffer.path()))?
            .next()
            .ok_or("no archive")??;
        assert_eq!(read_archive(&file.path())?.0.len(), 1);
        Ok(())
    }

    #[test]
    fn the_wall_clock_is_believed_after_a_day_in_which_nobody_set_it() {
        let at = |hours: i64, ahead_days: i64| {
            let since_boot_us = hours * 3600 * 1_000_000;
            Reading {
                wall: Timestamp::from_micros(
                    1_795_000_000_000_000 + since_boot_us + ahead_days * DAY_US,
                ),
                since_boot: std::time::Duration::from_micros(since_boot_us as u64),
                ..Reading::take()
            }
        };
        let mut steady = Steady::default();
        let seen = [
            (0, 60),
            (1, 0),
            (24, 0),
            (25, 0),
            (26, 60),
            (27, 0),
            (50, 0),
            (51, 0),
        ];
        let believed = seen.map(|(hours, ahead_days)| steady.holds(at(hours, ahead_days)));
        assert_eq!(
            believed,
            [false, false, false, true, false, false, false, true]
        );
    }

    #[test]
    fn records_go_after_ninety_days_but_never_before_what_waits() {
        let now = Timestamp::from_micros(1_000 * DAY_US);
        let ninety_days_ago = Timestamp::from_micros(910 * DAY_US);
        let (recent, ancient) = (
            Timestamp::from_micros(999 * DAY_US),
            Timestamp::from_micros(5 * DAY_US),
        );
        assert_eq!(cutoff(now, None), ninety_days_ago);
        assert_eq!(cutoff(now, Some(recent)), ninety_days_ago);
        assert_eq!(cutoff(now, Some(ancient)), ancient);
    }
}
