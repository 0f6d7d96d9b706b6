//! The outage, told once: by the demo in a terminal, and by tests.
//!
//! Clients write all the time. PostgreSQL goes away; the API and syncd are
//! killed and started again meanwhile; PostgreSQL comes back. Then everything
//! that clients were told is compared with what the database holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::task::JoinHandle;

use crate::client::Client;
use crate::load::{Load, Pace, RunningLoad, user_of_writer};
use crate::node::Node;
use crate::postgres::Postgres;
use crate::program::Program;
use crate::redis::Redis;
use crate::summary::Summary;
use crate::tokens;
use crate::wait::eventually;

const DATABASE: &str = "holdfast";
/// Both processes up, migrated and connected.
const ONLINE_DEADLINE: Duration = Duration::from_secs(30);
/// Well above what is promised, so that a slow drain is measured and reported
/// and not only timed out.
const DRAIN_DEADLINE: Duration = Duration::from_secs(60);
/// Between two looks at the backlog.
const WATCH_GAP: Duration = Duration::from_millis(50);
/// The default `SHUTDOWN_TIMEOUT_SECONDS` and some.
const STOP_DEADLINE: Duration = Duration::from_secs(25);

/// How PostgreSQL goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL: connections are refused until it is started again.
    Killed,
    /// SIGSTOP of all its processes: nothing is refused, nothing answered.
    Hung,
}

/// One story's course.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// What happens to PostgreSQL.
    pub fault: Fault,
    /// How the clients write.
    pub pace: Pace,
    /// How long all is well first.
    pub calm: Duration,
    /// How long PostgreSQL is away.
    pub outage: Duration,
    /// How often the API and syncd are both killed and started again meanwhile.
    pub kill_rounds: u32,
}

impl Plan {
    /// The plan of the demo: 50 writes per second, 10 s of outage, two kills.
    pub fn demo() -> Self {
        Self {
            fault: Fault::Killed,
            pace: Pace {
                writers: 5,
                writes_per_second: 50,
            },
            calm: Duration::from_secs(3),
            outage: Duration::from_secs(10),
            kill_rounds: 2,
        }
    }
}

struct Stage {
    // In the order in which they end: programs first, their stores after.
    api: Program,
    syncd: Program,
    postgres: Postgres,
    _redis: Redis,
    _node: Node,
}

/// Tells the story; `say` gets one sentence per event.
///
/// # Errors
/// When the story can't go on, such as a process that doesn't start. A broken
/// promise is no error but is in the summary.
pub async fn tell(plan: Plan, say: impl Fn(&str)) -> Result<Summary> {
    let mut stage = set_up(&say).await?;
    let load = begin_writing(&stage, plan, &say).await?;
    let watch = Watch::start(&stage.api.base_url());
    tokio::time::sleep(plan.calm).await;

    take_postgres_away(&mut stage.postgres, plan.fault, &say).await?;
    let kills = endure(&mut stage, plan, &load.load, &say).await?;
    let drain = bring_postgres_back(&mut stage, plan.fault, &say).await?;

    let load = load.stop().await?;
    stage.api.wait_status(DRAIN_DEADLINE, "online").await?;
    let pending_peak = watch.stop();
    say("clients stopped; counting by SQL");
    let mut connection = stage.postgres.connect(DATABASE).await?;
    let findings = load.ledger.compare(&mut connection).await?;
    stop(&mut stage, &say).await?;
    Ok(Summary {
        answers: load.ledger.answers(),
        unanswered: load.unanswered(),
        slowest: load.ledger.slowest(),
        reads: load.reads(),
        pending_reads: load.pending_reads(),
        pending_peak,
        kills,
        drain,
        stalled: load.stalled(),
        findings,
        complaints: load.complaints(),
    })
}

async fn set_up(say: &impl Fn(&str)) -> Result<Stage> {
    let postgres = Postgres::start().await?;
    let redis = Redis::start().await?;
    say(&format!(
        "PostgreSQL listens on port {}, Redis on {}, both private to this run",
        postgres.port(),
        redis.port()
    ));
    let url = postgres.create_database(DATABASE).await?;
    let node = Node::new()?
        .hasty()
        .with("DATABASE_URL", &url)
        .with("REDIS_URL", &redis.url());
    let migrated = node.syncd(&["migrate"]).await?;
    ensure!(
        migrated.code == Some(0),
        "syncd migrate failed: {}",
        migrated.stderr
    );
    say("syncd migrate: the tables are there");
    let syncd = node.start_syncd().await?;
    let api = node.start_api().await?;
    api.wait_status(ONLINE_DEADLINE, "online").await?;
    say(&format!(
        "holdfast-api and syncd are online at {}",
        api.base_url()
    ));
    Ok(Stage {
        api,
        syncd,
        postgres,
        _redis: redis,
        _node: node,
    })
}

