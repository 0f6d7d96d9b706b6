//! The servers that a measurement needs: one PostgreSQL, two databases in it, and nodes of Holdfast's.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use holdfast_tests::{Client, Node, Postgres, Program, ReservedPort, tokens};
use sqlx::postgres::PgConnection;
use sqlx::{Executor, Row};

/// Holdfast's database.
const HOLDFAST: &str = "holdfast";

/// The database of what it is compared with; the same tables and indexes.
const BARE: &str = "bare";

/// Both processes up and connected.
const ONLINE_DEADLINE: Duration = Duration::from_secs(30);

/// How many more items than a backlog a buffer may take: what the slices add.
const ROOM: u64 = 50_000_000;

/// PostgreSQL with both databases.
#[derive(Debug)]
pub struct Stage {
    postgres: Postgres,
    /// Nobody listens here while it is claimed.
    nowhere: ReservedPort,
    /// The URL of Holdfast's database.
    pub holdfast_url: String,
    /// The URL of the other.
    pub bare_url: String,
}

/// A node and its API process.
#[derive(Debug)]
pub struct Served {
    // Declared first, so that the process ends before its directory goes.
    /// The process.
    pub api: Program,
    /// Where it lives.
    pub node: Node,
    /// From its start to its first answer.
    pub started_in: Duration,
}

impl Stage {
    /// Starts PostgreSQL, with its durability at the defaults, and makes the tables in both databases.
    ///
    /// # Errors
    /// When a server or a program of Holdfast's is missing or doesn't start.
    pub async fn set_up() -> Result<Self> {
        let postgres = Postgres::start().await?;
        let holdfast_url = postgres.create_database(HOLDFAST).await?;
        let bare_url = postgres.create_database(BARE).await?;
        let stage = Self {
            postgres,
            nowhere: ReservedPort::claim()?,
            holdfast_url,
            bare_url,
        };
        for url in [&stage.holdfast_url, &stage.bare_url] {
            let migrated = Node::new()?
                .with("DATABASE_URL", url)
                .syncd(&["migrate"])
                .await?;
            ensure!(
                migrated.code == Some(0),
                "syncd migrate failed: {}",
                migrated.stderr
            );
        }
        stage.expect_durable().await?;
        Ok(stage)
    }

    /// What is measured would be worth nothing without the syncs.
    async fn expect_durable(&self) -> Result<()> {
        let mut connection = self.connect_holdfast().await?;
        for setting in ["fsync", "synchronous_commit", "full_page_writes"] {
            let row = sqlx::query("SELECT current_setting($1) AS value")
                .bind(setting)
                .fetch_one(&mut connection)
                .await?;
            let value: String = row.try_get("value")?;
            ensure!(value == "on", "PostgreSQL runs with {setting} = {value}");
        }
        Ok(())
    }

    /// A connection to Holdfast's database.
    ///
    /// # Errors
    /// When PostgreSQL doesn't answer.
    pub async fn connect_holdfast(&self) -> Result<PgConnection> {
        self.postgres.connect(HOLDFAST).await
    }

    /// A connection to the other database.
    ///
    /// # Errors
    /// When PostgreSQL doesn't answer.
    pub async fn connect_bare(&self) -> Result<PgConnection> {
        self.postgres.connect(BARE).await
    }

    /// Empties the tables of both databases and writes everything out, so that the next measurement begins as the one
    /// before did.
    ///
    /// # Errors
    /// When PostgreSQL doesn't answer.
    pub async fn clean(&self) -> Result<()> {
        for mut connection in [self.connect_holdfast().await?, self.connect_bare().await?] {
            connection
                .execute("TRUNCATE tasks, applied_operations")
                .await
                .context("cannot empty the tables")?;
        }
        let mut admin = self.postgres.connect_admin(HOLDFAST).await?;
        admin
            .execute("CHECKPOINT")
            .await
            .context("cannot make a checkpoint")?;
        Ok(())
    }

    /// A node whose PostgreSQL is up.
    ///
    /// # Errors
    /// When there is no room for a directory or a port.
    pub fn node_online(&self) -> Result<Node> {
        Ok(roomy(Node::new()?).with("DATABASE_URL", &self.holdfast_url))
    }

    /// A node whose PostgreSQL is away: connections are refused.
    ///
    /// # Errors
    /// When there is no room for a directory or a port.
    pub fn node_away(&self) -> Result<Node> {
        let url = self.postgres.url_through(self.nowhere.number(), HOLDFAST);
        Ok(roomy(Node::new()?).with("DATABASE_URL", &url))
    }
}

fn roomy(node: Node) -> Node {
    node.hasty().with("BUFFER_MAX_SIZE", &ROOM.to_string())
}

impl Served {
    /// Starts the node's API.
    ///
    /// # Errors
    /// When it isn't built or doesn't come up.
    pub async fn start(node: Node) -> Result<Self> {
        let began = Instant::now();
        let api = node.start_api().await?;
        Ok(Self {
            api,
            node,
            started_in: began.elapsed(),
        })
    }

    /// As [`Served::start`], and waits until its PostgreSQL is known to be up.
    ///
    /// # Errors
    /// As [`Served::start`], and when PostgreSQL isn't.
    pub async fn start_online(node: Node) -> Result<Self> {
        let served = Self::start(node).await?;
        served.api.wait_status(ONLINE_DEADLINE, "online").await?;
        Ok(served)
    }

    /// A client of this user's.
    pub fn client(&self, user: &str) -> Client {
        self.api.client(&tokens::valid(user))
    }
}
