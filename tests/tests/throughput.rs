//! Many writes at once, counted one by one.
//!
//! Two API processes accept creations and renames into one buffer, without a PostgreSQL of their own; from half of
//! them on syncd drains it into a real one meanwhile. Each acknowledged write must be there: each task once, under
//! its newest acknowledged title, and each operation in the ledger once.
//!
//! `HOLDFAST_ITEMS` sets how many writes (100 000 unless it is set).

#[path = "../bin/bench/keep_alive.rs"]
mod keep_alive;

use std::collections::HashMap;
use std::env;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use holdfast_tests::load::HELD_UP;
use holdfast_tests::{
    Client, FaultProxy, Flow, Node, Postgres, Program, StallWatch, eventually, tokens,
};
use keep_alive::{KeepAlive, request};
use serde_json::{Value, json};
use sqlx::Row;
use sqlx::postgres::PgConnection;
use tokio::task::{JoinHandle, JoinSet};
use uuid::Uuid;

const DATABASE: &str = "holdfast";

/// Writes in all, unless `HOLDFAST_ITEMS` says otherwise.
const ITEMS: u64 = 100_000;

/// Clients at once, each a user of its own.
const CLIENTS: u64 = 64;

/// Writes of one task: its creation, then renames. They alternate between the two APIs, so that each is accepted by
/// another process than the one before it.
const WRITES_PER_TASK: u64 = 5;

/// Tasks that a client works at in turn: so that writes of a task have others between them, and the earlier ones are
/// perhaps drained before the later ones come.
const TASKS_AT_ONCE: usize = 4;

/// For half of the writes, on a slow and busy machine.
const ACCEPT_DEADLINE: Duration = Duration::from_secs(300);

/// Between two looks at the backlog.
const LOOK_GAP: Duration = Duration::from_millis(50);

/// Once nothing is accepted any more, far more than the rest takes.
const DRAIN_DEADLINE: Duration = Duration::from_secs(120);

/// What a client was told: the newest acknowledged title of each of its tasks.
type Acknowledged = HashMap<Uuid, String>;

/// The figures of one run.
struct Figures {
    writes: u64,
    accepting: Duration,
    draining: Duration,
    peak: u64,
}

struct Stage {
    // In the order in which they end: programs first, what they need after.
    apis: [Program; 2],
    node: Node,
    addresses: [String; 2],
    _beside: [Node; 2],
    _proxy: FaultProxy,
    postgres: Postgres,
}

#[tokio::test(flavor = "multi_thread")]
async fn every_write_that_two_apis_accepted_is_applied_once_and_in_order() -> Result<()> {
    let stage = set_up().await?;
    let writes = number_of_writes()?;
    let backlog = Backlog::watch(&stage.apis[0]);
    let progress = Arc::new(Progress::default());
    let (began, watch) = (Instant::now(), StallWatch::start()?);
    let (acknowledged, (syncd, draining_since)) = tokio::try_join!(
        write_all(&stage.addresses, writes, &progress),
        drain_from(writes / 2, &stage.node, &progress.accepted),
    )?;
    let accepting = began.elapsed();
    let (held_up, stalled) = (progress.held_up.load(Ordering::Relaxed), watch.total()?);
    ensure!(
        held_up == 0 || stalled > HELD_UP / 2,
        "{held_up} writes were refused after 5 s, and the machine stood still for {stalled:?} only"
    );
    wait_drained(&stage.apis[0]).await?;
    let draining = draining_since.elapsed();
    let peak = backlog.stop();
    Figures {
        writes,
        accepting,
        draining,
        peak,
    }
    .print();

    let mut connection = stage.postgres.connect(DATABASE).await?;
    expect_tasks(&mut connection, &acknowledged).await?;
    expect_operations(&mut connection, writes).await?;
    expect_empty(&stage.node).await?;
    for program in [&stage.apis[0], &stage.apis[1], &syncd] {
        expect_conserved(&program.anonymous()).await?;
    }
    Ok(())
}

async fn set_up() -> Result<Stage> {
    let postgres = Postgres::start().await?;
    let url = postgres.create_database(DATABASE).await?;
    let mut proxy = FaultProxy::start(postgres.port()).await?;
    proxy.set(Flow::Cut).await?;
    let node = Node::new()?.with("DATABASE_URL", &url);
    node.syncd(&["migrate"]).await?.expect_code(0);
    let away = postgres.url_through(proxy.port(), DATABASE);
    let beside = [
        node.beside()?.with("DATABASE_URL", &away),
        node.beside()?.with("DATABASE_URL", &away),
    ];
    let apis = [beside[0].start_api().await?, beside[1].start_api().await?];
    let addresses = [beside[0].api_address(), beside[1].api_address()];
    Ok(Stage {
        apis,
        node,
        addresses,
        _beside: beside,
        _proxy: proxy,
        postgres,
    })
}

