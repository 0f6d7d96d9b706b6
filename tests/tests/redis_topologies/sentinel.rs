//! A master is lost, and the sentinels make its replica master.

use anyhow::Result;
use holdfast_tests::redis_service::{Access, RedisService};
use holdfast_tests::{Redis, eventually, tokens};

use crate::site::{SETTLE, Site, Traffic, end_session, is_applied, lists_sessions, log_out};

/// Waits until a server has become a replica.
async fn is_replica(server: &Redis) -> Result<()> {
    eventually(
        SETTLE,
        "the old master to be demoted",
        async || match server.ask("INFO replication").await {
            Ok(answer) if answer.contains("role:slave") => Ok(()),
            Ok(answer) => Err(answer),
            Err(error) => Err(format!("{error:#}")),
        },
    )
    .await
}

/// Before, while and after the master is lost somebody logs out, and nobody
/// else notices anything.
async fn a_failover(
    mut service: RedisService,
    lose: impl AsyncFnOnce(&mut Redis) -> Result<()>,
    find_again: impl AsyncFnOnce(&mut Redis) -> Result<()>,
) -> Result<()> {
    let site = Site::start(&service.url()?).await?;
    let [staying, before, during, after, last] =
        ["staying", "before", "during", "after", "last"].map(tokens::valid);
    let ended = tokens::valid("staying");
    for token in [&staying, &ended, &before, &during, &after, &last] {
        site.admits(token).await?;
    }
    let traffic = Traffic::start(&site, "failover").await?;
    log_out(&site.one.api, &before).await?;
    site.refuses(&before).await?;

    let master = service.master_by(0).await?;
    service.be_watchful().await?;
    let well = site.redis_state().await?;
    lose(service.server(master)).await?;
    log_out(&site.one.api, &during).await?;
    site.wait_redis_lost(&well).await?;
    let operation = end_session(&site.one.api, &staying, &ended).await?;
    site.admits(&staying).await?;
    let new_master = service.wait_failover(master).await?;
    site.wait_online().await?;
    site.refuses(&during).await?;
    if let Some(operation) = operation {
        is_applied(&site.one.api, &staying, &operation).await?;
    }

    find_again(service.server(master)).await?;
    log_out(&site.other.api, &after).await?;
    site.refuses(&after).await?;
    is_replica(service.server(master)).await?;
    site.wait_online().await?;
    log_out(&site.other.api, &last).await?;
    for token in [&ended, &before, &during, &after, &last] {
        site.refuses(token).await?;
        let id = tokens::session_id(token)?;
        let question = format!("EXISTS revocation:{id}");
        let told = service.server(new_master).ask(&question).await?;
        assert_eq!(told, ":1\r\n", "the new master doesn't know of it");
    }
    site.admits(&staying).await?;
    lists_sessions(&site.other.api, &staying, 1).await?;
    traffic.end_well(&site).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_master_costs_no_request_and_no_revocation() -> Result<()> {
    let service = RedisService::start(Access::default()).await?;
    a_failover(
        service,
        async |master| master.kill9().await,
        async |master| master.start_again().await,
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_master_costs_no_request_and_no_revocation() -> Result<()> {
    let service = RedisService::start(Access::default()).await?;
    a_failover(
        service,
        async |master| master.freeze(),
        async |master| master.thaw(),
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sentinel_named_first_may_be_lost_with_the_master() -> Result<()> {
    let mut service = RedisService::start(Access::default()).await?;
    let site = Site::start(&service.url()?).await?;
    let token = tokens::valid("somebody");
    site.admits(&token).await?;
    let master = service.master_by(0).await?;
    service.be_watchful().await?;
    let well = site.redis_state().await?;
    service.sentinels()[0].freeze()?;
    service.server(master).freeze()?;
    site.wait_redis_lost(&well).await?;
    site.wait_online().await?;
    log_out(&site.one.api, &token).await?;
    site.refuses(&token).await
}
