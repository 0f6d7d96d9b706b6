//! What syncd counts and shows to Prometheus, beyond what the buffer and the stores show themselves.

use holdfast_shared::buffer::{SalvageReport, SettleReport};
use holdfast_shared::telemetry::metric;
use metrics::{counter, gauge};

use crate::board::{Doing, Report};
use crate::drain::Cause;

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

/// Counts what came of a damaged buffer file.
pub fn count_salvaged(report: &SalvageReport) {
    counter!(metric::SALVAGED_ITEMS_TOTAL).increment(report.items);
    counter!(metric::UNREADABLE_ITEMS_TOTAL).increment(report.unreadable.unwrap_or(0));
    count_damaged(report.damaged);
}

/// Shows how far PostgreSQL's clock is ahead of this machine's.
pub fn show_skew(skew_seconds: f64) {
    gauge!(metric::CLOCK_SKEW_SECONDS).set(skew_seconds);
}

/// Shows which lanes have stopped because their store refuses everything.
pub fn show_lanes(report: &Report) {
    for lane in report.lanes.iter().filter(|lane| lane.doing != Doing::Off) {
        let is_stopped = matches!(lane.doing, Doing::Stopped(_));
        gauge!(metric::LANE_STOPPED, "lane" => lane.lane.as_str()).set(if is_stopped {
            1.0
        } else {
            0.0
        });
    }
}

/// Shows how fast the buffer is drained, and how long the rest takes; infinite when there is no telling.
pub fn show_pace(per_second: f64, eta: Option<std::time::Duration>) {
    gauge!(metric::DRAIN_ITEMS_PER_SECOND).set(per_second);
    gauge!(metric::DRAIN_ETA_SECONDS).set(eta.map_or(f64::INFINITY, |eta| eta.as_secs_f64()));
}
