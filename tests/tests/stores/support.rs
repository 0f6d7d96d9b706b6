//! A PostgreSQL with the schema, and the store that uses it.

use std::time::Duration;

use anyhow::Result;
use holdfast_shared::config::PostgresConfig;
use holdfast_shared::domain::{Operation, Outcome, Row, TaskId, UserId};
use holdfast_shared::store::postgres::{Applied, Postgres, Timeouts};
use holdfast_tests::eventually;
use sqlx::postgres::PgConnection;

pub const DATABASE: &str = "holdfast";

/// Long against what is measured here, so that a busy machine doesn't fail a test.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A server of its own, and a store on it.
pub struct Fixture {
    pub server: holdfast_tests::Postgres,
    pub store: Postgres,
}

impl Fixture {
    /// A server with the newest schema.
    pub async fn start() -> Result<Self> {
        let fixture = Self::start_empty().await?;
        fixture.store.migrate().await?;
        Ok(fixture)
    }

    /// A server with an empty database.
    pub async fn start_empty() -> Result<Self> {
        let server = holdfast_tests::Postgres::start().await?;
        let url = server.create_database(DATABASE).await?;
        let store = store(&url, patient());
        Ok(Fixture { server, store })
    }

    /// Another store on the same database.
    pub fn store_with(&self, timeouts: Timeouts) -> Postgres {
        store(&self.server.url(DATABASE), timeouts)
    }

    /// A connection beside the store.
    pub async fn connect(&self) -> Result<PgConnection> {
        self.server.connect(DATABASE).await
    }
}

/// A store on the database at this URL.
pub fn store(url: &str, timeouts: Timeouts) -> Postgres {
    Postgres::new(&config(url), timeouts)
}

/// The configuration of that store.
pub fn config(url: &str) -> PostgresConfig {
    PostgresConfig {
        options: url.parse().expect("a URL"),
        max_connections: 10,
        statement_cache: 100,
    }
}

/// For tests that aren't about time.
pub fn patient() -> Timeouts {
    Timeouts::direct(PATIENCE)
}

/// The deadline of tests that are: long enough for a disk that stalls for a second.
pub const HASTE: Duration = Duration::from_secs(2);

/// What a call may take beyond its deadline, on a busy machine.
pub const SLACK: Duration = Duration::from_secs(3);

/// For tests that are.
pub fn hasty() -> Timeouts {
    Timeouts::direct(HASTE)
}

/// For tests of rows that others keep locked: what comes before and after that wait has all the time it needs.
pub fn put_off() -> Timeouts {
    Timeouts {
        lock: LOCK_WAIT,
        ..patient()
    }
}

/// How long those wait for a row.
pub const LOCK_WAIT: Duration = Duration::from_millis(500);

/// Applies one operation.
pub async fn apply_one(store: &Postgres, operation: &Operation) -> Result<Applied> {
    let mut applied = store.apply(std::slice::from_ref(operation)).await?;
    assert_eq!(applied.len(), 1);
    Ok(applied.remove(0))
}

/// The outcome of each.
pub fn outcomes(applied: &[Applied]) -> Vec<Outcome> {
    applied.iter().map(|applied| applied.outcome).collect()
}

/// The row of a task that has to be there.
pub async fn row(store: &Postgres, id: TaskId) -> Result<Row> {
    Ok(store.find_task(id).await?.expect("the task is there"))
}

/// A user that no other test knows.
pub fn some_user() -> UserId {
    UserId::parse(&format!("user-{}", uuid::Uuid::now_v7())).expect("valid")
}

/// Waits until nobody is seen who has begun something within this time.
pub async fn is_alone(daemon: &Postgres, within: Duration) -> Result<()> {
    eventually(PATIENCE, "nobody else to be served", async || match daemon
        .serves_others(within)
        .await
    {
        Ok(false) => Ok(()),
        Ok(true) => Err("others are".to_owned()),
        Err(error) => Err(error.to_string()),
    })
    .await
}
