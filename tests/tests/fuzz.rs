//! Is the API what it says of itself? schemathesis makes requests, good and bad, from the description and holds the
//! answers to it, with all of its checks, whatever the stores do.
//!
//! `HOLDFAST_API_CASES` sets how many cases it makes for each operation and phase, `HOLDFAST_API_SEED` what from;
//! `make fuzz-api` sets both.

use std::env;
use std::time::Duration;

use anyhow::{Context, Result};
use holdfast_tests::python::{self, Campaign};
use holdfast_tests::{Node, Postgres, Program, Redis};
use serde_json::{Value, json};

const DATABASE: &str = "holdfast";
const SETTLE: Duration = Duration::from_secs(30);

/// Cases for each operation and phase, unless more are asked for: enough for each form of a request once.
const CASES: u32 = 4;
/// Makes the same cases each time.
const SEED: u64 = 20_261_128;
/// How long a run may take that makes no cases but those it always makes, so that one that hangs is noticed: many times
/// what it takes.
const PATIENCE: Duration = Duration::from_secs(900);
/// The same for each case more, of all operations together.
const PATIENCE_PER_CASE: Duration = Duration::from_secs(60);

fn number<T: std::str::FromStr>(name: &str, default: T) -> Result<T> {
    match env::var(name) {
        Ok(text) => text
            .parse()
            .ok()
            .with_context(|| format!("{name} is not a number: {text}")),
        Err(_) => Ok(default),
    }
}

fn campaign(api: &Program) -> Result<Campaign> {
    let cases = number("HOLDFAST_API_CASES", CASES)?;
    Ok(Campaign {
        origin: api.base_url(),
        description: None,
        operation: None,
        cases,
        seed: number("HOLDFAST_API_SEED", SEED)?,
        deadline: PATIENCE + PATIENCE_PER_CASE * cases,
        environment: Vec::new(),
    })
}

async fn nothing_is_found(campaign: &Campaign) -> Result<()> {
    let verdict = python::schemathesis(campaign).await?;
    eprintln!("{}", verdict.text);
    assert!(
        verdict.is_good,
        "schemathesis has found something, see above"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_it_is_what_it_says() -> Result<()> {
    let node = Node::new()?;
    let api = node.start_api().await?;
    nothing_is_found(&campaign(&api)?).await
}

/// The negative control: the same tests with a description that says too little, and one that says too much.
#[tokio::test(flavor = "multi_thread")]
async fn a_description_that_lies_is_found_out() -> Result<()> {
    let node = Node::new()?;
    let api = node.start_api().await?;
    let truth = api.anonymous().get_outside("/openapi.json").await?;
    let lies = [
        (
            "/paths/~1api~1v1~1tasks~1{id}/get/responses",
            "readTask",
            "Undocumented status code",
        ),
        (
            "/components/schemas/NewTask/properties/title/pattern",
            "createTask",
            "Schema-valid request rejected",
        ),
    ];
    for (place, operation, finding) in lies {
        let mut description = truth.expect(200).json().clone();
        match description
            .pointer_mut(place)
            .context("the description has another form")?
        {
            Value::Object(responses) => drop(responses.remove("404")),
            pattern => *pattern = json!(""),
        }
        let path = node.directory().join("lie.json");
        std::fs::write(&path, description.to_string())?;
        let verdict = python::schemathesis(&Campaign {
            description: Some(path),
            operation: Some(operation),
            ..campaign(&api)?
        })
        .await?;
        assert!(
            !verdict.is_good && verdict.text.contains(finding),
            "{}",
            verdict.text
        );
    }
    Ok(())
}

struct Online {
    api: Program,
    _syncd: Program,
    postgres: Postgres,
    _redis: Redis,
    _node: Node,
}

async fn start_online() -> Result<Online> {
    let postgres = Postgres::start().await?;
    let redis = Redis::start().await?;
    let url = postgres.create_database(DATABASE).await?;
    let node = Node::new()?
        .with("DATABASE_URL", &url)
        .with("REDIS_URL", &redis.url());
    node.syncd(&["migrate"]).await?.expect_code(0);
    let syncd = node.start_syncd().await?;
    let api = node.start_api().await?;
    api.wait_status(SETTLE, "online").await?;
    Ok(Online {
        api,
        _syncd: syncd,
        postgres,
        _redis: redis,
        _node: node,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn online_it_is_what_it_says() -> Result<()> {
    let online = start_online().await?;
    nothing_is_found(&campaign(&online.api)?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn with_postgres_dead_it_is_what_it_says() -> Result<()> {
    let mut online = start_online().await?;
    online.postgres.kill9().await?;
    online.api.wait_status(SETTLE, "offline").await?;
    nothing_is_found(&Campaign {
        environment: vec![("HOLDFAST_OUTAGE", "1")],
        ..campaign(&online.api)?
    })
    .await
}
