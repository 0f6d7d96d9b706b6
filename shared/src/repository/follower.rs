//! Following the buffer file: what other processes do to it shows in its counters, which cost microseconds to read.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::buffer::{Counters, Lane, Reader, Snapshot};
use crate::domain::{Priority, Timestamp};
use crate::telemetry::metric;

use super::core::{ForeignBuffer, Repository};

/// How often the counters are read: bounds how late a long poll learns of its operation's end.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(100);

/// How many readings lie between two updates of the gauges, two sweeps of the index, and two searches for what has died.
const READINGS_PER_LOOK: u32 = 10;

impl Repository {
    /// Follows the file until the process ends: wakes long polls, takes over other processes' revocations, forgets
    /// what was remembered of writes that have died, measures the drain's pace, and keeps the gauges.
    pub(super) async fn follow_buffer(self) {
        let mut ticks = interval(FOLLOW_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = Counters::default();
        let (mut readings, mut some_died, mut has_missed) = (0, false, false);
        loop {
            ticks.tick().await;
            let Ok(now) = self.0.read(Reader::counters).await else {
                continue;
            };
            self.note_pace(ended(&now), now.pending);
            if ended(&now) != ended(&last) {
                self.0.ended.send_modify(|changes| *changes += 1);
            }
            some_died |= now.dead != last.dead;
            has_missed |= now.revocation_changes != last.revocation_changes;
            if has_missed {
                has_missed = !self.reload_revocations().await;
            }
            last = now;
            if readings % READINGS_PER_LOOK == 0 {
                self.set_gauges().await;
                self.sweep_index().await;
                self.forget_old_revocations();
                if some_died {
                    some_died = !self.forget_dead().await;
                }
            }
            readings = readings.wrapping_add(1);
        }
    }

    async fn sweep_index(&self) {
        if let Err(error) = self.0.read(Reader::sweep_index).await {
            tracing::warn!(%error, "can't tell what has left the buffer; trying again in a second");
        }
    }

    async fn set_gauges(&self) {
        if let Ok(snapshot) = self.0.read(Reader::snapshot).await {
            set_gauges(&snapshot, self.0.buffer.max_items(), self.now());
            if self.is_embedded() && snapshot.database.is_some() {
                // A syncd has joined it to a database: what it holds is going there.
                let waiting = snapshot.waiting_in(Lane::Postgres);
                let met = ForeignBuffer::OfSome { waiting };
                self.0.foreign.send_replace(Some(met));
            }
        }
        let (per_second, seconds_left) = self.drain_outlook();
        metrics::gauge!(metric::DRAIN_ITEMS_PER_SECOND).set(per_second);
        metrics::gauge!(metric::DRAIN_ETA_SECONDS).set(seconds_left);
        if let Some(skew_ms) = self.0.buffer.clock().skew_ms() {
            metrics::gauge!(metric::CLOCK_SKEW_SECONDS).set(skew_ms as f64 / 1000.0);
        }
    }
}

/// Operations that have ended, of any kind.
fn ended(counters: &Counters) -> u64 {
    counters.applied + counters.superseded + counters.dead + counters.archived + counters.discarded
}

/// Sets the gauges that tell of the buffer, in whichever process calls it.
pub fn set_gauges(snapshot: &Snapshot, max_items: u64, now: Timestamp) {
    for lane in crate::buffer::Lane::ALL {
        for priority in Priority::ALL {
            let waiting = snapshot.waiting[lane as usize][usize::from(priority.number()) - 1];
            let labels = [
                ("lane", lane.as_str().to_owned()),
                ("state", "pending".to_owned()),
                ("priority", priority.number().to_string()),
            ];
            metrics::gauge!(metric::BUFFER_ITEMS, &labels).set(waiting as f64);
        }
    }
    metrics::gauge!(metric::BUFFER_ITEMS, "lane" => "all", "state" => "dead", "priority" => "all")
        .set(snapshot.counters.dead as f64);
    metrics::gauge!(metric::BUFFER_CAPACITY_ITEMS).set(max_items as f64);
    metrics::gauge!(metric::BUFFER_BYTES).set(snapshot.size_bytes as f64);
    metrics::gauge!(metric::BUFFER_OLDEST_AGE_SECONDS).set(oldest_age(snapshot, now).as_secs_f64());
    metrics::gauge!(metric::CONSERVATION_IMBALANCE).set(snapshot.counters.imbalance() as f64);
}

/// Age of the oldest item waiting; zero when none is.
pub fn oldest_age(snapshot: &Snapshot, now: Timestamp) -> Duration {
    let oldest = snapshot.oldest_accepted_at.unwrap_or(now);
    Duration::from_micros(u64::try_from(now.as_micros() - oldest.as_micros()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[test]
    fn dead_letters_are_among_the_items_of_the_buffer() {
        let snapshot = Snapshot {
            counters: Counters {
                dead: 3,
                ..Counters::default()
            },
            ..Snapshot::default()
        };
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            set_gauges(&snapshot, 10, Timestamp::from_micros(0));
        });
        let text = recorder.handle().render();
        let dead = "holdfast_buffer_items{lane=\"all\",state=\"dead\",priority=\"all\"} 3";
        assert!(text.lines().any(|found| found == dead), "{text}");
    }
}
