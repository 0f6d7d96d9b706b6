//! Do syncd's commands do what a sysadmin's scripts rely on: output, exit
//! codes, and the same answers with the daemon running or not?

use std::time::Duration;

use anyhow::{Context, Result};
use holdfast_tests::{Node, Postgres, Program, eventually, tokens};
use serde_json::{Value, json};

const USAGE: i32 = 64;
const UNAVAILABLE: i32 = 69;
const IO_ERROR: i32 = 74;
const TRY_LATER: i32 = 75;
const CONFIGURATION: i32 = 78;
const SETTLE: Duration = Duration::from_secs(60);

/// What doesn't wait for anything ends within this.
const AT_ONCE: Duration = Duration::from_secs(20);

/// A node on a PostgreSQL of its own.
struct Site {
    node: Node,
    postgres: Postgres,
}

async fn start_site() -> Result<Site> {
    let postgres = Postgres::start().await?;
    let url = postgres.create_database("holdfast").await?;
    let node = Node::new()?.with("DATABASE_URL", &url);
    node.syncd(&["migrate"]).await?.expect_code(0);
    Ok(Site { node, postgres })
}

/// Starts the API, kills PostgreSQL and has `count` tasks buffered.
async fn buffer_tasks(site: &mut Site, count: u32) -> Result<Program> {
    let api = site.node.start_api().await?;
    let up = |health: &Value| health["stores"]["postgres"]["state"] == "up";
    api.wait_health(SETTLE, "PostgreSQL to be seen", up).await?;
    site.postgres.kill9().await?;
    let client = api.client(&tokens::valid("somebody"));
    for number in 0..count {
        let task = json!({"title": format!("buffered {number}")});
        client.create_task(&task).await?.expect(202);
    }
    Ok(api)
}

async fn tasks_in(postgres: &Postgres) -> Result<i64> {
    let mut connection = postgres.connect("holdfast").await?;
    let query = sqlx::query_scalar("SELECT count(*) FROM tasks");
    query
        .fetch_one(&mut connection)
        .await
        .context("cannot count the tasks")
}

async fn status(node: &Node) -> Result<Value> {
    node.syncd(&["status", "--json"])
        .await?
        .expect_code(0)
        .json()
}

#[tokio::test]
async fn migrating_twice_is_migrating_once() -> Result<()> {
    let site = start_site().await?;
    assert_eq!(tasks_in(&site.postgres).await?, 0);
    site.node.syncd(&["migrate"]).await?.expect_code(0);
    assert_eq!(tasks_in(&site.postgres).await?, 0);
    Ok(())
}

#[tokio::test]
async fn the_daemon_makes_the_tables_of_an_empty_database_and_says_so_once() -> Result<()> {
    let postgres = Postgres::start().await?;
    let url = postgres.create_database("holdfast").await?;
    let node = Node::new()?.with("DATABASE_URL", &url);
    let syncd = node.start_syncd().await?;
    eventually(SETTLE, "the lane to begin", async || {
        let log = syncd.log();
        let begun = log.contains("buffer belongs to this database");
        begun.then_some(()).ok_or(log)
    })
    .await?;
    assert_eq!(tasks_in(&postgres).await?, 0);
    let log = syncd.log();
    assert_eq!(log.matches("database migrated").count(), 1, "{log}");
    assert!(!log.contains("sqlx::postgres::notice"), "{log}");
    Ok(())
}

#[tokio::test]
async fn migrating_without_a_database_says_which_is_missing() -> Result<()> {
    let mut site = start_site().await?;
    site.postgres.kill9().await?;
    site.node
        .syncd(&["migrate"])
        .await?
        .expect_code(UNAVAILABLE);
    site.node.unset("DATABASE_URL");
    let embedded = site.node.syncd(&["migrate"]).await?;
    embedded.expect_code(CONFIGURATION);
    assert!(
        embedded.stderr.contains("DATABASE_URL"),
        "{}",
        embedded.stderr
    );
    Ok(())
}

#[tokio::test]
async fn status_tells_the_backlog_with_the_daemon_and_without() -> Result<()> {
    let mut site = start_site().await?;
    let _api = buffer_tasks(&mut site, 3).await?;
    let without = status(&site.node).await?;
    assert_eq!(without["syncd"]["running"], false, "{without}");
    let _syncd = site.node.start_syncd().await?;
    let with = status(&site.node).await?;
    assert_eq!(with["syncd"]["running"], true, "{with}");
    for seen in [&without, &with] {
        assert_eq!(seen["status"], "offline", "{seen}");
        assert_eq!(seen["stores"]["postgres"]["state"], "down", "{seen}");
        assert_eq!(seen["stores"]["redis"]["state"], "disabled", "{seen}");
        assert_eq!(seen["buffer"]["state"], "ok", "{seen}");
        assert_eq!(seen["buffer"]["pending"], 3, "{seen}");
        assert_eq!(seen["buffer"]["dead"], 0, "{seen}");
        assert!(!seen["lanes"].is_null(), "{seen}");
    }
    let for_people = site.node.syncd(&["status"]).await?;
    assert!(!for_people.expect_code(0).stdout.trim().is_empty());
    Ok(())
}

