//! Whether a store can be used now: one monitor per process and store, which probes it, believes what real requests
//! meet, and tells everybody who asks or waits.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::Utc;
use metrics::gauge;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};
use uuid::Uuid;

use crate::clock::Distance;
use crate::domain::Timestamp;
use crate::store::{FailureClass, StoreError};
use crate::telemetry::metric::STORE_UP;

/// Longest time between probes of a store that isn't surely up: an outage ends within this, and costs five cheap
/// attempts a second.
const DOUBTFUL_INTERVAL: Duration = Duration::from_millis(200);

/// Longest time for one probe: what takes longer is no use to a client either.
const PROBE_LIMIT: Duration = Duration::from_secs(1);

/// Failed probes in a row that it takes to call a store down which no request has complained about.
const FAILURES_UNTIL_DOWN: u32 = 2;

/// A store that can be asked whether it takes writes.
pub trait Probe: Send + Sync + 'static {
    /// Writes something of no consequence and measures.
    ///
    /// # Errors
    /// The store isn't usable, and why.
    fn probe(&self) -> impl Future<Output = Result<Probed, StoreError>> + Send;
}

/// What a probe that succeeded has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probed {
    /// How long it took.
    pub latency: Duration,
    /// How far the store's clock is ahead of this machine's, if it was asked.
    pub clock: Option<Distance>,
    /// Which database it is, if it has an identity.
    pub database_id: Option<Uuid>,
}

/// Up or down: there is nothing in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreState {
    /// It takes writes.
    Up,
    /// It doesn't, or nobody knows yet.
    Down,
}

/// How a store stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreStatus {
    /// Up or down.
    pub state: StoreState,
    /// Since when, by this machine's clock.
    pub since: Timestamp,
    /// How long the last probe took that succeeded.
    pub latency: Option<Duration>,
    /// Why it is down, in words of our own.
    pub error: Option<String>,
    /// The class of that failure; `None` before the first probe has ended.
    pub class: Option<FailureClass>,
}

/// What is known of one store. Clones share it.
#[derive(Clone)]
pub struct StoreHealth {
    shared: Arc<Shared>,
}

struct Shared {
    name: &'static str,
    standing: watch::Sender<Standing>,
    last_probe: Mutex<Option<Probed>>,
    tripped: Notify,
}

struct Standing {
    status: StoreStatus,
    since: Instant,
}

impl StoreHealth {
    /// Whether it takes writes, as far as is known.
    pub fn is_up(&self) -> bool {
        self.shared.is_up()
    }

    /// How it stands.
    pub fn status(&self) -> StoreStatus {
        self.shared.standing.borrow().status.clone()
    }

    /// How long it has been down; `None` when it is up. Not by the wall clock, which may be set meanwhile.
    pub fn down_for(&self) -> Option<Duration> {
        let standing = self.shared.standing.borrow();
        (standing.status.state == StoreState::Down).then(|| standing.since.elapsed())
    }

    /// What the last probe that succeeded found; `None` when none has.
    pub fn last_probe(&self) -> Option<Probed> {
        *self
            .shared
            .last_probe
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells that a real request failed. If it says that the store can't be used, the store is down from now on, and
    /// is probed at once; other failures change nothing.
    pub fn report_failure(&self, error: &StoreError) {
        let condemns = matches!(
            error.class(),
            FailureClass::Unavailable | FailureClass::Systemic
        );
        if condemns && self.shared.set_down(error) {
            self.shared.tripped.notify_one();
        }
    }

    /// Waits until it is down; returns at once when it is.
    pub async fn went_down(&self) {
        self.wait_for(StoreState::Down).await;
    }

    /// Waits until it is up; returns at once when it is.
    pub async fn came_up(&self) {
        self.wait_for(StoreState::Up).await;
    }

    async fn wait_for(&self, state: StoreState) {
        let mut standing = self.shared.standing.subscribe();
        let reached = standing
            .wait_for(|standing| standing.status.state == state)
            .await;
        debug_assert!(reached.is_ok(), "the sender lives as long as this does");
    }
}

impl Shared {
    fn new(name: &'static str) -> Self {
        let status = StoreStatus {
            state: StoreState::Down,
            since: Utc::now().into(),
            latency: None,
            error: Some("not yet probed".to_owned()),
            class: None,
        };
        Shared {
            name,
            standing: watch::Sender::new(Standing {
                status,
                since: Instant::now(),
            }),
            last_probe: Mutex::new(None),
            tripped: Notify::new(),
        }
    }

    fn is_up(&self) -> bool {
        self.standing.borrow().status.state == StoreState::Up
    }

    fn set_up(&self, probed: &Probed) {
        *self
            .last_probe
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(*probed);
        self.standing.send_modify(|standing| {
            standing.status.latency = Some(probed.latency);
            if standing.status.state == StoreState::Down {
                let down_ms = standing.since.elapsed().as_millis();
                info!(store = self.name, down_ms, "the store is up");
                standing.turn(StoreState::Up);
                standing.status.error = None;
                standing.status.class = None;
            }
        });
        self.export();
    }

    /// Returns whether it was up before.
    fn set_down(&self, error: &StoreError) -> bool {
        let mut was_up = false;
        self.standing.send_modify(|standing| {
            was_up = standing.status.state == StoreState::Up;
            // What only somebody can mend is said whenever it is something else; of an outage, the words may change
            // with each probe.
            let is_news = standing.status.class != Some(error.class())
                || (error.class() == FailureClass::Systemic
                    && standing.status.error != Some(error.to_string()));
            if is_news {
                warn!(
                    store = self.name,
                    error = error as &dyn std::error::Error,
                    "the store is down"
                );
            }
            if was_up {
                standing.turn(StoreState::Down);
            }
            standing.status.error = Some(error.to_string());
            standing.status.class = Some(error.class());
        });
        self.export();
        was_up
    }

