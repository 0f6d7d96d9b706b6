//! Two nodes that share a PostgreSQL and a Redis, with clients that never stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use holdfast_tests::load::{Load, Pace, RunningLoad};
use holdfast_tests::{Node, Postgres, Program, eventually, tokens};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

const DATABASE: &str = "holdfast";
/// Far above what is promised (a second), so that a busy machine fails no test.
pub const SETTLE: Duration = Duration::from_secs(60);

/// A node's processes.
pub struct Pair {
    pub api: Program,
    _syncd: Program,
    _node: Node,
}

/// The nodes.
pub struct Site {
    pub one: Pair,
    pub other: Pair,
    postgres: Postgres,
}

impl Pair {
    async fn start(postgres: &Postgres, redis_url: &str) -> Result<Self> {
        let node = Node::new()?
            .hasty()
            .with("DATABASE_URL", &postgres.url(DATABASE))
            .with("REDIS_URL", redis_url);
        node.syncd(&["migrate"]).await?.expect_code(0);
        let syncd = node.start_syncd().await?;
        let api = node.start_api().await?;
        api.wait_status(SETTLE, "online").await?;
        Ok(Pair {
            api,
            _syncd: syncd,
            _node: node,
        })
    }
}

impl Site {
    pub async fn start(redis_url: &str) -> Result<Self> {
        let postgres = Postgres::start().await?;
        postgres.create_database(DATABASE).await?;
        Ok(Site {
            one: Pair::start(&postgres, redis_url).await?,
            other: Pair::start(&postgres, redis_url).await?,
            postgres,
        })
    }

    fn apis(&self) -> [&Program; 2] {
        [&self.one.api, &self.other.api]
    }

    /// Asserts that both nodes let the token in.
    pub async fn admits(&self, token: &str) -> Result<()> {
        for api in self.apis() {
            api.client(token).get("/tasks").await?.expect(200);
        }
        Ok(())
    }

    /// Waits until neither node lets the token in.
    pub async fn refuses(&self, token: &str) -> Result<()> {
        for api in self.apis() {
            refuses(api, token).await?;
        }
        Ok(())
    }

    /// Waits until both nodes have both stores.
    pub async fn wait_online(&self) -> Result<()> {
        for api in self.apis() {
            api.wait_status(SETTLE, "online").await?;
        }
        Ok(())
    }

    /// What a node says of Redis, and since when it is so.
    pub async fn redis_state(&self) -> Result<Value> {
        Ok(state_of_redis(&self.one.api.health().await?))
    }

    /// Waits until that node has seen Redis down since it said `well`, be it up again or not.
    pub async fn wait_redis_lost(&self, well: &Value) -> Result<()> {
        let what = "Redis to be seen down";
        let is_lost = |health: &Value| state_of_redis(health) != *well;
        self.one.api.wait_health(SETTLE, what, is_lost).await?;
        Ok(())
    }
}

fn state_of_redis(health: &Value) -> Value {
    let redis = &health["stores"]["redis"];
    json!([redis["state"], redis["since"]])
}

/// Waits until an API doesn't let a token in any more.
pub async fn refuses(api: &Program, token: &str) -> Result<()> {
    let client = api.client(token);
    eventually(SETTLE, "the token to be refused", async || {
        match client.get("/tasks").await {
            Ok(answer) if answer.status() == 401 => Ok(()),
            Ok(answer) => Err(answer.status().to_string()),
            Err(error) => Err(format!("{error:#}")),
        }
    })
    .await
}

/// Ends the token's session, which holds at once where it was ended.
pub async fn log_out(api: &Program, token: &str) -> Result<()> {
    let client = api.client(token);
    client.get("/tasks").await?.expect(200);
    let answer = client.delete("/sessions/current").await?;
    answer.expect_in(&[202, 204]);
    client.get("/tasks").await?.expect_problem(401);
    Ok(())
}

