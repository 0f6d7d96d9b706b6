//! Does Holdfast work without any database, keep what it was given, and hand
//! all of it over once a database is configured?

use std::time::Duration;

use anyhow::{Context, Result};
use holdfast_tests::{Client, Ledger, Node, Postgres, Program, Redis, tokens};
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

const SETTLE: Duration = Duration::from_secs(30);
const STOP: Duration = Duration::from_secs(25);

struct Pair {
    api: Program,
    syncd: Program,
}

async fn start(node: &Node) -> Result<Pair> {
    let syncd = node.start_syncd().await?;
    let api = node.start_api().await?;
    Ok(Pair { api, syncd })
}

impl Pair {
    fn client(&self) -> Client {
        self.api.client(&tokens::valid("somebody"))
    }

    async fn terminate(&mut self) -> Result<()> {
        let api = self.api.terminate(STOP).await?;
        assert!(api.success(), "holdfast-api: {api}");
        let syncd = self.syncd.terminate(STOP).await?;
        assert!(syncd.success(), "syncd: {syncd}");
        Ok(())
    }

    async fn kill9(&mut self) -> Result<()> {
        self.api.kill9().await?;
        self.syncd.kill9().await
    }

    async fn restart(&mut self) -> Result<()> {
        self.syncd.restart().await?;
        self.api.restart().await
    }
}

/// The listed tasks, oldest first.
async fn titles(client: &Client) -> Result<Vec<String>> {
    let list = client.get("/tasks?sort=created_at").await?;
    let items = list.expect(200).json()["items"]
        .as_array()
        .context("no items")?;
    let titles = items.iter().filter_map(|item| item["title"].as_str());
    Ok(titles.map(str::to_owned).collect())
}

#[tokio::test]
async fn answers_are_as_online() -> Result<()> {
    let node = Node::new()?;
    let pair = start(&node).await?;
    let client = pair.client();
    let health = pair.api.health().await?;
    assert_eq!(health["status"], "embedded", "{health}");
    assert_eq!(
        health["stores"]["postgres"]["state"], "disabled",
        "{health}"
    );
    assert_eq!(health["stores"]["redis"]["state"], "disabled", "{health}");

    let created = client.create_task(&json!({"title": "  Buy milk "})).await?;
    created.expect(201);
    let task = created.json();
    assert_eq!(task["title"], "Buy milk");
    assert_eq!(task["status"], "todo");
    assert_eq!(task["priority"], 3);
    assert_eq!(task["tags"], json!([]));
    assert_eq!(task["due_at"], Value::Null);
    assert_eq!(task["sync_state"], "synced");
    assert_eq!(created.expect_header("sync-state"), "synced");
    let path = format!("/tasks/{}", created.id());
    assert_eq!(created.expect_header("location"), format!("/api/v1{path}"));

    let read = client.get(&path).await?;
    assert_eq!(read.expect(200).json(), task);
    assert_eq!(read.expect_header("etag"), created.expect_header("etag"));
    let done = client.patch(&path, &json!({"status": "done"})).await?;
    assert_ne!(done.expect(200).json()["completed_at"], Value::Null);
    assert_ne!(done.expect_header("etag"), created.expect_header("etag"));
    client.delete(&path).await?.expect(204);
    client.delete(&path).await?.expect(204);
    client.get(&path).await?.expect_problem(404);
    Ok(())
}

#[tokio::test]
async fn data_outlives_a_restart_and_a_kill() -> Result<()> {
    let node = Node::new()?;
    let mut pair = start(&node).await?;
    let client = pair.client();
    client
        .create_task(&json!({"title": "before the restart"}))
        .await?
        .expect(201);
    pair.terminate().await?;
    pair.restart().await?;
    assert_eq!(titles(&client).await?, ["before the restart"]);

    let second = client
        .create_task(&json!({"title": "before the kill"}))
        .await?;
    second.expect(201);
    pair.kill9().await?;
    pair.restart().await?;
    assert_eq!(
        titles(&client).await?,
        ["before the restart", "before the kill"]
    );
    let read = client.get(&format!("/tasks/{}", second.id())).await?;
    assert_eq!(read.expect_header("etag"), second.expect_header("etag"));
    Ok(())
}

#[tokio::test]
async fn two_apis_on_one_buffer_see_each_others_tasks() -> Result<()> {
    let node = Node::new()?;
    let other_node = node.beside()?;
    let one = node.start_api().await?;
    let other = other_node.start_api().await?;
    let token = tokens::valid("somebody");
    let created = one
        .client(&token)
        .create_task(&json!({"title": "seen by both"}))
        .await?;
    let path = format!("/tasks/{}", created.expect(201).id());
    let read = other.client(&token).get(&path).await?;
    assert_eq!(read.expect(200).json()["title"], "seen by both");
    Ok(())
}