    fn export(&self) {
        gauge!(STORE_UP, "store" => self.name).set(if self.is_up() { 1.0 } else { 0.0 });
    }
}

impl Standing {
    fn turn(&mut self, state: StoreState) {
        self.status.state = state;
        self.status.since = Utc::now().into();
        self.since = Instant::now();
    }
}

/// Begins to watch a store. The future does the watching until it is dropped; `on_probe` is called with each probe
/// that succeeded, before the store counts as up.
///
/// A store is down until its first probe has succeeded. While it is up it is probed each `interval`. It goes down
/// when [`FAILURES_UNTIL_DOWN`] probes in a row have failed, or a request says so, and comes up with one probe that
/// succeeds.
pub fn monitor<P: Probe>(
    name: &'static str,
    store: P,
    interval: Duration,
    on_probe: impl Fn(&Probed) + Send + Sync + 'static,
) -> (StoreHealth, impl Future<Output = ()> + Send + 'static) {
    let shared = Arc::new(Shared::new(name));
    shared.export();
    let health = StoreHealth {
        shared: shared.clone(),
    };
    (health, async move {
        watch_over(&shared, &store, interval, &on_probe).await
    })
}

async fn watch_over<P: Probe>(
    shared: &Shared,
    store: &P,
    interval: Duration,
    on_probe: &(impl Fn(&Probed) + Sync),
) {
    let mut failures = 0;
    loop {
        let begun = Instant::now();
        match probe_once(store, interval).await {
            Ok(probed) => {
                failures = 0;
                on_probe(&probed);
                shared.set_up(&probed);
            }
            Err(error) => {
                failures += 1;
                if failures >= FAILURES_UNTIL_DOWN || !shared.is_up() {
                    shared.set_down(&error);
                }
            }
        }
        let is_surely_up = failures == 0 && shared.is_up();
        let pause = if is_surely_up {
            interval
        } else {
            interval.min(DOUBTFUL_INTERVAL)
        };
        tokio::select! {
            () = sleep_until(begun + pause) => {}
            () = shared.tripped.notified() => {}
        }
    }
}

async fn probe_once<P: Probe>(store: &P, interval: Duration) -> Result<Probed, StoreError> {
    let late = |_| StoreError::new(FailureClass::Unavailable, "it did not answer in time");
    timeout(interval.min(PROBE_LIMIT), store.probe())
        .await
        .map_err(late)?
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const INTERVAL: Duration = Duration::from_millis(20);

    /// Answers with these in turn, and then for ever with the last.
    struct Script {
        answers: Vec<Result<(), FailureClass>>,
        asked: AtomicUsize,
    }

    impl Script {
        fn new(answers: &[Result<(), FailureClass>]) -> Self {
            Script {
                answers: answers.to_vec(),
                asked: AtomicUsize::new(0),
            }
        }
    }

    impl Probe for Arc<Script> {
        async fn probe(&self) -> Result<Probed, StoreError> {
            let asked = self
                .asked
                .fetch_add(1, Ordering::Relaxed)
                .min(self.answers.len() - 1);
            let probed = Probed {
                latency: Duration::ZERO,
                clock: None,
                database_id: None,
            };
            self.answers[asked]
                .map(|()| probed)
                .map_err(|class| StoreError::new(class, "as told"))
        }
    }

    async fn watched(answers: &[Result<(), FailureClass>]) -> (StoreHealth, Arc<Script>) {
        let script = Arc::new(Script::new(answers));
        let (health, watching) = monitor("test", script.clone(), INTERVAL, |_| ());
        tokio::spawn(watching);
        (health, script)
    }

    /// Waits until the probe has been asked this often.
    async fn asked(script: &Script, times: usize) {
        while script.asked.load(Ordering::Relaxed) < times {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn one_failed_probe_is_forgiven_and_two_in_a_row_are_not() {
        let down = Err(FailureClass::Unavailable);
        let (health, script) = watched(&[Ok(()), down, Ok(()), down, down, Ok(())]).await;
        health.came_up().await;
        asked(&script, 4).await;
        assert!(health.is_up());
        health.went_down().await;
        assert_eq!(script.asked.load(Ordering::Relaxed), 5);
        let status = health.status();
        assert_eq!(
            (status.error.as_deref(), status.class),
            (Some("as told"), Some(FailureClass::Unavailable))
        );
        assert!(health.down_for().is_some());
        health.came_up().await;
        assert_eq!(health.status().error, None);
        assert_eq!(health.down_for(), None);
    }

    #[tokio::test]
    async fn only_failures_of_the_store_itself_take_it_down() {
        let (health, _) = watched(&[Ok(())]).await;
        for class in [FailureClass::Contended, FailureClass::Item] {
            health.came_up().await;
            health.report_failure(&StoreError::new(class, "not its fault"));
            assert!(health.is_up());
        }
        for class in [FailureClass::Unavailable, FailureClass::Systemic] {
            health.came_up().await;
            health.report_failure(&StoreError::new(class, "its fault"));
            assert!(!health.is_up());
            assert_eq!(health.status().error.as_deref(), Some("its fault"));
        }
    }

    #[tokio::test]
    async fn a_probe_that_hangs_counts_as_failed() {
        struct Hung;
        impl Probe for Hung {
            async fn probe(&self) -> Result<Probed, StoreError> {
                std::future::pending().await
            }
        }
        let (health, watching) = monitor("test", Hung, INTERVAL, |_| ());
        tokio::spawn(watching);
        while health.status().class.is_none() {
            tokio::task::yield_now().await;
        }
        assert_eq!(
            health.status().error.as_deref(),
            Some("it did not answer in time")
        );
    }
}