/// Ends a session by another of the same user's; gives the operation by which
/// Redis is to learn of it later, unless it has learnt already.
pub async fn end_session(api: &Program, by: &str, of: &str) -> Result<Option<String>> {
    let path = format!("/sessions/{}", tokens::session_id(of)?);
    let answer = api.client(by).delete(&path).await?;
    answer.expect_in(&[202, 204]);
    api.client(of).get("/tasks").await?.expect_problem(401);
    let location = answer.header("operation-location");
    let id = location.and_then(|path| path.strip_prefix("/api/v1/operations/"));
    assert_eq!(id.is_some(), answer.status() == 202);
    Ok(id.map(str::to_owned))
}

/// Waits until an operation has been applied.
pub async fn is_applied(api: &Program, token: &str, operation: &str) -> Result<()> {
    let answer = api.client(token).operation(operation, 60).await?;
    assert_eq!(answer.expect(200).json()["state"], "applied");
    Ok(())
}

/// Waits until a user has so many sessions listed.
pub async fn lists_sessions(api: &Program, token: &str, count: usize) -> Result<()> {
    let client = api.client(token);
    eventually(SETTLE, "the sessions to be listed", async || {
        match client.get("/sessions").await {
            Ok(answer) if answer.status() == 200 => {
                let listed = answer.json()["items"].as_array().map_or(0, Vec::len);
                if listed == count {
                    Ok(())
                } else {
                    Err(answer.text().to_owned())
                }
            }
            Ok(answer) => Err(answer.text().to_owned()),
            Err(error) => Err(format!("{error:#}")),
        }
    })
    .await
}

/// Clients that write at one node, and one that reads at the other.
pub struct Traffic {
    writers: RunningLoad,
    reader: JoinHandle<Vec<String>>,
    stopping: Arc<AtomicBool>,
    reads: Arc<AtomicU64>,
}

impl Traffic {
    pub async fn start(site: &Site, run: &str) -> Result<Self> {
        let pace = Pace {
            writers: 3,
            writes_per_second: 30,
        };
        let stopping = Arc::new(AtomicBool::new(false));
        let reads = Arc::new(AtomicU64::new(0));
        let client = site.other.api.client(&tokens::valid("reader"));
        // The first request makes the profile, which takes a commit in time.
        eventually(SETTLE, "a profile", async || {
            match client.get("/profile").await {
                Ok(answer) if answer.status() == 200 => Ok(()),
                Ok(answer) => Err(answer.text().to_owned()),
                Err(error) => Err(format!("{error:#}")),
            }
        })
        .await?;
        let (stop, count) = (Arc::clone(&stopping), Arc::clone(&reads));
        let reader = tokio::spawn(async move {
            let mut complaints = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                match client.get("/profile").await {
                    Ok(answer) if answer.status() == 200 => {}
                    Ok(answer) => complaints.push(answer.text().to_owned()),
                    Err(error) => complaints.push(format!("{error:#}")),
                }
                count.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            complaints
        });
        Ok(Traffic {
            writers: Load::start(&site.one.api.base_url(), run, pace)?,
            reader,
            stopping,
            reads,
        })
    }

    /// Asserts that no request failed, and that everything written is there.
    pub async fn end_well(self, site: &Site) -> Result<()> {
        self.stopping.store(true, Ordering::Relaxed);
        let reader_complaints = self.reader.await.context("the reader has a bug")?;
        assert_eq!(reader_complaints, [""; 0]);
        let load = self.writers.stop().await?;
        assert_eq!(load.complaints(), [""; 0]);
        let mut database = site.postgres.connect(DATABASE).await?;
        let findings = load.ledger.compare(&mut database).await?;
        assert_eq!(findings.broken_promises(), [""; 0]);
        ensure!(findings.acknowledged > 30, "hardly anything was written");
        ensure!(
            self.reads.load(Ordering::Relaxed) > 30,
            "hardly anything was read"
        );
        Ok(())
    }
}
