//! Can a wrong clock hurt? One node's wall clock is years off, by libfaketime, and it starts without having seen
//! PostgreSQL; the other node's is right.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use holdfast_tests::{
    Answer, Client, FaultProxy, Flow, Node, Postgres, Program, eventually, tokens,
};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Row};

/// Where Debian puts it; `tests/scripts/install.sh` installs it.
const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

const SETTLE: Duration = Duration::from_secs(30);
const DATABASE: &str = "holdfast";
const DAY_SECONDS: i64 = 24 * 3600;

/// Longer than two nodes can differ about the time: each may be off by half of what a probe may take, which is a second.
const AGREEMENT: Duration = Duration::from_secs(1);

/// Beyond what a machine's own drift between two probes can be.
const IN_THE_FUTURE: &str =
    "SELECT count(*) FROM tasks WHERE updated_at > clock_timestamp() + interval '50 ms'";

/// A token that both clocks find valid.
fn lasting(subject: &str) -> String {
    let mut claims = tokens::claims(subject);
    claims["exp"] = json!(claims["exp"].as_i64().unwrap_or_default() + 100 * 365 * DAY_SECONDS);
    claims["iat"] = json!(0);
    tokens::hs256(tokens::SECRET, &claims)
}

struct Side {
    api: Program,
    syncd: Program,
    proxy: FaultProxy,
    client: Client,
}

impl Side {
    /// Both processes, with PostgreSQL reachable or not, and a wall clock that is wrong by so many days.
    async fn start(postgres: &Postgres, flow: Flow, wrong_days: i64) -> Result<Self> {
        let mut proxy = FaultProxy::start(postgres.port()).await?;
        proxy.set(flow).await?;
        let url = postgres.url_through(proxy.port(), DATABASE);
        let mut node = Node::new()?
            .with("DATABASE_URL", &url)
            .with("SYNC_INTERVAL_SECONDS", "1");
        if wrong_days != 0 {
            node.set("LD_PRELOAD", LIBRARY);
            node.set("DONT_FAKE_MONOTONIC", "1");
            node.set("FAKETIME", &format!("{wrong_days:+}d"));
        }
        let api = node.start_api().await?;
        Ok(Side {
            client: api.client(&lasting("somebody")),
            syncd: node.start_syncd().await?,
            api,
            proxy,
        })
    }

    async fn cut(&mut self) -> Result<()> {
        self.proxy.set(Flow::Cut).await?;
        self.api.wait_status(SETTLE, "offline").await.map(drop)
    }

    async fn heal(&mut self) -> Result<()> {
        self.proxy.set(Flow::Pass).await?;
        self.api.wait_status(SETTLE, "online").await.map(drop)
    }
}

async fn fate(client: &Client, answer: &Answer) -> Result<Value> {
    let location = answer.expect_header("operation-location");
    let id = location.rsplit('/').next().context("no operation")?;
    let ended = client.operation(id, 60).await?;
    Ok(ended.expect(200).json()["state"].clone())
}

async fn number(postgres: &Postgres, query: &str) -> Result<i64> {
    let row = sqlx::query(AssertSqlSafe(query.to_owned()))
        .fetch_one(&mut postgres.connect(DATABASE).await?)
        .await?;
    Ok(row.try_get(0)?)
}

fn year(task: &Value) -> i64 {
    let updated_at = task["updated_at"].as_str().unwrap_or_default();
    updated_at[..4].parse().unwrap_or_default()
}

