//! What can't work behind a pooler is said, with what to do about it; nothing is lost meanwhile.

use anyhow::Result;
use holdfast_tests::{
    Answer, Client, PgBouncer, Postgres, Program, Statements, eventually, tokens,
};
use serde_json::{Value, json};
use sqlx::Row;

use crate::site::{DATABASE, SETTLE, Stores};

const REMEDY: &str = "set DB_STATEMENT_CACHE=0";

/// Whatever an operator may look at says this.
async fn is_said_everywhere(site: &Suffering, said: &str) -> Result<()> {
    let says = |health: &Value| {
        let postgres = &health["stores"]["postgres"];
        let error = postgres["error"].as_str().unwrap_or_default();
        postgres["state"] == "down" && error.contains(said)
    };
    site.api.wait_health(SETTLE, said, says).await?;
    let look = async || {
        let log = site.syncd.log();
        let is_said = log.contains("lane stopped") && log.contains(said);
        if is_said { Ok(()) } else { Err(log) }
    };
    eventually(SETTLE, "the journal to say why the lane stopped", look).await?;
    site.node.wait_told(SETTLE, said).await
}

struct Suffering {
    api: Program,
    syncd: Program,
    node: holdfast_tests::Node,
}

impl Suffering {
    async fn start(node: holdfast_tests::Node) -> Result<Self> {
        Ok(Suffering {
            api: node.start_api().await?,
            syncd: node.start_syncd().await?,
            node,
        })
    }

    fn client(&self) -> Client {
        self.api.client(&tokens::valid("somebody"))
    }

    async fn create(&self, title: &str) -> Result<Answer> {
        self.client().create_task(&json!({"title": title})).await
    }
}

/// A pooler that loses statements is told from one that keeps them before anything is prepared for good.
async fn a_pooler_that_loses_statements_is_named(settings: &[(&str, &str)]) -> Result<()> {
    let one = [("default_pool_size", "1")];
    let settings: Vec<_> = settings.iter().chain(&one).copied().collect();
    let stores = Stores::start(Statements::Lost, &settings).await?;
    let suffering = Suffering::start(stores.node()?).await?;
    is_said_everywhere(&suffering, REMEDY).await?;
    for title in ["one", "two", "three"] {
        suffering.create(title).await?.expect(202);
    }
    let mut guest = sqlx::ConnectOptions::connect(&stores.pooler.options(DATABASE)).await?;
    let left = sqlx::raw_sql("SELECT count(*) FROM pg_prepared_statements");
    let left: String = sqlx::Executor::fetch_one(&mut guest, left)
        .await?
        .try_get_unchecked(0)?;
    assert_eq!(left, "0", "statements stay on the pooler's connection");

    let Suffering { api, syncd, node } = suffering;
    drop((api, syncd));
    let mended = Suffering::start(node.with("DB_STATEMENT_CACHE", "0")).await?;
    let health = mended.api.wait_status(SETTLE, "online").await?;
    assert_eq!(health["buffer"]["dead"], 0, "{health}");
    let mut direct = stores.postgres.connect(DATABASE).await?;
    let rows = sqlx::query("SELECT count(*) FROM tasks")
        .fetch_one(&mut direct)
        .await?;
    assert_eq!(rows.try_get::<i64, _>(0)?, 3);
    mended.create("straight").await?.expect(201);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_that_refuses_options_and_loses_statements_is_named() -> Result<()> {
    a_pooler_that_loses_statements_is_named(&[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_that_ignores_options_and_loses_statements_is_named() -> Result<()> {
    let ignores = [("ignore_startup_parameters", "options,extra_float_digits")];
    a_pooler_that_loses_statements_is_named(&ignores).await
}

#[tokio::test(flavor = "multi_thread")]
async fn migrating_through_a_pooler_is_refused_with_the_way_out() -> Result<()> {
    let postgres = Postgres::start().await?;
    let url = postgres.create_database(DATABASE).await?;
    for (statements, cache) in [(Statements::Lost, "0"), (Statements::Kept, "100")] {
        let pooler = PgBouncer::start(postgres.port(), statements, &[]).await?;
        let node = holdfast_tests::Node::new()?
            .with(
                "DATABASE_URL",
                &postgres.url_through(pooler.port(), DATABASE),
            )
            .with("DB_STATEMENT_CACHE", cache);
        let refused = node.syncd(&["migrate"]).await?;
        let words = &refused.expect_code(78).stderr;
        assert!(words.contains("to PostgreSQL's own address"), "{words}");
        // The daemon, which migrates by itself outside production, says both: what is wrong and why it can't mend it.
        let syncd = node.start_syncd().await?;
        let look = async || {
            let log = syncd.log();
            let is_said =
                log.contains("run syncd migrate") && log.contains("to PostgreSQL's own address");
            if is_said { Ok(()) } else { Err(log) }
        };
        eventually(SETTLE, "the journal to say both", look).await?;
    }
    let node = holdfast_tests::Node::new()?.with("DATABASE_URL", &url);
    node.syncd(&["migrate"]).await?.expect_code(0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_pooler_refuses_for_good_is_no_outage() -> Result<()> {
    let stores = Stores::start(Statements::Lost, &[]).await?;
    let url = stores.url();
    let unknown = url.replace("holdfast:holdfast@", "stranger:holdfast@");
    let with_options = format!("{url}&options=-c%20search_path%3Dpublic");
    for (url, said) in [
        (unknown, "a pooler refuses the user or the password"),
        (with_options, "a pooler refuses the options in DATABASE_URL"),
    ] {
        let node = stores
            .node()?
            .with("DATABASE_URL", &url)
            .with("DB_STATEMENT_CACHE", "0");
        let suffering = Suffering::start(node).await?;
        suffering.create("kept").await?.expect(202);
        is_said_everywhere(&suffering, said).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_by_statement_is_told_from_one_by_transaction() -> Result<()> {
    let by_statement = [("pool_mode", "statement")];
    let stores = Stores::start(Statements::Lost, &by_statement).await?;
    for cache in ["0", "100"] {
        let node = stores.node()?.with("DB_STATEMENT_CACHE", cache);
        let suffering = Suffering::start(node).await?;
        suffering.create("kept").await?.expect(202);
        is_said_everywhere(&suffering, "set its pool_mode to transaction").await?;
    }
    Ok(())
}