/// Starts syncd once so many writes have been accepted.
async fn drain_from(writes: u64, node: &Node, accepted: &AtomicU64) -> Result<(Program, Instant)> {
    eventually(
        ACCEPT_DEADLINE,
        "half of the writes",
        async || match accepted.load(Ordering::Relaxed) {
            enough if enough >= writes => Ok(()),
            few => Err(format!("{few} of {writes}")),
        },
    )
    .await?;
    let began = Instant::now();
    Ok((node.start_syncd().await?, began))
}

/// A multiple of what one round of all clients makes.
fn number_of_writes() -> Result<u64> {
    let wanted = match env::var("HOLDFAST_ITEMS") {
        Ok(text) => text
            .parse()
            .with_context(|| format!("HOLDFAST_ITEMS={text} is no number"))?,
        Err(_) => ITEMS,
    };
    let tasks_per_client = (wanted / CLIENTS / WRITES_PER_TASK).max(1);
    Ok(tasks_per_client * CLIENTS * WRITES_PER_TASK)
}

/// Gives what was acknowledged once every client has written all it had to.
async fn write_all(
    addresses: &[String; 2],
    writes: u64,
    progress: &Arc<Progress>,
) -> Result<Acknowledged> {
    let tasks_per_client = writes / CLIENTS / WRITES_PER_TASK;
    let mut working = JoinSet::new();
    for number in 0..CLIENTS {
        let writer = Writer::connect(number, addresses, progress).await?;
        working.spawn(writer.work(tasks_per_client));
    }
    let mut all = Acknowledged::new();
    while let Some(worked) = working.join_next().await {
        all.extend(worked.context("a writer has panicked")??);
    }
    Ok(all)
}

/// How far the clients are.
#[derive(Default)]
struct Progress {
    accepted: AtomicU64,
    /// Refusals after [`HELD_UP`], each followed by another try.
    held_up: AtomicU64,
}

/// One client with a connection to each API.
struct Writer {
    token: String,
    connections: [KeepAlive; 2],
    /// The API that creates its tasks.
    first: usize,
    progress: Arc<Progress>,
    acknowledged: Acknowledged,
}

impl Writer {
    async fn connect(
        number: u64,
        addresses: &[String; 2],
        progress: &Arc<Progress>,
    ) -> Result<Self> {
        Ok(Self {
            token: tokens::valid(&format!("writer-{number}")),
            connections: [
                KeepAlive::open(&addresses[0]).await?,
                KeepAlive::open(&addresses[1]).await?,
            ],
            first: usize::try_from(number % 2)?,
            progress: Arc::clone(progress),
            acknowledged: Acknowledged::new(),
        })
    }

    async fn work(mut self, tasks: u64) -> Result<Acknowledged> {
        let ids: Vec<Uuid> = (0..tasks).map(|_| Uuid::now_v7()).collect();
        for some in ids.chunks(TASKS_AT_ONCE) {
            for version in 0..WRITES_PER_TASK {
                for id in some {
                    self.write(*id, version).await?;
                }
            }
        }
        Ok(self.acknowledged)
    }

    /// The creation (version 0) or a rename of a task.
    async fn write(&mut self, id: Uuid, version: u64) -> Result<()> {
        let title = format!("version {version}");
        let path = format!("/api/v1/tasks/{id}");
        let request = if version == 0 {
            let task = json!({"title": title, "description": "x".repeat(400), "tags": ["bulk"]});
            request("PUT", &path, &self.token, &task.to_string())
        } else {
            request(
                "PATCH",
                &path,
                &self.token,
                &json!({"title": title}).to_string(),
            )
        };
        let api = (self.first + usize::try_from(version)?) % 2;
        let connection = &mut self.connections[api];
        let status = loop {
            let began = Instant::now();
            let status = connection.exchange(&request).await?;
            if status != 503 || began.elapsed() < HELD_UP {
                break status;
            }
            self.progress.held_up.fetch_add(1, Ordering::Relaxed);
        };
        let body = String::from_utf8_lossy(connection.body());
        ensure!(
            status == 202,
            "version {version} of {id} got {status}: {body}"
        );
        self.progress.accepted.fetch_add(1, Ordering::Relaxed);
        self.acknowledged.insert(id, title);
        Ok(())
    }
}

