//! What syncd counts and shows to Prometheus, beyond what the buffer and the stores show themselves.

use holdfast_shared::buffer::{Lane, SettleReport, Snapshot};
use holdfast_shared::domain::{Priority, Timestamp};
use holdfast_shared::telemetry::metric;
use metrics::{counter, gauge};

use crate::drain::{Cause, time};

/// Counts what a settling transaction did.
pub fn count_settled(report: &SettleReport) {
    counter!(metric::APPLIED_TOTAL).increment(report.applied);
    counter!(metric::SUPERSEDED_TOTAL).increment(report.superseded);
}

/// Counts a dead letter.
pub fn count_death(cause: Cause) {
    counter!(metric::DEAD_TOTAL, "reason" => cause.label()).increment(1);
}

/// Counts damaged items that were set aside.
pub fn count_damaged(items: u64) {
    counter!(metric::CORRUPT_ITEMS_TOTAL).increment(items);
    counter!(metric::DEAD_TOTAL, "reason" => "damaged").increment(items);
}

/// Shows the buffer as it is.
pub fn show_buffer(snapshot: &Snapshot, max_items: u64, now: Timestamp) {
    for lane in Lane::ALL {
        for priority in Priority::ALL {
            let items = snapshot.waiting[lane as usize][usize::from(priority.number()) - 1];
            let priority = priority.number().to_string();
            gauge!(metric::BUFFER_ITEMS, "lane" => lane.as_str(), "state" => "pending", "priority" => priority)
                .set(float(items));
        }
    }
    gauge!(metric::BUFFER_ITEMS, "lane" => "all", "state" => "dead", "priority" => "all")
        .set(float(snapshot.counters.dead));
    gauge!(metric::BUFFER_CAPACITY_ITEMS).set(float(max_items));
    gauge!(metric::BUFFER_BYTES).set(float(snapshot.size_bytes));
    let oldest_age = snapshot
        .oldest_accepted_at
        .map(|then| time::since(then, now))
        .unwrap_or_default();
    gauge!(metric::BUFFER_OLDEST_AGE_SECONDS).set(oldest_age.as_secs_f64());
    #[expect(clippy::cast_precision_loss, reason = "zero, or anything else")]
    gauge!(metric::CONSERVATION_IMBALANCE).set(snapshot.counters.imbalance() as f64);
}

/// Shows how fast the buffer is drained, and how long the rest takes; infinite when there is no telling.
pub fn show_pace(per_second: f64, eta: Option<std::time::Duration>) {
    gauge!(metric::DRAIN_ITEMS_PER_SECOND).set(per_second);
    gauge!(metric::DRAIN_ETA_SECONDS).set(eta.map_or(f64::INFINITY, |eta| eta.as_secs_f64()));
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a gauge is a float; beyond 2^53 nobody counts"
)]
fn float(number: u64) -> f64 {
    number as f64
}
