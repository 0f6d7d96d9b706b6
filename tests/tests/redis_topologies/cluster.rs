//! A node of a cluster is lost, and its replica takes over.

use anyhow::Result;
use holdfast_tests::{RedisCluster, tokens};

use crate::site::{Site, Traffic, end_session, is_applied, lists_sessions, log_out};

/// The key that every node reads twice a second, and every revocation changes.
const BUSIEST_KEY: &str = "revocations";

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_master_costs_no_request_no_revocation_and_no_session() -> Result<()> {
    let mut cluster = RedisCluster::start().await?;
    let site = Site::start(&cluster.url()?).await?;
    let users: Vec<String> = (0..12).map(|number| format!("user-{number}")).collect();
    let tokens_of_users: Vec<[String; 2]> = users
        .iter()
        .map(|user| [tokens::valid(user), tokens::valid(user)])
        .collect();
    for token in tokens_of_users.iter().flatten() {
        site.admits(token).await?;
    }
    for [token, _] in &tokens_of_users {
        lists_sessions(&site.one.api, token, 2).await?;
    }
    let [before, during, after] = ["before", "during", "after"].map(tokens::valid);
    let [staying, ended] = ["staying", "staying"].map(tokens::valid);
    for token in [&staying, &ended, &before, &during, &after] {
        site.admits(token).await?;
    }
    let traffic = Traffic::start(&site, "takeover").await?;
    log_out(&site.one.api, &before).await?;
    site.refuses(&before).await?;
    cluster.wait_replicated().await?;

    let master = cluster.master_of(BUSIEST_KEY).await?;
    let well = site.redis_state().await?;
    cluster.node(master).kill9().await?;
    log_out(&site.other.api, &during).await?;
    site.wait_redis_lost(&well).await?;
    let operation = end_session(&site.one.api, &staying, &ended).await?;
    cluster.wait_takeover(BUSIEST_KEY, master).await?;
    site.wait_online().await?;
    site.refuses(&during).await?;
    if let Some(operation) = operation {
        is_applied(&site.one.api, &staying, &operation).await?;
    }
    for [token, _] in &tokens_of_users {
        lists_sessions(&site.other.api, token, 2).await?;
    }

    cluster.node(master).start_again().await?;
    log_out(&site.one.api, &after).await?;
    for token in [&ended, &before, &during, &after] {
        site.refuses(token).await?;
    }
    site.wait_online().await?;
    traffic.end_well(&site).await
}
