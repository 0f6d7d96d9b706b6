//! Does a client always read what it was told was written, also at the very
//! moment when it moves from the buffer into PostgreSQL?

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use holdfast_tests::{Client, FaultProxy, Flow, Node, Postgres, eventually, tokens};
use serde_json::json;
use tokio::task::JoinHandle;

const DATABASE: &str = "holdfast";
const DEADLINE: Duration = Duration::from_secs(30);
const TASKS: usize = 20;
const READERS_PER_TASK: usize = 2;
/// Of each packet, either way. So an answer of PostgreSQL's is under way for
/// much longer than syncd, on the direct way, takes to apply and settle.
const DELAY: Duration = Duration::from_millis(200);
/// Slow is not away here: a call may take long, and no probe, whose deadline is
/// its own, comes in between.
const PATIENCE: [(&str, &str); 2] = [
    ("STORE_TIMEOUT_MS", "10000"),
    ("HEALTH_INTERVAL_MS", "60000"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_never_missed_while_it_is_drained() -> Result<()> {
    let postgres = Postgres::start().await?;
    let direct = postgres.create_database(DATABASE).await?;
    let mut proxy = FaultProxy::start(postgres.port()).await?;
    let mut node = Node::new()?
        .with(
            "DATABASE_URL",
            &postgres.url_through(proxy.port(), DATABASE),
        )
        .with("DB_MAX_CONNECTIONS", "60");
    for (name, value) in PATIENCE {
        node.set(name, value);
    }
    node.syncd(&["migrate"]).await?.expect_code(0);
    let api = node.start_api().await?;
    api.wait_status(DEADLINE, "online").await?;

    proxy.set(Flow::Cut).await?;
    let client = api.client(&tokens::valid("somebody"));
    let mut tasks = Vec::new();
    for number in 0..TASKS {
        let title = format!("task {number}");
        let created = client.create_task(&json!({"title": title})).await?;
        tasks.push((created.expect(202).id().to_owned(), title));
    }
    proxy.set(Flow::Pass).await?;
    api.wait_status(DEADLINE, "catching_up").await?;
    proxy.set(Flow::Delay(DELAY)).await?;

    let stopping = Arc::new(AtomicBool::new(false));
    let warm = Arc::new(AtomicUsize::new(0));
    let mut readers: Vec<JoinHandle<Result<()>>> = Vec::new();
    for (id, title) in &tasks {
        for _ in 0..READERS_PER_TASK {
            // Out of step with each other, so that at any moment some answer
            // has just left PostgreSQL.
            tokio::time::sleep(DELAY * 2 / (TASKS * READERS_PER_TASK) as u32).await;
            let reader = Reader {
                client: client.clone(),
                path: format!("/tasks/{id}"),
                title: title.clone(),
                stopping: Arc::clone(&stopping),
                warm: Arc::clone(&warm),
            };
            readers.push(tokio::spawn(reader.work()));
        }
    }
    // Each has a connection by now, and reads.
    eventually(DEADLINE, "all readers to read", async || {
        let count = warm.load(Ordering::Relaxed);
        (count == readers.len()).then_some(()).ok_or(count)
    })
    .await?;
    let beside = node.beside()?.with("DATABASE_URL", &direct);
    let _syncd = beside.start_syncd().await?;
    api.wait_status(DEADLINE, "online").await?;
    stopping.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.await.context("a reader has panicked")??;
    }
    Ok(())
}

struct Reader {
    client: Client,
    path: String,
    title: String,
    stopping: Arc<AtomicBool>,
    /// Readers that have read once.
    warm: Arc<AtomicUsize>,
}

impl Reader {
    /// Reads one task over and over.
    async fn work(self) -> Result<()> {
        let mut is_warm = false;
        while !self.stopping.load(Ordering::Relaxed) {
            let answer = self.client.get(&self.path).await?;
            ensure!(
                answer.status() == 200 && answer.json()["title"] == self.title.as_str(),
                "{} was read as {}: {}",
                self.title,
                answer.status(),
                answer.text()
            );
            if !std::mem::replace(&mut is_warm, true) {
                self.warm.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}
