//! The service as a whole: what clients get, and what is there afterwards.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use holdfast_tests::load::{Load, Pace, RunningLoad};
use holdfast_tests::stall_watch::OUTAGE;

use crate::site::{DATABASE, KEEPING, LOSING, SETTLE, Site, Way};

const PACE: Pace = Pace {
    writers: 4,
    writes_per_second: 60,
};

/// Writes in each state, so that each kind of them is among them.
const WRITES: u64 = 60;

/// The deadline of a direct write (0.75 s), and what a commit into the buffer may take on a busy machine.
const SLOWEST: Duration = Duration::from_secs(2);

fn begin(site: &Site) -> Result<RunningLoad> {
    let origins = vec![site.api.base_url(), site.second_api.base_url()];
    Load::start_on(origins, "pooler", PACE)
}

/// Ends the load once all is well again, and holds what it was told against what is there.
async fn end(site: &Site, load: RunningLoad) -> Result<Arc<Load>> {
    site.reaches("online").await?;
    let load = load.stop().await?;
    site.reaches("online").await?;
    let mut connection = site.stores.postgres.connect(DATABASE).await?;
    load.expect_kept(&mut connection, SLOWEST).await?;
    Ok(load)
}

async fn writes_go_straight_through(way: Way) -> Result<()> {
    let site = Site::start(way).await?;
    let load = begin(&site)?;
    load.answered(WRITES).await?;
    let load = end(&site, load).await?;
    let all: u64 = load.ledger.answers().values().sum();
    assert!(
        load.buffered() < all / 10 || load.stalled() > OUTAGE,
        "most of it was buffered: {:?}",
        load.ledger.answers()
    );
    site.node.wait_told(SETTLE, "online").await
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_go_straight_through_a_pooler_that_loses_statements() -> Result<()> {
    writes_go_straight_through(LOSING).await
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_go_straight_through_a_pooler_that_keeps_statements() -> Result<()> {
    writes_go_straight_through(KEEPING).await
}

async fn an_outage_behind_it_loses_nothing(way: Way) -> Result<()> {
    let mut site = Site::start_hasty(way).await?;
    let load = begin(&site)?;
    site.stores.postgres.kill9().await?;
    site.reaches("offline").await?;
    load.answered(WRITES).await?;
    site.stores.postgres.start_again().await?;
    let load = end(&site, load).await?;
    assert!(load.buffered() > 0, "there was no outage");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_behind_a_pooler_that_loses_statements_loses_nothing() -> Result<()> {
    an_outage_behind_it_loses_nothing(LOSING).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_behind_a_pooler_that_keeps_statements_loses_nothing() -> Result<()> {
    an_outage_behind_it_loses_nothing(KEEPING).await
}

async fn pauses_and_deaths_lose_nothing(way: Way) -> Result<()> {
    let mut site = Site::start_hasty(way).await?;
    let load = begin(&site)?;
    site.stores.pooler.command("PAUSE").await?;
    site.reaches("offline").await?;
    load.answered(WRITES).await?;
    site.stores.pooler.command("RESUME").await?;
    site.reaches("online").await?;
    site.stores.pooler.kill9().await?;
    site.reaches("offline").await?;
    load.answered(WRITES).await?;
    site.stores.pooler.start_again().await?;
    let load = end(&site, load).await?;
    assert!(load.buffered() > 0, "there was no outage");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pauses_and_deaths_of_a_pooler_that_loses_statements_lose_nothing() -> Result<()> {
    pauses_and_deaths_lose_nothing(LOSING).await
}

#[tokio::test(flavor = "multi_thread")]
async fn pauses_and_deaths_of_a_pooler_that_keeps_statements_lose_nothing() -> Result<()> {
    pauses_and_deaths_lose_nothing(KEEPING).await
}