#[tokio::test]
async fn items_are_listed_and_shown() -> Result<()> {
    let mut site = start_site().await?;
    let _api = buffer_tasks(&mut site, 3).await?;
    let listed = site
        .node
        .syncd(&["items", "list", "--json"])
        .await?
        .expect_code(0)
        .json()?;
    let items = listed.as_array().context("no array")?;
    assert_eq!(items.len(), 3, "{listed}");
    for item in items {
        assert_eq!(item["entity"], "task", "{item}");
        assert_eq!(item["operation"], "create", "{item}");
        assert_eq!(item["state"], "pending", "{item}");
        assert_eq!(item["priority"], 3, "{item}");
        assert!(item["fields"]["title"].is_string(), "{item}");
    }
    let id = items[0]["id"].as_str().context("an item without an id")?;
    let shown = site.node.syncd(&["items", "show", id, "--json"]).await?;
    assert!(shown.expect_code(0).stdout.contains(id), "{}", shown.stdout);
    let none = site.node.syncd(&["dead", "list", "--json"]).await?;
    assert_eq!(none.expect_code(0).json()?, json!([]));

    for (limit, is_cut_off) in [("2", true), ("3", false)] {
        let limited = ["items", "list", "--json", "--limit", limit];
        let limited = site.node.syncd(&limited).await?;
        let shown = limited.expect_code(0).json()?;
        assert_eq!(
            shown.as_array().map(|items| items.len().to_string()),
            Some(limit.to_owned())
        );
        assert_eq!(
            limited.stderr.contains("there are more"),
            is_cut_off,
            "{}",
            limited.stderr
        );
    }
    Ok(())
}

#[tokio::test]
async fn drain_says_whether_the_buffer_is_empty() -> Result<()> {
    let mut site = start_site().await?;
    let _api = buffer_tasks(&mut site, 25).await?;
    let away = site
        .node
        .syncd(&["drain", "--wait", "--timeout", "1"])
        .await?;
    away.expect_code(TRY_LATER);
    assert!(
        away.elapsed < Duration::from_secs(10),
        "it waited for {:?}",
        away.elapsed
    );
    assert_eq!(status(&site.node).await?["buffer"]["pending"], 25);

    site.postgres.start_again().await?;
    site.node
        .syncd(&["drain", "--wait", "--timeout", "30"])
        .await?
        .expect_code(0);
    assert_eq!(status(&site.node).await?["buffer"]["pending"], 0);
    assert_eq!(tasks_in(&site.postgres).await?, 25);
    site.node.syncd(&["drain"]).await?.expect_code(0);
    Ok(())
}

#[tokio::test]
async fn drain_works_beside_the_daemon() -> Result<()> {
    let mut site = start_site().await?;
    let _syncd = site.node.start_syncd().await?;
    let _api = buffer_tasks(&mut site, 25).await?;
    site.postgres.start_again().await?;
    site.node
        .syncd(&["drain", "--wait", "--timeout", "30"])
        .await?
        .expect_code(0);
    assert_eq!(tasks_in(&site.postgres).await?, 25);
    Ok(())
}

#[tokio::test]
async fn a_second_drain_does_not_end_the_first() -> Result<()> {
    let mut site = start_site().await?;
    let _api = buffer_tasks(&mut site, 3).await?;
    let waiting = ["drain", "--wait", "--timeout", "10"];
    let mut first = site.node.launch_syncd(&waiting)?;
    eventually(SETTLE, "the first to hold the lock", async || {
        let status = status(&site.node).await;
        let status = status.map_err(|error| format!("{error:#}"))?;
        let is_held = status["syncd"]["running"] == true;
        is_held.then_some(()).ok_or(status.to_string())
    })
    .await?;
    let second = site.node.syncd(&["drain"]).await?;
    second.expect_code(TRY_LATER);
    let ended = first.wait_exit(SETTLE).await?;
    assert_eq!(ended.code(), Some(TRY_LATER), "{ended}: {}", first.log());
    Ok(())
}

async fn expect_no_store(node: &Node, arguments: &[&str], code: i32) -> Result<()> {
    let ended = node.syncd(arguments).await?;
    ended.expect_code(code);
    let message = &ended.stderr;
    assert!(message.contains("no store is configured"), "{message}");
    assert!(ended.elapsed < AT_ONCE, "it took {:?}", ended.elapsed);
    Ok(())
}

