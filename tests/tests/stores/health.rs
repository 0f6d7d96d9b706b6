//! The monitor, watching a real store that suffers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use holdfast_shared::domain::TaskId;
use holdfast_shared::health::{self, Probe, StoreHealth, StoreState};
use holdfast_shared::store::FailureClass;
use holdfast_tests::{FaultProxy, Flow, StallWatch, eventually};
use sqlx::Executor;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::support::{self, DATABASE, Fixture, PATIENCE, hasty};

const INTERVAL: Duration = Duration::from_millis(300);

/// Time in which a change has to be seen while the machine doesn't stand still: some 200 ms lie between probes.
const RETURN_LIMIT: Duration = Duration::from_secs(3);

/// A monitor that ends with its test.
struct Watch {
    health: StoreHealth,
    probes: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Watch {
    fn over(store: impl Probe) -> Self {
        let probes = Arc::new(AtomicUsize::new(0));
        let counted = probes.clone();
        let on_probe = move |_: &health::Probed| _ = counted.fetch_add(1, Ordering::Relaxed);
        let (health, watching) = health::monitor("postgres", store, INTERVAL, on_probe);
        Watch {
            health,
            probes,
            task: tokio::spawn(watching),
        }
    }

    async fn came_up(&self) -> Result<Duration> {
        let took = timed(self.health.came_up()).await?;
        assert!(self.health.is_up());
        Ok(took)
    }

    async fn went_down(&self) -> Result<Duration> {
        let took = timed(self.health.went_down()).await?;
        assert!(!self.health.is_up());
        Ok(took)
    }

    /// Waits until it is down for this reason. On a busy machine another comes first: a probe is late.
    async fn is_down_because(&self, reason: &str) -> Result<()> {
        eventually(PATIENCE, reason, async || {
            let status = self.health.status();
            let error = status.error.unwrap_or_default();
            let is_it = status.state == StoreState::Down && error.contains(reason);
            if is_it { Ok(()) } else { Err(error) }
        })
        .await
    }
}

/// How long a change takes, less what the machine stood still.
async fn timed(change: impl Future<Output = ()>) -> Result<Duration> {
    let (started, watch) = (Instant::now(), StallWatch::start()?);
    timeout(PATIENCE, change).await?;
    let took = started.elapsed();
    Ok(took.saturating_sub(watch.total()?))
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_comes_up_with_its_first_probe() -> Result<()> {
    let fixture = Fixture::start().await?;
    let (health, watching) = health::monitor("postgres", fixture.store.clone(), INTERVAL, |_| ());
    let status = health.status();
    assert_eq!(
        (status.state, status.error.as_deref(), status.class),
        (StoreState::Down, Some("not yet probed"), None)
    );
    assert_eq!(health.last_probe(), None);
    drop(watching);
    let watch = Watch::over(fixture.store.clone());
    watch.came_up().await?;
    let status = watch.health.status();
    assert!(status.latency.is_some() && status.error.is_none() && status.class.is_none());
    let probed = watch.health.last_probe().expect("probed");
    assert!(probed.database_id.is_some() && probed.clock.is_some());
    assert!(
        watch.probes.load(Ordering::Relaxed) >= 1,
        "told before it counts as up"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_is_down_and_comes_back_by_itself() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    let watch = Watch::over(fixture.store_with(hasty()));
    watch.came_up().await?;
    fixture.server.kill9().await?;
    assert!(watch.went_down().await? < RETURN_LIMIT);
    assert_eq!(watch.health.status().class, Some(FailureClass::Unavailable));
    fixture.server.start_again().await?;
    assert!(watch.came_up().await? < RETURN_LIMIT);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_server_is_down_until_it_thaws() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    let watch = Watch::over(fixture.store_with(hasty()));
    watch.came_up().await?;
    fixture.server.freeze()?;
    watch.went_down().await?;
    fixture.server.thaw()?;
    assert!(watch.came_up().await? < RETURN_LIMIT);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_server_is_down() -> Result<()> {
    let fixture = Fixture::start().await?;
    let watch = Watch::over(fixture.store_with(hasty()));
    watch.came_up().await?;
    let mut admin = fixture.server.connect_admin("postgres").await?;
    admin
        .execute("ALTER SYSTEM SET default_transaction_read_only = on")
        .await?;
    admin.execute("SELECT pg_reload_conf()").await?;
    watch.is_down_because("takes no writes").await?;
    admin
        .execute("SET default_transaction_read_only = off")
        .await?;
    admin
        .execute("ALTER SYSTEM RESET default_transaction_read_only")
        .await?;
    admin.execute("SELECT pg_reload_conf()").await?;
    watch.came_up().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_schema_is_named_until_it_is_there() -> Result<()> {
    let fixture = Fixture::start_empty().await?;
    let watch = Watch::over(fixture.store_with(hasty()));
    watch.is_down_because("run syncd migrate").await?;
    assert_eq!(watch.health.status().class, Some(FailureClass::Systemic));
    fixture.store.migrate().await?;
    assert!(watch.came_up().await? < RETURN_LIMIT);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_of_a_request_takes_the_store_down_at_once() -> Result<()> {
    let fixture = Fixture::start().await?;
    let mut proxy = FaultProxy::start(fixture.server.port()).await?;
    let store = support::store(&fixture.server.url_through(proxy.port(), DATABASE), hasty());
    let (health, watching) =
        health::monitor("postgres", store.clone(), Duration::from_secs(60), |_| ());
    let watching = tokio::spawn(watching);
    timeout(PATIENCE, health.came_up()).await?;
    proxy.set(Flow::Cut).await?;
    let error = store
        .find_task(TaskId::generate())
        .await
        .expect_err("the network is cut");
    assert!(health.is_up(), "nobody has told it yet");
    health.report_failure(&error);
    assert!(!health.is_up());
    proxy.set(Flow::Pass).await?;
    assert!(
        timed(health.came_up()).await? < RETURN_LIMIT,
        "it is not probed each minute while it is down"
    );
    watching.abort();
    Ok(())
}