async fn begin_writing(stage: &Stage, plan: Plan, say: &impl Fn(&str)) -> Result<RunningLoad> {
    let client = stage.api.client(&tokens::valid("first-user"));
    // The disk may stall just now, and the write then go to the buffer.
    let first = json!({"title": "the first task"});
    eventually(
        ONLINE_DEADLINE,
        "a task made at once",
        async || match client.create_task(&first).await {
            Ok(answer) if answer.status() == 201 => Ok(()),
            Ok(answer) => Err(format!("{}: {}", answer.status(), answer.text())),
            Err(error) => Err(format!("{error:#}")),
        },
    )
    .await?;
    say("POST /api/v1/tasks with PostgreSQL up: 201 Created");
    let pace = plan.pace;
    say(&format!(
        "{} clients begin, {} writes/s",
        pace.writers, pace.writes_per_second
    ));
    Load::start(&stage.api.base_url(), "story", pace)
}

async fn take_postgres_away(
    postgres: &mut Postgres,
    fault: Fault,
    say: &impl Fn(&str),
) -> Result<()> {
    match fault {
        Fault::Killed => {
            say("kill -9 of PostgreSQL");
            postgres.kill9().await
        }
        Fault::Hung => {
            say("SIGSTOP to PostgreSQL: it hangs, with its connections open");
            postgres.freeze()
        }
    }
}

/// Lets the outage last, with its kills spread over it; gives their number.
async fn endure(stage: &mut Stage, plan: Plan, load: &Load, say: &impl Fn(&str)) -> Result<u32> {
    let quiet = plan.outage / (plan.kill_rounds + 1);
    tokio::time::sleep(quiet).await;
    show_pending(&stage.api, say).await?;
    for _ in 0..plan.kill_rounds {
        say("kill -9 of holdfast-api and syncd, and both started again");
        load.api_life.turn();
        stage.api.kill9().await?;
        stage.syncd.kill9().await?;
        tokio::try_join!(stage.syncd.restart(), stage.api.restart())?;
        load.api_life.turn();
        tokio::time::sleep(quiet).await;
    }
    if plan.kill_rounds > 0 {
        show_pending(&stage.api, say).await?;
    }
    Ok(plan.kill_rounds * 2)
}

/// A list during the outage shows what waits in the buffer.
async fn show_pending(api: &Program, say: &impl Fn(&str)) -> Result<()> {
    let client = api.client(&tokens::valid(&user_of_writer(0)));
    let list = client.get("/tasks?limit=200").await?;
    ensure!(
        list.status() == 200,
        "GET /tasks got {}: {}",
        list.status(),
        list.text()
    );
    let items = list.json()["items"]
        .as_array()
        .context("a list without items")?;
    let pending = items
        .iter()
        .filter(|item| item["sync_state"] == "pending")
        .count();
    ensure!(
        pending > 0,
        "GET /tasks shows nothing pending: {}",
        list.text()
    );
    say(&format!(
        "GET /tasks in the outage: {} tasks, {pending} of them pending",
        items.len()
    ));
    Ok(())
}

/// Gives the time from the first accepted connection to an empty buffer.
async fn bring_postgres_back(
    stage: &mut Stage,
    fault: Fault,
    say: &impl Fn(&str),
) -> Result<Duration> {
    match fault {
        Fault::Killed => stage.postgres.start_again().await?,
        Fault::Hung => {
            stage.postgres.thaw()?;
            eventually(DRAIN_DEADLINE, "a connection", async || {
                stage
                    .postgres
                    .connect(DATABASE)
                    .await
                    .map_err(|error| format!("{error:#}"))
            })
            .await?;
        }
    }
    let accepting_since = Instant::now();
    say("PostgreSQL accepts connections again; the clients go on writing");
    stage
        .api
        .wait_health(DRAIN_DEADLINE, "an empty buffer", |health| {
            health["buffer"]["pending"] == 0
        })
        .await?;
    let drain = accepting_since.elapsed();
    say(&format!(
        "the buffer is empty {} ms later",
        drain.as_millis()
    ));
    Ok(drain)
}

async fn stop(stage: &mut Stage, say: &impl Fn(&str)) -> Result<()> {
    let api = stage.api.terminate(STOP_DEADLINE).await?;
    let syncd = stage.syncd.terminate(STOP_DEADLINE).await?;
    ensure!(api.success(), "holdfast-api ended with {api} on SIGTERM");
    ensure!(syncd.success(), "syncd ended with {syncd} on SIGTERM");
    say("SIGTERM: both processes ended with exit code 0");
    Ok(())
}

/// Looks at the backlog all the time and keeps its peak.
struct Watch {
    peak: Arc<AtomicU64>,
    looking: JoinHandle<()>,
}

impl Watch {
    fn start(origin: &str) -> Self {
        let peak = Arc::new(AtomicU64::new(0));
        let client = Client::anonymous(origin);
        let seen = Arc::clone(&peak);
        let looking = tokio::spawn(async move {
            loop {
                // No answer means that the API was just killed.
                if let Ok(answer) = client.get_outside("/health").await {
                    let pending = answer.json()["buffer"]["pending"].as_u64().unwrap_or(0);
                    seen.fetch_max(pending, Ordering::Relaxed);
                }
                tokio::time::sleep(WATCH_GAP).await;
            }
        });
        Self { peak, looking }
    }

    fn stop(self) -> u64 {
        self.looking.abort();
        self.peak.load(Ordering::Relaxed)
    }
}
