//! A node whose way to PostgreSQL can be cut, while the test keeps its own.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::{StreamExt, TryStreamExt, stream};
use holdfast_tests::{
    Answer, Client, FaultProxy, Flow, Node, Postgres, Program, eventually, tokens,
};
use serde_json::{Value, json};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor, Row};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Longest wait for something that takes a second on an idle machine.
pub const SETTLE: Duration = Duration::from_secs(30);

/// Requests on their way at once.
const IN_FLIGHT: usize = 32;

const DATABASE: &str = "holdfast";

/// A few servers at a time are enough for two cores.
static ROOM: Semaphore = Semaphore::const_new(4);

/// PostgreSQL, and a node that reaches it through a proxy.
pub struct Site {
    pub api: Program,
    pub syncd: Program,
    pub node: Node,
    pub proxy: FaultProxy,
    pub postgres: Postgres,
    _room: SemaphorePermit<'static>,
}

impl Site {
    /// With all online. `settings` are the node's.
    pub async fn start(settings: &[(&str, &str)]) -> Result<Self> {
        let room = ROOM.acquire().await?;
        let postgres = Postgres::start().await?;
        postgres.create_database(DATABASE).await?;
        let (proxy, node) = node_on(&postgres, settings).await?;
        node.syncd(&["migrate"]).await?.expect_code(0);
        let site = Site {
            api: node.start_api().await?,
            syncd: node.start_syncd().await?,
            node,
            proxy,
            postgres,
            _room: room,
        };
        site.api.wait_status(SETTLE, "online").await?;
        Ok(site)
    }

    /// A client of somebody's.
    pub fn client(&self) -> Client {
        self.api.client(&tokens::valid("somebody"))
    }

    /// A connection that no proxy is in the way of.
    pub async fn connect(&self) -> Result<PgConnection> {
        self.postgres.connect(DATABASE).await
    }

    /// Runs statements as the owner of the tables.
    pub async fn sql(&self, statements: &str) -> Result<()> {
        let mut connection = self.connect().await?;
        let statements = AssertSqlSafe(statements.to_owned());
        connection
            .execute(sqlx::raw_sql(statements))
            .await
            .context("the test's own SQL failed")?;
        Ok(())
    }

    /// Runs statements as the superuser, in this database.
    pub async fn sql_as_admin(&self, database: &str, statements: &str) -> Result<()> {
        let mut connection = self.postgres.connect_admin(database).await?;
        connection
            .execute(sqlx::raw_sql(AssertSqlSafe(statements.to_owned())))
            .await
            .context("the test's own SQL failed")?;
        Ok(())
    }

    /// One number.
    pub async fn number(&self, query: &str) -> Result<i64> {
        let row = sqlx::query(AssertSqlSafe(query.to_owned()))
            .fetch_one(&mut self.connect().await?)
            .await?;
        Ok(row.try_get(0)?)
    }

    /// One text.
    pub async fn text(&self, query: &str) -> Result<String> {
        let row = sqlx::query(AssertSqlSafe(query.to_owned()))
            .fetch_one(&mut self.connect().await?)
            .await?;
        Ok(row.try_get(0)?)
    }

    /// PostgreSQL is out of the node's reach from now on.
    pub async fn cut(&mut self) -> Result<()> {
        self.proxy.set(Flow::Cut).await?;
        self.api.wait_status(SETTLE, "offline").await?;
        Ok(())
    }

    /// And back.
    pub async fn heal(&mut self) -> Result<()> {
        self.proxy.set(Flow::Pass).await
    }

    /// Waits until the API has PostgreSQL again, whatever still waits.
    pub async fn reaches_postgres(&self) -> Result<()> {
        let is_up = |health: &Value| health["stores"]["postgres"]["state"] == "up";
        let what = "PostgreSQL to be up";
        self.api.wait_health(SETTLE, what, is_up).await.map(drop)
    }

    /// Waits until nothing is pending and the API is online again.
    pub async fn drained(&self, deadline: Duration) -> Result<()> {
        self.api.wait_status(deadline, "online").await?;
        Ok(())
    }

