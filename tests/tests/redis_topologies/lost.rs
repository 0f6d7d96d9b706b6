//! Redis has acknowledged a revocation, and loses it.

use anyhow::{Result, ensure};
use holdfast_tests::redis_service::{Access, RedisService};
use holdfast_tests::{Node, Program, Redis, eventually, tokens};

use crate::site::{SETTLE, log_out, refuses};

/// A node without PostgreSQL, of which nothing is asked here.
async fn start_api(redis_url: &str) -> Result<(Program, Node)> {
    let node = Node::new()?.with("REDIS_URL", redis_url);
    let api = node.start_api().await?;
    let is_up = |health: &serde_json::Value| health["stores"]["redis"]["state"] == "up";
    api.wait_health(SETTLE, "Redis to be up", is_up).await?;
    Ok((api, node))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_that_costs_redis_everything_costs_no_revocation() -> Result<()> {
    let mut redis = Redis::start().await?;
    let token = tokens::valid("somebody");
    let (knowing, _node) = start_api(&redis.url()).await?;
    log_out(&knowing, &token).await?;
    redis.kill9().await?;
    redis.start_again().await?;
    let (newcomer, _other_node) = start_api(&redis.url()).await?;
    refuses(&newcomer, &token).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_to_a_replica_that_lacks_it_costs_no_revocation() -> Result<()> {
    let access = Access {
        password: Some("secret".to_owned()),
        ..Access::default()
    };
    let mut service = RedisService::start(access).await?;
    let (kept, lost) = (tokens::valid("kept"), tokens::valid("lost"));
    let (knowing, _node) = start_api(&service.url()?).await?;
    log_out(&knowing, &kept).await?;

    // The replica is cut off, and can't come back in.
    let master = service.master_by(0).await?;
    let replica = 1 - master;
    let told = service
        .server(replica)
        .ask("CONFIG SET masterauth wrong")
        .await?;
    ensure!(told == "+OK\r\n", "{told}");
    service
        .server(master)
        .ask("CLIENT KILL TYPE replica")
        .await?;
    eventually(SETTLE, "the replica to be cut off", async || match service
        .server(replica)
        .ask("INFO replication")
        .await
    {
        Ok(answer) if answer.contains("master_link_status:down") => Ok(()),
        Ok(answer) => Err(answer),
        Err(error) => Err(format!("{error:#}")),
    })
    .await?;
    log_out(&knowing, &lost).await?;
    let question = format!("EXISTS revocation:{}", tokens::session_id(&lost)?);
    eventually(SETTLE, "the master to know", async || {
        match service.server(master).ask(&question).await {
            Ok(answer) if answer == ":1\r\n" => Ok(()),
            Ok(answer) => Err(answer),
            Err(error) => Err(format!("{error:#}")),
        }
    })
    .await?;
    service.be_watchful().await?;
    service.server(master).kill9().await?;
    let new_master = service.wait_failover(master).await?;
    ensure!(new_master == replica, "there is no other");

    let (newcomer, _other_node) = start_api(&service.url()?).await?;
    refuses(&newcomer, &kept).await?;
    refuses(&newcomer, &lost).await
}