/// A node that is wrong by `wrong_days` and has never seen PostgreSQL writes between two writes of another node's.
async fn writes_come_to_lie_where_they_were_made(wrong_days: i64) -> Result<()> {
    ensure!(
        Path::new(LIBRARY).exists(),
        "libfaketime is missing: run tests/scripts/install.sh"
    );
    let postgres = Postgres::start().await?;
    postgres.create_database(DATABASE).await?;
    let right = Side::start(&postgres, Flow::Pass, 0).await?;
    right.api.wait_status(SETTLE, "online").await?;
    let mut wrong = Side::start(&postgres, Flow::Cut, wrong_days).await?;
    wrong.api.wait_status(SETTLE, "offline").await?;

    let made = right.client.create_task(&json!({"title": "made"})).await?;
    let path = format!("/tasks/{}", made.expect(201).id());
    tokio::time::sleep(AGREEMENT).await;
    let between = json!({"title": "offline", "description": "offline"});
    let between = wrong.client.patch(&path, &between).await?;
    between.expect(202);
    let own = wrong.client.create_task(&json!({"title": "own"})).await?;
    let own_path = format!("/tasks/{}", own.expect(202).id());
    let wrong_year = year(own.json());
    let later = wrong
        .client
        .patch(&own_path, &json!({"title": "own, later"}))
        .await?;
    later.expect(202);
    tokio::time::sleep(AGREEMENT).await;
    let newest = right
        .client
        .patch(&path, &json!({"title": "newest"}))
        .await?;
    let right_year = year(newest.expect(200).json());
    assert_ne!(wrong_year, right_year, "the clock was not wrong");

    wrong.heal().await?;
    assert_eq!(
        fate(&wrong.client, &between).await?,
        "applied",
        "its description is the newest"
    );
    for side in [&right, &wrong] {
        let task = side.client.get(&path).await?;
        let task = task.expect(200).json();
        assert_eq!(
            (&task["title"], &task["description"]),
            (&json!("newest"), &json!("offline")),
            "each field has its newest write: {task}"
        );
        let own = side.client.get(&own_path).await?;
        assert_eq!(own.expect(200).json()["title"], "own, later");
        assert_eq!(year(own.json()), right_year);
    }
    assert_eq!(number(&postgres, IN_THE_FUTURE).await?, 0);

    // The wrong node's later writes win, in the next outage too, whoever of its processes makes them.
    let direct = wrong
        .client
        .patch(&path, &json!({"title": "direct"}))
        .await?;
    assert_eq!(direct.expect(200).json()["title"], "direct");
    wrong.cut().await?;
    right
        .client
        .patch(&path, &json!({"title": "before"}))
        .await?
        .expect(200);
    tokio::time::sleep(AGREEMENT).await;
    wrong.api.kill9().await?;
    wrong.api.restart().await?;
    wrong.api.wait_status(SETTLE, "offline").await?;
    let offline = wrong
        .client
        .patch(&path, &json!({"title": "after"}))
        .await?;
    offline.expect(202);
    wrong.heal().await?;
    let read = right.client.get(&path).await?;
    assert_eq!(read.expect(200).json()["title"], "after");
    assert_eq!(number(&postgres, IN_THE_FUTURE).await?, 0);
    expect_skew_shown(&wrong, -wrong_days).await
}

/// That the machine's clock is wrong is no secret.
async fn expect_skew_shown(side: &Side, days: i64) -> Result<()> {
    for program in [&side.api, &side.syncd] {
        let client = program.anonymous();
        eventually(SETTLE, "the skew to be shown", async || {
            let metrics = client.get_outside("/metrics").await;
            let metrics = metrics.map_err(|error| format!("{error:#}"))?;
            let line = metrics
                .text()
                .lines()
                .find(|line| line.starts_with("holdfast_clock_skew_seconds "));
            let shown = line
                .and_then(|line| line.split(' ').nth(1))
                .and_then(|value| value.parse::<f64>().ok());
            let expected = days * DAY_SECONDS;
            match shown {
                Some(seconds) if (seconds - expected as f64).abs() < 60.0 => Ok(()),
                other => Err(format!("{other:?} instead of {expected}")),
            }
        })
        .await?;
    }
    assert!(
        side.syncd.log().contains("clock is wrong"),
        "{}",
        side.syncd.log()
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_booted_offline_years_ahead_beats_nobody_s_newer_write() -> Result<()> {
    writes_come_to_lie_where_they_were_made(1_200).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_booted_offline_years_behind_loses_to_nobody_s_older_write() -> Result<()> {
    writes_come_to_lie_where_they_were_made(-1_200).await
}