    /// Waits until so many are pending.
    pub async fn pending_is(
        &self,
        deadline: Duration,
        reached: impl Fn(u64) -> bool,
    ) -> Result<()> {
        let reached = |health: &Value| health["buffer"]["pending"].as_u64().is_some_and(&reached);
        let what = "the buffer to be drained as far as it should";
        self.api.wait_health(deadline, what, reached).await?;
        Ok(())
    }

    /// How many dead letters there are.
    pub async fn dead(&self) -> Result<Value> {
        Ok(self.api.health().await?["buffer"]["dead"].clone())
    }

    /// What waits, as `syncd items list` says it.
    pub async fn items(&self) -> Result<Vec<Value>> {
        self.list(&["items", "list", "--json", "--limit", "10000"])
            .await
    }

    /// The dead letters.
    pub async fn letters(&self) -> Result<Vec<Value>> {
        self.list(&["dead", "list", "--json"]).await
    }

    async fn list(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let listed = self.node.syncd(arguments).await?;
        let listed = listed.expect_code(0).json()?;
        listed.as_array().cloned().context("no list")
    }

    /// Creates tasks with these titles; every answer must have this status.
    pub async fn create(&self, titles: &[String], status: u16) -> Result<Vec<Answer>> {
        let client = self.client();
        stream::iter(titles)
            .map(|title| {
                let client = &client;
                async move { client.create_task(&json!({"title": title})).await }
            })
            .buffered(IN_FLIGHT)
            .inspect_ok(|answer| {
                answer.expect(status);
            })
            .try_collect()
            .await
    }

    /// One task.
    pub async fn create_one(&self, title: &str, status: u16) -> Result<String> {
        let created = self.client().create_task(&json!({"title": title})).await?;
        Ok(created.expect(status).id().to_owned())
    }

    /// Waits for what becomes of an operation.
    pub async fn fate(&self, answer: &Answer) -> Result<Value> {
        let id = operation_of(answer)?;
        Ok(self
            .client()
            .operation(&id, 60)
            .await?
            .expect(200)
            .json()
            .clone())
    }

    /// How an operation stands.
    pub async fn operation(&self, answer: &Answer) -> Result<Value> {
        let id = operation_of(answer)?;
        Ok(self
            .client()
            .operation(&id, 0)
            .await?
            .expect(200)
            .json()
            .clone())
    }

    /// Waits until syncd's metrics have this line.
    pub async fn syncd_shows(&self, line: &str) -> Result<()> {
        let client = self.syncd.anonymous();
        eventually(SETTLE, &format!("the metric {line}"), async || {
            let metrics = client.get_outside("/metrics").await;
            let metrics = metrics.map_err(|error| format!("{error:#}"))?;
            let found = metrics.text().lines().any(|found| found == line);
            if found { Ok(()) } else { Err("no such line") }.map_err(ToOwned::to_owned)
        })
        .await
    }
}

/// A node with a proxy of its own before PostgreSQL.
pub async fn node_on(postgres: &Postgres, settings: &[(&str, &str)]) -> Result<(FaultProxy, Node)> {
    let proxy = FaultProxy::start(postgres.port()).await?;
    let url = postgres.url_through(proxy.port(), DATABASE);
    let node = Node::new()?
        .with("DATABASE_URL", &url)
        .with("SYNC_INTERVAL_SECONDS", "1");
    let node = settings
        .iter()
        .fold(node, |node, (name, value)| node.with(name, value));
    Ok((proxy, node))
}

/// The id of the operation that a 202 names.
pub fn operation_of(answer: &Answer) -> Result<String> {
    let location = answer.expect_header("operation-location");
    let id = location.rsplit('/').next();
    Ok(id.context("Operation-Location names nothing")?.to_owned())
}

/// `count` titles that begin so.
pub fn titles(beginning: &str, count: usize) -> Vec<String> {
    (0..count)
        .map(|number| format!("{beginning} {number}"))
        .collect()
}

/// Asserts that no item has used a try.
pub fn assert_untried(items: &[Value]) {
    let tries: HashSet<String> = items
        .iter()
        .map(|item| item["retries"].to_string())
        .collect();
    assert!(
        tries.iter().all(|retries| retries == "0"),
        "tries were used: {tries:?}"
    );
}