#[tokio::test]
async fn draining_without_a_store_ends_at_once_and_says_why() -> Result<()> {
    let node = Node::new()?;
    let api = node.start_api().await?;
    let client = api.client(&tokens::valid("somebody"));
    let task = json!({"title": "stays here"});
    client.create_task(&task).await?.expect(201);
    expect_no_store(&node, &["drain"], TRY_LATER).await?;
    expect_no_store(&node, &["drain", "--wait"], CONFIGURATION).await?;
    let _syncd = node.start_syncd().await?;
    expect_no_store(&node, &["drain", "--wait"], CONFIGURATION).await
}

#[tokio::test]
async fn draining_where_there_is_no_buffer_file_is_no_success() -> Result<()> {
    let node = Node::new()?;
    let path = node.buffer_path();
    let path = path.to_string_lossy();
    let draining: [&[&str]; 2] = [&["drain"], &["drain", "--wait"]];
    for arguments in draining {
        let ended = node.syncd(arguments).await?;
        ended.expect_code(IO_ERROR);
        assert!(ended.stderr.contains(&*path), "{}", ended.stderr);
        assert!(ended.stderr.contains("set BUFFER_PATH"), "{}", ended.stderr);
    }
    let status = node.syncd(&["status"]).await?;
    let status = &status.expect_code(0).stdout;
    assert!(status.contains(&*path), "{status}");
    assert!(status.contains("(not there)"), "{status}");
    Ok(())
}

#[tokio::test]
async fn draining_salvages_what_was_set_aside_before() -> Result<()> {
    let mut site = start_site().await?;
    let mut api = buffer_tasks(&mut site, 3).await?;
    api.kill9().await?;
    let buffer = site.node.buffer_path();
    let aside = format!("{}.set-aside-20260101T000000Z", buffer.display());
    std::fs::rename(&buffer, &aside)?;
    // Makes a new, empty file.
    api.restart().await?;
    api.kill9().await?;
    site.postgres.start_again().await?;
    let draining = ["drain", "--wait", "--timeout", "30"];
    let drained = site.node.syncd(&draining).await?;
    drained.expect_code(0);
    assert!(drained.stderr.contains("salvaged"), "{}", drained.stderr);
    assert!(!std::path::Path::new(&aside).exists());
    assert_eq!(tasks_in(&site.postgres).await?, 3);
    Ok(())
}

#[tokio::test]
async fn config_check_tells_every_fault_at_once() -> Result<()> {
    let node = Node::new()?;
    node.syncd(&["config", "check"]).await?.expect_code(0);
    let node = node
        .with("BUFFER_MAX_SIZE", "lots")
        .with("SYNC_INTERVAL_SECONDS", "often")
        .with("SYNCD_ADDR", "nowhere");
    let finished = node.syncd(&["config", "check"]).await?;
    finished.expect_code(CONFIGURATION);
    for name in ["BUFFER_MAX_SIZE", "SYNC_INTERVAL_SECONDS", "SYNCD_ADDR"] {
        let naming = finished
            .lines()
            .into_iter()
            .filter(|line| line.contains(name))
            .count();
        assert_eq!(
            naming,
            1,
            "{name} is named on {naming} lines: {:#?}",
            finished.lines()
        );
    }
    Ok(())
}

#[tokio::test]
async fn config_show_hides_secrets() -> Result<()> {
    let node = Node::new()?
        .with("DATABASE_URL", "postgres://app:open-sesame@127.0.0.1:1/app")
        .with("BUFFER_MAX_SIZE", "4321");
    let shown = node.syncd(&["config", "show"]).await?;
    shown.expect_code(0);
    assert!(shown.stdout.contains("4321"), "{}", shown.stdout);
    for secret in ["open-sesame", tokens::SECRET] {
        assert!(
            !shown.stdout.contains(secret),
            "a secret is shown: {}",
            shown.stdout
        );
        assert!(
            !shown.stderr.contains(secret),
            "a secret is shown: {}",
            shown.stderr
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_wrong_command_line_exits_64() -> Result<()> {
    let node = Node::new()?;
    let wrong: [&[&str]; 4] = [
        &["fly"],
        &["status", "--loud"],
        &["items"],
        &["drain", "--timeout", "x"],
    ];
    for arguments in wrong {
        let finished = node.syncd(arguments).await?;
        finished.expect_code(USAGE);
        assert!(
            !finished.stderr.is_empty(),
            "{arguments:?} is refused without a word"
        );
    }
    Ok(())
}

#[tokio::test]
async fn help_completions_and_the_manual_are_there() -> Result<()> {
    let node = Node::new()?;
    let there: [&[&str]; 4] = [
        &["--help"],
        &["--version"],
        &["completions", "bash"],
        &["man"],
    ];
    for arguments in there {
        let finished = node.syncd(arguments).await?;
        assert!(
            !finished.expect_code(0).stdout.is_empty(),
            "{arguments:?} prints nothing"
        );
    }
    Ok(())
}