/// Follows the backlog and keeps its peak.
struct Backlog {
    peak: Arc<AtomicU64>,
    looking: JoinHandle<()>,
}

impl Backlog {
    fn watch(api: &Program) -> Self {
        let peak = Arc::new(AtomicU64::new(0));
        let (seen, client) = (Arc::clone(&peak), api.anonymous());
        let looking = tokio::spawn(async move {
            loop {
                if let Ok(answer) = client.get_outside("/health").await {
                    seen.fetch_max(pending(answer.json()).unwrap_or(0), Ordering::Relaxed);
                }
                tokio::time::sleep(LOOK_GAP).await;
            }
        });
        Self { peak, looking }
    }

    fn stop(self) -> u64 {
        self.looking.abort();
        self.peak.load(Ordering::Relaxed)
    }
}

fn pending(health: &Value) -> Option<u64> {
    health["buffer"]["pending"].as_u64()
}

async fn wait_drained(api: &Program) -> Result<()> {
    api.wait_health(DRAIN_DEADLINE, "an empty buffer", |health| {
        pending(health) == Some(0)
    })
    .await
    .map(drop)
}

impl Figures {
    #[expect(clippy::cast_precision_loss, reason = "fewer than 2^52 writes")]
    fn print(&self) {
        let per_second = |elapsed: Duration| self.writes as f64 / elapsed.as_secs_f64();
        println!(
            "{} writes: accepted {:.0}/s, drained {:.0}/s from half of them on, backlog at most {}",
            self.writes,
            per_second(self.accepting),
            per_second(self.draining),
            self.peak,
        );
    }
}

/// Each acknowledged task once, with its newest acknowledged title, and no other.
async fn expect_tasks(connection: &mut PgConnection, acknowledged: &Acknowledged) -> Result<()> {
    let rows = sqlx::query("SELECT id, title FROM tasks")
        .fetch_all(connection)
        .await?;
    let mut missing = acknowledged.clone();
    let mut wrong = Vec::new();
    for row in &rows {
        let (id, title): (Uuid, String) = (row.try_get("id")?, row.try_get("title")?);
        match missing.remove(&id) {
            Some(expected) if expected == title => {}
            Some(expected) => wrong.push(format!("{id} is {title:?} instead of {expected:?}")),
            None => wrong.push(format!(
                "{id}, {title:?}, is there twice or was never acknowledged"
            )),
        }
    }
    if let Some((id, title)) = missing.iter().next() {
        bail!(
            "{} of {} tasks are missing, such as {id}, {title:?}",
            missing.len(),
            acknowledged.len()
        );
    }
    if let Some(first) = wrong.first() {
        bail!("{} tasks are wrong, such as: {first}", wrong.len());
    }
    Ok(())
}

/// As many operations in the ledger as were accepted, none of them dead.
async fn expect_operations(connection: &mut PgConnection, accepted: u64) -> Result<()> {
    let rows =
        sqlx::query("SELECT state, count(*) AS count FROM applied_operations GROUP BY state")
            .fetch_all(connection)
            .await?;
    let mut by_state = HashMap::new();
    for row in &rows {
        let (state, count): (String, i64) = (row.try_get("state")?, row.try_get("count")?);
        by_state.insert(state, u64::try_from(count)?);
    }
    let all: u64 = by_state.values().sum();
    ensure!(
        all == accepted,
        "{all} operations in the ledger, {accepted} accepted: {by_state:?}"
    );
    let ended_well = ["applied", "superseded"]
        .iter()
        .filter_map(|state| by_state.get(*state));
    ensure!(
        ended_well.sum::<u64>() == accepted,
        "some ended badly: {by_state:?}"
    );
    Ok(())
}

async fn expect_empty(node: &Node) -> Result<()> {
    let status = node.syncd(&["status", "--json"]).await?;
    let json = status.expect_code(0).json()?;
    ensure!(pending(&json) == Some(0), "something is pending: {json}");
    ensure!(json["buffer"]["dead"] == 0, "something is dead: {json}");
    Ok(())
}

/// What went in came out, as each process counts it; a process shows it with its next look at the buffer.
async fn expect_conserved(client: &Client) -> Result<()> {
    eventually(
        Duration::from_secs(10),
        "holdfast_conservation_imbalance 0",
        async || {
            let answer = client
                .get_outside("/metrics")
                .await
                .map_err(|error| format!("{error:#}"))?;
            let lines = answer.text().lines();
            let imbalance = lines
                .filter_map(|line| line.strip_prefix("holdfast_conservation_imbalance "))
                .next();
            match imbalance {
                Some("0") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        },
    )
    .await
}
