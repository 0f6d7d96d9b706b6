//! Does an outage stay invisible to writers, and is everything there once
//! afterwards? Real PostgreSQL and Redis, real processes, real kills.

use std::time::Duration;

use anyhow::{Context, Result};
use holdfast_tests::load::{Load, Pace};
use holdfast_tests::stall_watch::OUTAGE;
use holdfast_tests::story::{self, Fault, Plan};
use holdfast_tests::{Node, Postgres, Program, Redis, tokens};
use serde_json::json;
use tokio::sync::{Mutex, MutexGuard};

const DATABASE: &str = "holdfast";
const SETTLE: Duration = Duration::from_secs(30);

/// These tests measure time, so they run one after the other.
async fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}

async fn tell(plan: Plan) -> Result<()> {
    let _turn = alone().await;
    let summary = story::tell(plan, |event| eprintln!("{event}")).await?;
    eprintln!("{summary}");
    let broken = summary.broken_promises();
    assert!(
        broken.is_empty(),
        "broken promises:\n  {}",
        broken.join("\n  ")
    );
    let findings = &summary.findings;
    assert!(findings.acknowledged > 100, "hardly anything was written");
    assert_eq!(findings.present_once, findings.acknowledged);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_and_both_processes_are_killed() -> Result<()> {
    tell(Plan {
        outage: Duration::from_secs(8),
        ..Plan::demo()
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_hangs() -> Result<()> {
    tell(Plan {
        fault: Fault::Hung,
        outage: Duration::from_secs(6),
        kill_rounds: 0,
        ..Plan::demo()
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_hangs_and_both_processes_are_killed() -> Result<()> {
    tell(Plan {
        fault: Fault::Hung,
        outage: Duration::from_secs(8),
        kill_rounds: 1,
        ..Plan::demo()
    })
    .await
}

struct Online {
    api: Program,
    _syncd: Program,
    postgres: Postgres,
    redis: Redis,
    _node: Node,
}

async fn start_online() -> Result<Online> {
    let postgres = Postgres::start().await?;
    let redis = Redis::start().await?;
    let url = postgres.create_database(DATABASE).await?;
    let node = Node::new()?
        .with("DATABASE_URL", &url)
        .with("REDIS_URL", &redis.url());
    node.syncd(&["migrate"]).await?.expect_code(0);
    let syncd = node.start_syncd().await?;
    let api = node.start_api().await?;
    api.wait_status(SETTLE, "online").await?;
    Ok(Online {
        api,
        _syncd: syncd,
        postgres,
        redis,
        _node: node,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn with_redis_dead_tasks_go_straight_to_postgres() -> Result<()> {
    let _turn = alone().await;
    let mut online = start_online().await?;
    let pace = Pace {
        writers: 3,
        writes_per_second: 30,
    };
    let load = Load::start(&online.api.base_url(), "redis-dead", pace)?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    online.redis.kill9().await?;
    let health = online.api.wait_status(SETTLE, "offline").await?;
    assert_eq!(health["stores"]["redis"]["state"], "down", "{health}");
    assert_eq!(health["stores"]["postgres"]["state"], "up", "{health}");
    tokio::time::sleep(Duration::from_secs(2)).await;
    online.redis.start_again().await?;
    online.api.wait_status(SETTLE, "online").await?;

    let load = load.stop().await?;
    assert_eq!(load.complaints(), [""; 0]);
    let answers = load.ledger.answers();
    let buffered = answers.get(&202);
    assert!(
        buffered.is_none() || load.stalled() > OUTAGE,
        "tasks were buffered though PostgreSQL was up: {answers:?}"
    );
    let findings = load
        .ledger
        .compare(&mut online.postgres.connect(DATABASE).await?)
        .await?;
    assert_eq!(findings.broken_promises(), [""; 0]);
    assert!(findings.acknowledged > 30, "hardly anything was written");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn with_redis_dead_tokens_work_and_a_log_out_holds_at_once_and_afterwards() -> Result<()> {
    let _turn = alone().await;
    let mut online = start_online().await?;
    let staying = online.api.client(&tokens::valid("staying"));
    let leaving = online.api.client(&tokens::valid("leaving"));
    staying.get("/tasks").await?.expect(200);
    leaving.get("/tasks").await?.expect(200);

    online.redis.kill9().await?;
    online.api.wait_status(SETTLE, "offline").await?;
    online
        .api
        .client(&tokens::valid("newcomer"))
        .get("/tasks")
        .await?
        .expect(200);
    leaving
        .delete("/sessions/current")
        .await?
        .expect_in(&[202, 204]);
    leaving.get("/tasks").await?.expect_problem(401);
    staying.get("/tasks").await?.expect(200);

    online.redis.start_again().await?;
    online.api.wait_status(SETTLE, "online").await?;
    leaving.get("/tasks").await?.expect_problem(401);
    staying.get("/tasks").await?.expect(200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_tells_what_became_of_a_buffered_write() -> Result<()> {
    let _turn = alone().await;
    let mut online = start_online().await?;
    let client = online.api.client(&tokens::valid("somebody"));
    online.postgres.kill9().await?;
    let created = client
        .create_task(&json!({"title": "in the outage"}))
        .await?;
    created.expect(202);
    assert_eq!(created.expect_header("sync-state"), "pending");
    assert_eq!(created.json()["sync_state"], "pending");
    let etag = created.expect_header("etag").to_owned();
    let task = format!("/tasks/{}", created.id());
    let location = created.expect_header("operation-location");
    let operation = location.strip_prefix("/api/v1/operations/");
    let operation = operation
        .context("Operation-Location is elsewhere")?
        .to_owned();
    let pending = client.operation(&operation, 0).await?;
    assert_eq!(pending.expect(200).json()["state"], "pending");
    assert_eq!(pending.json()["entity_id"], created.id());

    online.postgres.start_again().await?;
    let applied = client.operation(&operation, 30).await?;
    assert_eq!(
        applied.expect(200).json()["state"],
        "applied",
        "{}",
        applied.text()
    );
    // syncd may have seen it return before this process did.
    online.api.wait_status(SETTLE, "online").await?;
    let read = client.get(&task).await?;
    assert_eq!(read.expect(200).json()["sync_state"], "synced");
    assert_eq!(
        read.expect_header("etag"),
        etag,
        "the tag changed although the task didn't"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_in_the_outage_is_final() -> Result<()> {
    let _turn = alone().await;
    let mut online = start_online().await?;
    let client = online.api.client(&tokens::valid("somebody"));
    let created = client.create_task(&json!({"title": "short-lived"})).await?;
    let task = format!("/tasks/{}", created.expect(201).id());

    online.postgres.kill9().await?;
    online.api.wait_status(SETTLE, "offline").await?;
    client.delete(&task).await?.expect(202);
    client.get(&task).await?.expect_problem(404);
    client.delete(&task).await?.expect_in(&[202, 204]);

    online.postgres.start_again().await?;
    online.api.wait_status(SETTLE, "online").await?;
    client.get(&task).await?.expect_problem(404);
    client
        .put(&task, &json!({"title": "back again"}))
        .await?
        .expect_problem(410);
    Ok(())
}
