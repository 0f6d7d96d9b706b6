//! Does `Prefer: handling=strict` keep a write out of the buffer, whatever the
//! store does, and is nothing of a refused one kept?

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use holdfast_tests::{
    Answer, Client, FaultProxy, Flow, Node, Postgres, Program, Redis, eventually, tokens,
};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use sqlx::Row;
use uuid::Uuid;

const DATABASE: &str = "holdfast";
const SETTLE: Duration = Duration::from_secs(30);
const STRICT: &str = "handling=strict";

/// PostgreSQL behind a proxy, an API, and nobody who drains.
struct Site {
    api: Program,
    client: Client,
    proxy: FaultProxy,
    postgres: Postgres,
    node: Node,
}

async fn start() -> Result<Site> {
    start_with(&[]).await
}

async fn start_with(settings: &[(&str, &str)]) -> Result<Site> {
    let postgres = Postgres::start().await?;
    let proxy = FaultProxy::start(postgres.port()).await?;
    postgres.create_database(DATABASE).await?;
    let url = postgres.url_through(proxy.port(), DATABASE);
    let mut node = Node::new()?.with("DATABASE_URL", &url);
    for (name, value) in settings {
        node.set(name, value);
    }
    node.syncd(&["migrate"]).await?.expect_code(0);
    let api = node.start_api().await?;
    api.wait_status(SETTLE, "online").await?;
    let client = api.client(&tokens::valid("somebody"));
    Ok(Site {
        api,
        client,
        proxy,
        postgres,
        node,
    })
}

impl Site {
    async fn strictly(&self, request: RequestBuilder) -> Result<Answer> {
        self.client.send(request.header("prefer", STRICT)).await
    }

    fn post(&self, key: &str) -> RequestBuilder {
        let request = self.client.request(Method::POST, "/tasks");
        let request = request.header("idempotency-key", key);
        request.json(&json!({"title": key}))
    }

    async fn pending(&self) -> Result<u64> {
        let health = self.api.health().await?;
        health["buffer"]["pending"].as_u64().context("no number")
    }

    /// How many tasks with this title PostgreSQL has, asked past the proxy.
    async fn count_titled(&self, title: &str) -> Result<i64> {
        let mut connection = self.postgres.connect(DATABASE).await?;
        let row = sqlx::query("SELECT count(*) FROM tasks WHERE title = $1")
            .bind(title)
            .fetch_one(&mut connection)
            .await?;
        Ok(row.try_get(0)?)
    }
}

#[track_caller]
fn expect_heeded(answer: &Answer) -> &Answer {
    assert_eq!(answer.expect_header("preference-applied"), STRICT);
    answer
}

/// A refusal that says what it waits for and when to come back.
#[track_caller]
fn expect_refused<'a>(answer: &'a Answer, words: &str) -> &'a Answer {
    expect_heeded(answer.expect_problem(503));
    assert_eq!(answer.json()["type"], "/problems/strict-not-met");
    let detail = answer.json()["detail"].as_str().unwrap_or_default();
    assert!(detail.contains(words), "{detail}");
    let seconds: u64 = answer.expect_header("retry-after").parse().unwrap_or(0);
    assert!((1..=60).contains(&seconds), "Retry-After: {seconds}");
    answer
}

#[tokio::test]
async fn with_the_store_away_strict_writes_are_refused_and_nothing_is_kept() -> Result<()> {
    let mut site = start().await?;
    let client = &site.client;
    let created = expect_heeded(&site.strictly(site.post("while up")).await?).clone();
    let path = format!("/tasks/{}", created.expect(201).id());
    site.proxy.set(Flow::Cut).await?;
    site.api.wait_status(SETTLE, "offline").await?;

    let elsewhere = format!("/tasks/{}", Uuid::new_v4());
    let patch = |path: &str| {
        client
            .request(Method::PATCH, path)
            .json(&json!({"priority": 1}))
    };
    let put = |path: &str| {
        client
            .request(Method::PUT, path)
            .json(&json!({"title": "put"}))
    };
    let writes = [
        site.post("refused"),
        put(&path),
        put(&elsewhere),
        patch(&path),
        patch(&elsewhere),
        client.request(Method::DELETE, &path),
        client.request(Method::PUT, "/profile").json(&json!({})),
        client
            .request(Method::PATCH, "/profile")
            .json(&json!({"bio": "x"})),
    ];
    for write in writes {
        expect_refused(&site.strictly(write).await?, "the store is away");
    }
    assert_eq!(site.pending().await?, 0);

    // Other wishes, and none, are the ordinary case.
    for wish in ["handling=lenient", "respond-async, wait=5", "strict"] {
        let answer = client.send(site.post(wish).header("prefer", wish)).await?;
        assert_eq!(
            answer.expect(202).header("preference-applied"),
            None,
            "{wish}"
        );
    }
    assert_eq!(site.pending().await?, 3);
    // A wish has nothing to say about reading.
    let read = client.request(Method::GET, &path).header("prefer", STRICT);
    assert_eq!(
        client.send(read).await?.expect(200).json()["title"],
        "while up"
    );

    let _syncd = site.node.start_syncd().await?;
    site.proxy.set(Flow::Pass).await?;
    site.api.wait_status(SETTLE, "online").await?;
    assert_eq!(site.count_titled("refused").await?, 0);
    expect_heeded(&site.strictly(site.post("refused")).await?).expect(201);
    expect_heeded(&site.strictly(put(&elsewhere)).await?).expect(201);
    expect_heeded(&site.strictly(patch(&path)).await?).expect(200);
    let delete = || client.request(Method::DELETE, &path);
    expect_heeded(&site.strictly(delete()).await?).expect(204);
    expect_heeded(&site.strictly(delete()).await?).expect(204);
    Ok(())
}

