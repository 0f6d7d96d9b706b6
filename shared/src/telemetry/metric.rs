//! The name and the meaning of every metric, in one place: dashboards and alerts depend on these names.

/// What a metric measures, and how its value moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only rises.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts observations in buckets.
    Histogram,
}

/// The declaration of one metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// How its value moves.
    pub kind: MetricKind,
    /// Its help text.
    pub help: &'static str,
}

/// Every metric there is.
pub fn metrics() -> &'static [Metric] {
    METRICS
}

macro_rules! declare {
    ($($constant:ident = $name:literal, $kind:ident, $help:literal;)*) => {
        $(#[doc = concat!($help, " `", $name, "`")] pub const $constant: &str = $name;)*
        static METRICS: &[Metric] =
            &[$(Metric { name: $constant, kind: MetricKind::$kind, help: $help }),*];
    };
}

declare! {
    STORE_UP = "holdfast_store_up", Gauge,
        "1 while a store takes writes, else 0, by store (postgres, redis).";
    BUFFER_ITEMS = "holdfast_buffer_items", Gauge,
        "Items in the buffer, by lane, state (pending, dead) and priority.";
    BUFFER_CAPACITY_ITEMS = "holdfast_buffer_capacity_items", Gauge,
        "Most pending items the buffer takes.";
    BUFFER_BYTES = "holdfast_buffer_bytes", Gauge,
        "Size of the buffer file in bytes.";
    BUFFER_OLDEST_AGE_SECONDS = "holdfast_buffer_oldest_age_seconds", Gauge,
        "Age of the oldest pending item in seconds; 0 when there is none.";
    ACCEPTED_TOTAL = "holdfast_accepted_total", Counter,
        "Operations accepted, by path (direct, buffered) and entity.";
    APPLIED_TOTAL = "holdfast_applied_total", Counter,
        "Buffered operations that took effect in their store.";
    SUPERSEDED_TOTAL = "holdfast_superseded_total", Counter,
        "Buffered operations that changed nothing, since newer ones had set all their fields.";
    DEAD_TOTAL = "holdfast_dead_total", Counter,
        "Operations that became dead letters, by reason.";
    CONSERVATION_IMBALANCE = "holdfast_conservation_imbalance", Gauge,
        "Accepted operations that are in no known state; anything but 0 is a defect.";
    DRAIN_ITEMS_PER_SECOND = "holdfast_drain_items_per_second", Gauge,
        "Rate at which the buffer is being drained.";
    DRAIN_ETA_SECONDS = "holdfast_drain_eta_seconds", Gauge,
        "Estimated seconds until the buffer is empty.";
    LANE_STOPPED = "holdfast_lane_stopped", Gauge,
        "1 while a lane (postgres, redis) has stopped since its store refuses everything, else 0.";
    BUFFER_COMMIT_SECONDS = "holdfast_buffer_commit_seconds", Histogram,
        "Time of one durable commit to the buffer file, in seconds.";
    HTTP_REQUEST_SECONDS = "holdfast_http_request_seconds", Histogram,
        "Time to answer a request, in seconds, by method, route and status.";
    CLOCK_SKEW_SECONDS = "holdfast_clock_skew_seconds", Gauge,
        "PostgreSQL's clock minus this machine's, in seconds.";
    CORRUPT_ITEMS_TOTAL = "holdfast_corrupt_items_total", Counter,
        "Buffered items set aside because their checksum was wrong.";
    BUFFER_SET_ASIDE_TOTAL = "holdfast_buffer_set_aside_total", Counter,
        "Buffer files set aside or copied out, by reason (damaged, replaced).";
    SALVAGED_ITEMS_TOTAL = "holdfast_salvaged_items_total", Counter,
        "Items of damaged buffer files that were queued again.";
    UNREADABLE_ITEMS_TOTAL = "holdfast_unreadable_items_total", Counter,
        "Items of damaged buffer files that could not be read.";
    LOG_RECORDS_DROPPED_TOTAL = "holdfast_log_records_dropped_total", Counter,
        "Log records lost because the journal or stderr could not be written.";
}
