//! PostgreSQL, a PgBouncer before it, and a node that knows no other way.

use std::time::Duration;

use anyhow::Result;
use holdfast_tests::{Node, PgBouncer, Postgres, Program, Statements};
use tokio::sync::{Semaphore, SemaphorePermit};

pub const DATABASE: &str = "holdfast";

/// Longest wait for something that takes a second on an idle machine.
pub const SETTLE: Duration = Duration::from_secs(30);

/// A few servers at a time are enough for two cores.
static ROOM: Semaphore = Semaphore::const_new(2);

/// A pooler, and the setting that goes with it.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    pub statements: Statements,
    pub statement_cache: usize,
}

/// A pooler that loses statements, as Debian 12 has it, where none is to be kept.
pub const LOSING: Way = Way {
    statements: Statements::Lost,
    statement_cache: 0,
};

/// A pooler that keeps them, and nothing set.
pub const KEEPING: Way = Way {
    statements: Statements::Kept,
    statement_cache: 100,
};

/// PostgreSQL with the schema, and a pooler.
pub struct Stores {
    pub pooler: PgBouncer,
    pub postgres: Postgres,
    _room: SemaphorePermit<'static>,
}

impl Stores {
    /// With these settings of the pooler's besides.
    pub async fn start(statements: Statements, settings: &[(&str, &str)]) -> Result<Self> {
        let room = ROOM.acquire().await?;
        let postgres = Postgres::start().await?;
        let url = postgres.create_database(DATABASE).await?;
        let direct = Node::new()?.with("DATABASE_URL", &url);
        direct.syncd(&["migrate"]).await?.expect_code(0);
        Ok(Stores {
            pooler: PgBouncer::start(postgres.port(), statements, settings).await?,
            postgres,
            _room: room,
        })
    }

    /// The database's address, through the pooler.
    pub fn url(&self) -> String {
        self.postgres.url_through(self.pooler.port(), DATABASE)
    }

    /// A node on it, with nothing started.
    pub fn node(&self) -> Result<Node> {
        let node = Node::new()?.with("DATABASE_URL", &self.url());
        Ok(node.with("SYNC_INTERVAL_SECONDS", "1"))
    }
}

/// All of it, online: two API processes on one buffer, and a daemon.
pub struct Site {
    pub api: Program,
    pub second_api: Program,
    pub node: Node,
    pub stores: Stores,
    _second: Node,
    _syncd: Program,
}

impl Site {
    pub async fn start(way: Way) -> Result<Self> {
        let stores = Stores::start(way.statements, &[]).await?;
        let node = stores.node()?;
        Self::start_on(stores, node, way).await
    }

    /// With the programs' own deadline for PostgreSQL, as a pooler that has lost it lets its clients wait.
    pub async fn start_hasty(way: Way) -> Result<Self> {
        let stores = Stores::start(way.statements, &[]).await?;
        let node = stores.node()?.hasty();
        Self::start_on(stores, node, way).await
    }

    async fn start_on(stores: Stores, node: Node, way: Way) -> Result<Self> {
        let cache = way.statement_cache.to_string();
        let node = node.with("DB_STATEMENT_CACHE", &cache);
        let second = node.beside()?;
        let site = Site {
            api: node.start_api().await?,
            second_api: second.start_api().await?,
            _syncd: node.start_syncd().await?,
            _second: second,
            node,
            stores,
        };
        site.reaches("online").await?;
        Ok(site)
    }

    /// Waits until both API processes say so.
    pub async fn reaches(&self, status: &str) -> Result<()> {
        self.api.wait_status(SETTLE, status).await?;
        self.second_api.wait_status(SETTLE, status).await?;
        Ok(())
    }
}