#[tokio::test]
async fn behind_earlier_writes_a_strict_one_is_refused_until_they_are_drained() -> Result<()> {
    let mut site = start().await?;
    site.proxy.set(Flow::Cut).await?;
    site.api.wait_status(SETTLE, "offline").await?;
    let waiting = site.client.send(site.post("waits")).await?;
    let path = format!("/tasks/{}", waiting.expect(202).id());
    site.proxy.set(Flow::Pass).await?;
    site.api.wait_status(SETTLE, "catching_up").await?;

    let patch = || {
        let request = site.client.request(Method::PATCH, &path);
        request.json(&json!({"priority": 1}))
    };
    expect_refused(&site.strictly(patch()).await?, "earlier writes");
    assert_eq!(site.pending().await?, 1);
    // What nothing waits before is made at once.
    expect_heeded(&site.strictly(site.post("doesn't wait")).await?).expect(201);

    let _syncd = site.node.start_syncd().await?;
    site.api.wait_status(SETTLE, "online").await?;
    let patched = site.strictly(patch()).await?;
    assert_eq!(expect_heeded(patched.expect(200)).json()["priority"], 1);
    Ok(())
}

#[tokio::test]
async fn an_attempt_without_an_answer_says_that_it_may_have_taken_effect() -> Result<()> {
    // No probe comes in between and takes the store for away.
    let mut site = start_with(&[
        ("HEALTH_INTERVAL_MS", "60000"),
        ("STORE_TIMEOUT_MS", "2000"),
    ])
    .await?;
    let unnamed = |title: &str| {
        let request = site.client.request(Method::POST, "/tasks");
        request.json(&json!({"title": title}))
    };
    let (warm, lost) = (unnamed("warm"), unnamed("answer lost"));
    expect_heeded(site.strictly(warm).await?.expect(201));
    // Its connection, used this very moment, isn't asked first whether it lives.
    site.client.get("/tasks").await?.expect(200);
    // PostgreSQL gets the write and makes it, and its answer gets lost.
    site.proxy.set(Flow::HalfOpen).await?;
    let lost = site.strictly(lost).await?;
    expect_refused(&lost, "may have taken effect");
    assert_eq!(site.pending().await?, 0);
    eventually(SETTLE, "the write to be made", async || {
        match site.count_titled("answer lost").await {
            Ok(1) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await?;
    // PostgreSQL gets nothing.
    site.proxy.set(Flow::Pass).await?;
    site.api.wait_status(SETTLE, "online").await?;
    site.strictly(site.post("warm again")).await?.expect(201);
    site.client.get("/tasks").await?.expect(200);
    site.proxy.set(Flow::BlackHole).await?;
    let swallowed = site.strictly(site.post("swallowed")).await?;
    expect_refused(&swallowed, "may have taken effect");
    assert_eq!(site.pending().await?, 0);

    site.proxy.set(Flow::Cut).await?;
    site.proxy.set(Flow::Pass).await?;
    site.api.wait_status(SETTLE, "online").await?;
    site.strictly(site.post("swallowed")).await?.expect(201);
    let again = site.strictly(site.post("swallowed")).await?;
    assert_eq!(
        again.expect(201).header("idempotency-replayed"),
        Some("true")
    );
    for title in ["answer lost", "swallowed"] {
        assert_eq!(site.count_titled(title).await?, 1, "{title}");
    }
    Ok(())
}

#[tokio::test]
async fn a_strict_repeat_of_a_buffered_write_is_answered_as_that_was() -> Result<()> {
    let mut site = start().await?;
    site.proxy.set(Flow::Cut).await?;
    site.api.wait_status(SETTLE, "offline").await?;
    let first = site.client.send(site.post("once")).await?;
    first.expect(202);
    let repeat = site.strictly(site.post("once")).await?;
    assert_eq!(repeat.expect(202).id(), first.id());
    assert_eq!(repeat.expect_header("idempotency-replayed"), "true");
    assert_eq!(
        repeat.header("preference-applied"),
        None,
        "it waits all the same"
    );
    assert_eq!(site.pending().await?, 1);
    // And the other way round: refused first, then accepted, is one task.
    expect_refused(
        &site.strictly(site.post("refused first")).await?,
        "the store is away",
    );
    let accepted = site.client.send(site.post("refused first")).await?;
    assert_eq!(accepted.expect(202).header("idempotency-replayed"), None);

    let _syncd = site.node.start_syncd().await?;
    site.proxy.set(Flow::Pass).await?;
    site.api.wait_status(SETTLE, "online").await?;
    for (title, id) in [("once", first.id()), ("refused first", accepted.id())] {
        let again = site.strictly(site.post(title)).await?;
        assert_eq!(again.expect_header("idempotency-replayed"), "true");
        assert_eq!(again.id(), id);
        assert_eq!(site.count_titled(title).await?, 1, "{title}");
    }
    Ok(())
}

#[tokio::test]
async fn without_a_store_every_write_is_made_at_once() -> Result<()> {
    let node = Node::new()?;
    let api = node.start_api().await?;
    let client = api.client(&tokens::valid("somebody"));
    let post = client
        .request(Method::POST, "/tasks")
        .json(&json!({"title": "x"}));
    let created = client.send(post.header("prefer", STRICT)).await?;
    let path = format!("/tasks/{}", expect_heeded(created.expect(201)).id());
    let patch = client
        .request(Method::PATCH, &path)
        .json(&json!({"title": "y"}));
    let patched = client.send(patch.header("prefer", STRICT)).await?;
    expect_heeded(patched.expect(200));
    let delete = client.request(Method::DELETE, &path);
    expect_heeded(
        client
            .send(delete.header("prefer", STRICT))
            .await?
            .expect(204),
    );
    let profile = client
        .request(Method::PATCH, "/profile")
        .json(&json!({"bio": "x"}));
    expect_heeded(
        client
            .send(profile.header("prefer", STRICT))
            .await?
            .expect(200),
    );
    Ok(())
}

#[tokio::test]
async fn a_log_out_is_taken_however_it_is_to_be_handled() -> Result<()> {
    let mut redis = Redis::start().await?;
    let node = Node::new()?.with("REDIS_URL", &redis.url());
    let api = node.start_api().await?;
    let up = |health: &Value| health["stores"]["redis"]["state"] == "up";
    api.wait_health(SETTLE, "Redis to be up", up).await?;
    redis.kill9().await?;
    let down = |health: &Value| health["stores"]["redis"]["state"] == "down";
    api.wait_health(SETTLE, "Redis to be down", down).await?;
    let client = api.client(&tokens::valid("somebody"));
    let log_out = client.request(Method::DELETE, "/sessions/current");
    let answer = client.send(log_out.header("prefer", STRICT)).await?;
    assert_eq!(answer.expect(202).header("preference-applied"), None);
    client.get("/tasks").await?.expect_problem(401);
    Ok(())
}

#[tokio::test]
async fn the_time_to_come_back_grows_with_the_outage() -> Result<()> {
    let mut site = start().await?;
    let cut = Instant::now();
    site.proxy.set(Flow::Cut).await?;
    site.api.wait_status(SETTLE, "offline").await?;
    let seen_offline = Instant::now();
    loop {
        let at_least = seen_offline.elapsed().as_secs_f64();
        let refused = site.strictly(site.post("refused")).await?;
        let at_most = cut.elapsed().as_secs_f64() * 1.25;
        let told: f64 = refused.expect(503).expect_header("retry-after").parse()?;
        assert!(
            (at_least.max(1.0)..=at_most.max(1.25).ceil()).contains(&told),
            "{told} s after {at_least} to {at_most}"
        );
        if told >= 4.0 {
            return Ok(());
        }
        ensure!(cut.elapsed() < SETTLE, "it never grew");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
