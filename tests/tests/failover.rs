//! Does a failover stay invisible to writers? A primary, a standby that has every commit, and before them one address,
//! which is led from the one to the other while clients write.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use holdfast_tests::load::{Load, Pace, RunningLoad};
use holdfast_tests::{FaultProxy, Flow, Node, Postgres, Program};
use serde_json::Value;
use tokio::sync::{Semaphore, SemaphorePermit};

const DATABASE: &str = "holdfast";

/// Longest wait for something that takes a second on an idle machine.
const SETTLE: Duration = Duration::from_secs(60);

const PACE: Pace = Pace {
    writers: 4,
    writes_per_second: 60,
};

/// Writes before and after, so that each kind of them is among them.
const WRITES: u64 = 60;

/// So long a standby is looked at: several probes.
const A_WHILE: Duration = Duration::from_secs(1);

/// The deadline of a direct write (0.75 s), and what a commit into the buffer may take on a busy machine.
const SLOWEST: Duration = Duration::from_secs(2);

/// Each has two servers and three processes; so few at a time are enough for two cores.
static ROOM: Semaphore = Semaphore::const_new(2);

struct Site {
    api: Program,
    second_api: Program,
    _syncd: Program,
    _nodes: [Node; 2],
    address: FaultProxy,
    primary: Postgres,
    standby: Postgres,
    _room: SemaphorePermit<'static>,
}

impl Site {
    async fn start() -> Result<Self> {
        let room = ROOM.acquire().await?;
        let primary = Postgres::start().await?;
        primary.create_database(DATABASE).await?;
        let standby = primary.start_standby().await?;
        primary.commit_with_standby().await?;
        let address = FaultProxy::start(primary.port()).await?;
        let url = primary.url_through(address.port(), DATABASE);
        let node = Node::new()?
            .hasty()
            .with("DATABASE_URL", &url)
            .with("SYNC_INTERVAL_SECONDS", "1");
        node.syncd(&["migrate"]).await?.expect_code(0);
        let second = node.beside()?;
        let site = Site {
            api: node.start_api().await?,
            second_api: second.start_api().await?,
            _syncd: node.start_syncd().await?,
            _nodes: [node, second],
            address,
            primary,
            standby,
            _room: room,
        };
        site.reaches("an online API", |health| health["status"] == "online")
            .await?;
        Ok(site)
    }

    async fn begin(&self) -> Result<RunningLoad> {
        let origins = vec![self.api.base_url(), self.second_api.base_url()];
        let load = Load::start_on(origins, "failover", PACE)?;
        load.answered(WRITES).await?;
        Ok(load)
    }

    /// Waits until both API processes are so.
    async fn reaches(&self, what: &str, is_so: impl Fn(&Value) -> bool + Copy) -> Result<()> {
        self.api.wait_health(SETTLE, what, is_so).await?;
        self.second_api.wait_health(SETTLE, what, is_so).await?;
        Ok(())
    }

    /// Waits until the standby, which is the primary now, has all, and holds it against what clients were told.
    async fn end(&self, load: RunningLoad) -> Result<Arc<Load>> {
        let is_online = |health: &Value| health["status"] == "online";
        self.reaches("the new primary to be used", is_online)
            .await?;
        load.answered(WRITES).await?;
        let load = load.stop().await?;
        self.reaches("an empty buffer", is_online).await?;
        let mut connection = self.standby.connect(DATABASE).await?;
        load.expect_kept(&mut connection, SLOWEST).await?;
        assert!(load.buffered() > 0, "there was no failover");
        Ok(load)
    }
}

/// What `/health` says of a standby.
fn sees_standby(health: &Value) -> bool {
    let postgres = &health["stores"]["postgres"];
    let error = postgres["error"].as_str().unwrap_or_default();
    postgres["state"] == "down" && error.contains("it is a standby")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_primary_costs_no_write_and_a_standby_is_used_once_it_is_promoted() -> Result<()> {
    let mut site = Site::start().await?;
    let load = site.begin().await?;
    site.primary.kill9().await?;
    site.address.lead_to(site.standby.port());
    site.reaches("the standby to be seen as one", sees_standby)
        .await?;
    // It answers every read, all the time, and must not count as up for a moment.
    let until = tokio::time::Instant::now() + A_WHILE;
    while tokio::time::Instant::now() < until {
        let health = site.api.health().await?;
        let state = &health["stores"]["postgres"]["state"];
        assert_eq!(state, "down", "{health}");
    }
    site.standby.promote().await?;
    site.end(load).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_hangs_and_comes_back_is_left_alone() -> Result<()> {
    let mut site = Site::start().await?;
    let load = site.begin().await?;
    // Connections to it stay open all along, as behind an address that has moved.
    site.primary.freeze()?;
    site.address.lead_to(site.standby.port());
    site.standby.promote().await?;
    site.reaches("the new primary to be used", |health| {
        health["stores"]["postgres"]["state"] == "up"
    })
    .await?;
    site.primary.thaw()?;
    site.end(load).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_stay_with_a_demoted_primary_are_given_up() -> Result<()> {
    let site = Site::start().await?;
    let load = site.begin().await?;
    // As an operator hands over: the old one takes no more writes, and nobody is thrown out.
    site.primary
        .configure("default_transaction_read_only", "on")
        .await?;
    let is_down = |health: &Value| health["stores"]["postgres"]["state"] == "down";
    site.reaches("the old primary to be seen as read-only", is_down)
        .await?;
    site.standby.promote().await?;
    site.address.lead_to(site.standby.port());
    site.end(load).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_primary_that_comes_back_as_it_was_takes_nothing() -> Result<()> {
    let mut site = Site::start().await?;
    let load = site.begin().await?;
    site.primary.kill9().await?;
    site.standby.promote().await?;
    // It is back before the address has moved: it takes writes, but no standby confirms them.
    site.primary.start_again().await?;
    load.answered(WRITES).await?;
    site.address.set(Flow::Cut).await?;
    site.address.lead_to(site.standby.port());
    site.address.set(Flow::Pass).await?;
    site.end(load).await?;
    Ok(())
}
