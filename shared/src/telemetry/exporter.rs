//! The Prometheus side of the `metrics` facade: one recorder per process, its buckets, and its upkeep.

use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use super::metric::{self, MetricKind};

/// Around the cost of two syncs: from a fast NVMe's to a stalling disk's.
const COMMIT_BUCKETS_SECONDS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
];

/// Fine around the store deadline (0.75 s by default), and up to the longest long poll.
const REQUEST_BUCKETS_SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0,
    60.0,
];

/// How often observations are folded into their buckets; between two times they take up memory.
pub(super) const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Installs the process's recorder, with every metric described.
pub(super) fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = builder()?.install_recorder()?;
    describe_all();
    start_at_zero();
    Ok(handle)
}

fn builder() -> Result<PrometheusBuilder, BuildError> {
    let full = |name: &str| Matcher::Full(name.to_owned());
    PrometheusBuilder::new()
        .set_buckets_for_metric(full(metric::BUFFER_COMMIT_SECONDS), COMMIT_BUCKETS_SECONDS)?
        .set_buckets_for_metric(full(metric::HTTP_REQUEST_SECONDS), REQUEST_BUCKETS_SECONDS)
}

/// Gives every metric its help text. Done by [`init`](super::init()); for programs that install a recorder of their
/// own, such as a benchmark.
pub fn describe_all() {
    for metric in metric::metrics() {
        match metric.kind {
            MetricKind::Counter => describe_counter!(metric.name, metric.help),
            MetricKind::Gauge => describe_gauge!(metric.name, metric.help),
            MetricKind::Histogram => describe_histogram!(metric.name, metric.help),
        }
    }
}

/// Metrics without labels that are about rare events exist from the start: an alert on a rise from nothing to 1
/// would miss the first.
fn start_at_zero() {
    for name in [
        metric::APPLIED_TOTAL,
        metric::SUPERSEDED_TOTAL,
        metric::CORRUPT_ITEMS_TOTAL,
        metric::LOG_RECORDS_DROPPED_TOTAL,
    ] {
        counter!(name).increment(0);
    }
    gauge!(metric::CONSERVATION_IMBALANCE).set(0.0);
}

#[cfg(test)]
mod tests {
    use metrics::histogram;

    use super::*;

    /// What one scrape shows after `record` has run against a recorder of its own.
    fn scrape(record: impl FnOnce()) -> String {
        let recorder = builder().expect("valid buckets").build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            describe_all();
            start_at_zero();
            record();
        });
        handle.run_upkeep();
        handle.render()
    }

    #[test]
    fn histograms_have_buckets_and_not_quantiles() {
        let text = scrape(|| {
            histogram!(metric::BUFFER_COMMIT_SECONDS).record(0.003);
            histogram!(metric::HTTP_REQUEST_SECONDS, "method" => "GET", "route" => "/x", "status" => "200")
                .record(0.6);
        });
        assert!(
            text.contains("holdfast_buffer_commit_seconds_bucket{le=\"0.0025\"} 0"),
            "{text}"
        );
        assert!(
            text.contains("holdfast_buffer_commit_seconds_bucket{le=\"0.005\"} 1"),
            "{text}"
        );
        assert!(
            text.contains("route=\"/x\",status=\"200\",le=\"0.75\"} 1"),
            "{text}"
        );
        assert!(!text.contains("quantile"), "{text}");
    }

    #[test]
    fn every_metric_is_exported_under_its_name_with_help() {
        let text = scrape(|| {
            for metric in metric::metrics() {
                match metric.kind {
                    MetricKind::Counter => counter!(metric.name).increment(1),
                    MetricKind::Gauge => gauge!(metric.name).set(1.0),
                    MetricKind::Histogram => histogram!(metric.name).record(1.0),
                }
            }
        });
        for metric in metric::metrics() {
            assert!(
                text.contains(&format!("# HELP {} {}\n", metric.name, metric.help)),
                "{}",
                metric.name
            );
            assert!(
                text.contains(&format!("# TYPE {} ", metric.name)),
                "{}",
                metric.name
            );
        }
    }

    #[test]
    fn counters_without_labels_exist_before_the_first_event() {
        let text = scrape(|| {});
        assert!(
            text.contains("\nholdfast_corrupt_items_total 0\n"),
            "{text}"
        );
        assert!(
            text.contains("\nholdfast_conservation_imbalance 0\n"),
            "{text}"
        );
    }
}