#[tokio::test]
async fn a_full_buffer_refuses_and_says_when_to_come_back() -> Result<()> {
    let node = Node::new()?.with("BUFFER_MAX_SIZE", "1");
    let api = node.start_api().await?;
    let client = api.client(&tokens::valid("somebody"));
    let task = json!({"title": "x"});
    client.create_task(&task).await?.expect(201);
    let refused = client.create_task(&task).await?;
    assert_eq!(
        refused.expect_problem(503).json()["type"],
        "/problems/buffer-full"
    );
    let seconds: u64 = refused.expect_header("retry-after").parse()?;
    assert!((1..=60).contains(&seconds), "{seconds}");
    Ok(())
}

#[tokio::test]
async fn the_development_secret_is_made_once_and_is_private() -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mut node = Node::new()?.with("APP_ENV", "development");
    node.unset("JWT_SECRET");
    let mut pair = start(&node).await?;
    let path = format!("{}.jwt-secret", node.buffer_path().display());
    let secret = std::fs::read_to_string(&path)?;
    let mode = std::fs::metadata(&path)?.permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "mode {mode:o}");
    let token = tokens::hs256(secret.trim(), &tokens::claims("somebody"));
    let client = pair.api.client(&token);
    client.get("/tasks").await?.expect(200);
    pair.terminate().await?;
    pair.restart().await?;
    assert_eq!(std::fs::read_to_string(&path)?, secret);
    client.get("/tasks").await?.expect(200);
    Ok(())
}

#[tokio::test]
async fn everything_is_synced_once_a_database_is_configured() -> Result<()> {
    let mut node = Node::new()?;
    let mut pair = start(&node).await?;
    let client = pair.client();
    let ledger = Ledger::new("embedded");
    for index in 0..60 {
        let (number, title) = ledger.begin_task();
        let created = client.create_task(&json!({"title": title})).await?;
        let id: Uuid = created.expect(201).id().parse()?;
        ledger.acknowledge_task(number, id);
        if index % 3 == 0 {
            let renamed = ledger.begin_rename(number, "renamed");
            let patch = json!({"title": renamed});
            client
                .patch(&format!("/tasks/{id}"), &patch)
                .await?
                .expect(200);
            ledger.acknowledge_rename(number);
        }
    }
    let deleted = client
        .create_task(&json!({"title": "gone before the move"}))
        .await?;
    let deleted_path = format!("/tasks/{}", deleted.expect(201).id());
    client.delete(&deleted_path).await?.expect(204);
    let profile = client
        .patch("/profile", &json!({"bio": "moved house"}))
        .await?;
    profile.expect(200);
    pair.terminate().await?;

    let postgres = Postgres::start().await?;
    let redis = Redis::start().await?;
    node.set("DATABASE_URL", &postgres.create_database("holdfast").await?);
    node.set("REDIS_URL", &redis.url());
    node.syncd(&["migrate"]).await?.expect_code(0);
    let pair = start(&node).await?;
    pair.api.wait_status(SETTLE, "online").await?;

    let findings = ledger
        .compare(&mut postgres.connect("holdfast").await?)
        .await?;
    assert_eq!(findings.broken_promises(), [""; 0]);
    assert_eq!(findings.present_once, 60);
    let client = pair.client();
    client.get(&deleted_path).await?.expect_problem(404);
    let moved = client.get("/profile").await?;
    assert_eq!(moved.expect(200).json()["bio"], "moved house");
    assert_eq!(moved.json()["sync_state"], "synced");
    let created = client
        .create_task(&json!({"title": "straight to the database"}))
        .await?;
    assert_eq!(created.expect(201).json()["sync_state"], "synced");
    Ok(())
}

#[tokio::test]
async fn a_key_that_the_database_knows_keeps_no_later_embedded_write_out() -> Result<()> {
    let postgres = Postgres::start().await?;
    let url = postgres.create_database("holdfast").await?;
    let create = async |pair: &Pair| {
        let client = pair.client();
        let request = client.request(Method::POST, "/tasks");
        let request = request.header("idempotency-key", "once");
        client.send(request.json(&json!({"title": "first"}))).await
    };
    let mut online = Node::new()?;
    online.set("DATABASE_URL", &url);
    online.syncd(&["migrate"]).await?.expect_code(0);
    let mut pair = start(&online).await?;
    pair.api.wait_status(SETTLE, "online").await?;
    let id = create(&pair).await?.expect(201).id().to_owned();
    pair.terminate().await?;

    let mut node = Node::new()?;
    let mut pair = start(&node).await?;
    assert_eq!(create(&pair).await?.expect(201).id(), id);
    let path = format!("/tasks/{id}");
    let changed = pair
        .client()
        .patch(&path, &json!({"title": "changed"}))
        .await?;
    changed.expect(200);
    let told = pair.client().get("/operations").await?;
    let told = told.expect(200).json();
    assert_eq!(told["items"].as_array().map(Vec::len), Some(1), "{told}");
    assert_eq!(told["items"][0]["operation"], "create", "{told}");
    pair.terminate().await?;

    node.set("DATABASE_URL", &url);
    let pair = start(&node).await?;
    pair.api.wait_status(SETTLE, "online").await?;
    node.syncd(&["drain"]).await?.expect_code(0);
    let found = pair.client().get(&path).await?;
    assert_eq!(found.expect(200).json()["title"], "changed");
    assert_eq!(found.json()["sync_state"], "synced");
    Ok(())
}
