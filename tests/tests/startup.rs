//! Does a process that can't start say why in one clear line, with the right
//! exit code, and does one that is asked to stop do so cleanly and in time?

use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use anyhow::Result;
use holdfast_tests::{Finished, Node, Postgres, Program, ReservedPort, eventually, tokens};
use nix::sys::signal::Signal;
use nix::unistd::Uid;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

const UNAVAILABLE: i32 = 69;
const IO_ERROR: i32 = 74;
const TRY_LATER: i32 = 75;
const CONFIGURATION: i32 = 78;

/// For what takes a few probes.
const SETTLE: Duration = Duration::from_secs(60);

const BOTH: [&str; 2] = ["holdfast-api", "syncd"];

/// A node whose log holds only what somebody must know.
fn quiet_node() -> Result<Node> {
    Ok(Node::new()?.with("LOG_LEVEL", "warn"))
}

/// Asserts that the only line written, on either output, mentions all of these.
#[track_caller]
fn assert_one_line(finished: &Finished, mentions: &[&str]) {
    let lines = finished.lines();
    assert_eq!(lines.len(), 1, "not one line but these: {lines:#?}");
    for mention in mentions {
        assert!(
            lines[0].contains(mention),
            "{mention:?} isn't mentioned: {}",
            lines[0]
        );
    }
    assert!(
        finished.stdout.is_empty(),
        "the error went to standard output"
    );
}

#[tokio::test]
async fn a_busy_port_is_one_line() -> Result<()> {
    for (program, variable) in BOTH.into_iter().zip(["API_ADDR", "SYNCD_ADDR"]) {
        let port = ReservedPort::claim()?;
        let _listener = TcpListener::bind(port.address())?;
        let node = quiet_node()?.with(variable, &port.address());
        let finished = node.run(program, &[]).await?;
        finished.expect_code_in(&[UNAVAILABLE, IO_ERROR]);
        assert_one_line(&finished, &[&port.address()]);
    }
    Ok(())
}

/// Runs a program without the right of root to write everywhere.
async fn run_powerless(node: &Node, program: &'static str) -> Result<Finished> {
    if Uid::effective().is_root() {
        let drop_all = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"];
        node.run_under(&drop_all, program).await
    } else {
        node.run(program, &[]).await
    }
}

#[tokio::test]
async fn an_unwritable_directory_is_one_line() -> Result<()> {
    let node = quiet_node()?;
    let locked = node.directory().join("locked");
    fs::create_dir(&locked)?;
    fs::set_permissions(&locked, Permissions::from_mode(0o500))?;
    let node = node.with("BUFFER_PATH", &locked.join("buffer.redb").to_string_lossy());
    for program in BOTH {
        let finished = run_powerless(&node, program).await?;
        finished.expect_code_in(&[IO_ERROR, CONFIGURATION]);
        assert_one_line(&finished, &[&*locked.to_string_lossy()]);
    }
    Ok(())
}

#[tokio::test]
async fn a_directory_below_a_file_is_one_line() -> Result<()> {
    let node = quiet_node()?;
    let file = node.directory().join("file");
    fs::write(&file, "no directory")?;
    let node = node.with("BUFFER_PATH", &file.join("buffer.redb").to_string_lossy());
    for program in BOTH {
        let finished = node.run(program, &[]).await?;
        finished.expect_code_in(&[IO_ERROR, CONFIGURATION]);
        assert_one_line(&finished, &[&*file.to_string_lossy()]);
    }
    Ok(())
}

#[tokio::test]
async fn a_bad_variable_is_one_line_that_names_it() -> Result<()> {
    let bad = [
        ("BUFFER_MAX_SIZE", "lots"),
        ("API_ADDR", "everywhere"),
        ("STORE_TIMEOUT_MS", "-1"),
        ("LOG_FORMAT", "xml"),
        ("SESSION_POLICY", "lax"),
        ("JWT_SECRET", "too-short"),
        ("DATABASE_URL", "mysql://localhost/app"),
        ("REDIS_URL", "http://localhost"),
        ("REDIS_URL", "redis+sentinel://one:26379,two:26379"),
    ];
    for (name, value) in bad {
        let node = quiet_node()?.with(name, value);
        for program in BOTH {
            let finished = node.run(program, &[]).await?;
            finished.expect_code(CONFIGURATION);
            assert_one_line(&finished, &[name]);
        }
    }
    Ok(())
}

#[tokio::test]
async fn all_faults_are_told_at_once_and_no_secret_is() -> Result<()> {
    let node = quiet_node()?
        .with("BUFFER_MAX_SIZE", "lots")
        .with("SYNC_BATCH_SIZE", "0")
        .with("JWT_SECRET", "my-short-secret")
        .with("MAX_RETRY_ATTEMPTS", "many");
    for program in BOTH {
        let finished = node.run(program, &[]).await?;
        finished.expect_code(CONFIGURATION);
        for name in [
            "BUFFER_MAX_SIZE",
            "SYNC_BATCH_SIZE",
            "JWT_SECRET",
            "MAX_RETRY_ATTEMPTS",
        ] {
            assert!(
                finished.stderr.contains(name),
                "{name} is missing: {}",
                finished.stderr
            );
        }
        assert!(
            !finished.stderr.contains("my-short-secret"),
            "{}",
            finished.stderr
        );
    }
    Ok(())
}

#[tokio::test]
async fn an_unknown_name_in_dotenv_is_one_line() -> Result<()> {
    let node = quiet_node()?.with("APP_ENV", "development");
    fs::write(node.directory().join(".env"), "BUFFER_MAXSIZE=3\n")?;
    for program in BOTH {
        let finished = node.run(program, &[]).await?;
        finished.expect_code(CONFIGURATION);
        assert_one_line(&finished, &["BUFFER_MAXSIZE"]);
    }
    Ok(())
}

#[tokio::test]
async fn production_refuses_to_start_without_keys_and_stores() -> Result<()> {
    let mut node = quiet_node()?.with("APP_ENV", "production");
    node.unset("JWT_SECRET");
    for program in BOTH {
        let finished = node.run(program, &[]).await?;
        finished.expect_code(CONFIGURATION);
        for name in ["JWT_SECRET", "DATABASE_URL", "REDIS_URL"] {
            assert!(
                finished.stderr.contains(name),
                "{name} is missing: {}",
                finished.stderr
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_second_syncd_exits_75() -> Result<()> {
    let node = quiet_node()?;
    let _first = node.start_syncd().await?;
    let second = node.beside()?;
    let finished = second.syncd(&["run"]).await?;
    finished.expect_code(TRY_LATER);
    assert_one_line(&finished, &[&*node.buffer_path().to_string_lossy()]);
    Ok(())
}

#[tokio::test]
async fn a_syncd_on_standby_takes_over() -> Result<()> {
    let node = quiet_node()?;
    let mut first = node.start_syncd().await?;
    let standby_node = node.beside()?;
    let mut standby = standby_node.launch_syncd(&["run", "--standby"])?;
    let third = node.beside()?;
    third.syncd(&["run"]).await?.expect_code(TRY_LATER);
    assert!(standby.is_running()?);
    first.kill9().await?;
    eventually(
        Duration::from_secs(10),
        "the standby to hold the lock",
        async || {
            let status = standby_node.syncd(&["status", "--json"]).await;
            match status.and_then(|status| status.json()) {
                Ok(status) if status["syncd"]["running"] == true => Ok(()),
                Ok(status) => Err(status.to_string()),
                Err(error) => Err(format!("{error:#}")),
            }
        },
    )
    .await?;
    standby.wait_livez().await?;
    third.syncd(&["run"]).await?.expect_code(TRY_LATER);
    Ok(())
}

#[tokio::test]
async fn sigterm_ends_both_with_0() -> Result<()> {
    let node = quiet_node()?;
    let mut syncd = node.start_syncd().await?;
    let mut api = node.start_api().await?;
    let client = api.client(&tokens::valid("somebody"));
    client
        .create_task(&json!({"title": "kept"}))
        .await?
        .expect(201);
    for program in [&mut api, &mut syncd] {
        let started = Instant::now();
        let status = program.terminate(Duration::from_secs(20)).await?;
        assert_eq!(status.code(), Some(0), "{status}");
        assert!(
            started.elapsed() < Duration::from_secs(5),
            "an idle process took its time"
        );
    }
    Ok(())
}

#[tokio::test]
async fn sigterm_is_not_held_up_by_a_half_sent_request() -> Result<()> {
    let node = quiet_node()?.with("SHUTDOWN_TIMEOUT_SECONDS", "2");
    let mut api = node.start_api().await?;
    let mut stuck = TcpStream::connect(node.api_address()).await?;
    let token = tokens::valid("somebody");
    let half = format!(
        "POST /api/v1/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{\"ti"
    );
    stuck.write_all(half.as_bytes()).await?;
    // Answered by the same process later than the half request was read.
    api.client(&token).get("/tasks").await?.expect(200);
    let status = api.terminate(Duration::from_secs(10)).await?;
    assert_eq!(status.code(), Some(0), "{status}");
    Ok(())
}

/// A node whose buffer holds a task that belongs to `postgres`, which is dead.
async fn node_with_pending(postgres: &mut Postgres) -> Result<Node> {
    let url = postgres.create_database("holdfast").await?;
    let node = quiet_node()?.with("DATABASE_URL", &url);
    node.syncd(&["migrate"]).await?.expect_code(0);
    let mut api = node.start_api().await?;
    let online = |health: &serde_json::Value| health["stores"]["postgres"]["state"] == "up";
    api.wait_health(Duration::from_secs(20), "PostgreSQL to be seen", online)
        .await?;
    postgres.kill9().await?;
    let client = api.client(&tokens::valid("somebody"));
    client
        .create_task(&json!({"title": "waits for its database"}))
        .await?
        .expect(202);
    api.terminate(Duration::from_secs(25)).await?;
    Ok(node)
}

#[tokio::test]
async fn a_buffer_with_items_refuses_to_become_embedded() -> Result<()> {
    let mut postgres = Postgres::start().await?;
    let mut node = node_with_pending(&mut postgres).await?;
    node.unset("DATABASE_URL");
    for program in BOTH {
        let finished = node.run(program, &[]).await?;
        finished.expect_code(CONFIGURATION);
        assert_one_line(&finished, &["syncd adopt"]);
    }
    Ok(())
}

async fn tasks_in(postgres: &Postgres, database: &str) -> Result<i64> {
    let mut connection = postgres.connect(database).await?;
    let query = sqlx::query_scalar("SELECT count(*) FROM tasks");
    Ok(query.fetch_one(&mut connection).await?)
}

#[tokio::test]
async fn a_syncd_set_up_for_another_database_gets_nothing_of_the_api_s() -> Result<()> {
    let mut postgres = Postgres::start().await?;
    let node = Node::new()?.with("DATABASE_URL", &postgres.create_database("ours").await?);
    node.syncd(&["migrate"]).await?.expect_code(0);
    let api = node.start_api().await?;
    let online = |health: &serde_json::Value| health["stores"]["postgres"]["state"] == "up";
    api.wait_health(SETTLE, "PostgreSQL to be seen", online)
        .await?;
    let client = api.client(&tokens::valid("somebody"));
    let first = json!({"title": "before"});
    client.create_task(&first).await?.expect(201);

    let mut astray = node.beside()?;
    astray.set("DATABASE_URL", &postgres.create_database("theirs").await?);
    astray.syncd(&["migrate"]).await?.expect_code(0);
    let mut syncd = astray.start_syncd().await?;
    eventually(SETTLE, "syncd to bind the empty buffer", async || {
        let log = syncd.log();
        let bound = log.contains("buffer belongs to this database from now on");
        bound.then_some(()).ok_or(log)
    })
    .await?;
    postgres.kill9().await?;
    let mut accepted: Vec<String> = Vec::new();
    for number in 0..20 {
        let task = json!({"title": format!("astray {number}")});
        let written = client.create_task(&task).await?;
        written.expect_in(&[202, 503]);
        if written.status() == 202 {
            accepted.push(written.json()["id"].as_str().unwrap_or_default().to_owned());
        }
    }
    postgres.start_again().await?;
    api.wait_health(SETTLE, "PostgreSQL to be seen again", online)
        .await?;
    if !accepted.is_empty() {
        let status = syncd.wait_exit(SETTLE).await?;
        assert_eq!(status.code(), Some(CONFIGURATION), "{}", syncd.log());
    }
    for id in &accepted {
        client.get(&format!("/tasks/{id}")).await?.expect(200);
    }
    assert_eq!(tasks_in(&postgres, "theirs").await?, 0);
    assert_eq!(tasks_in(&postgres, "ours").await?, 1);
    Ok(())
}

#[tokio::test]
async fn an_embedded_api_ends_when_a_syncd_joins_its_buffer_to_a_database() -> Result<()> {
    let postgres = Postgres::start().await?;
    let node = Node::new()?;
    let mut api = node.start_api().await?;
    let client = api.client(&tokens::valid("somebody"));
    let task = json!({"title": "embedded"});
    client.create_task(&task).await?.expect(201);
    let mut joined = node.beside()?;
    joined.set("DATABASE_URL", &postgres.create_database("holdfast").await?);
    let _syncd = joined.start_syncd().await?;
    let status = api.wait_exit(SETTLE).await?;
    assert_eq!(status.code(), Some(CONFIGURATION), "{}", api.log());
    assert!(api.log().contains("set DATABASE_URL"), "{}", api.log());
    eventually(
        SETTLE,
        "the task to be in PostgreSQL",
        async || match tasks_in(&postgres, "holdfast").await {
            Ok(1) => Ok(()),
            other => Err(format!("{other:?}")),
        },
    )
    .await
}

#[tokio::test]
async fn a_buffer_with_items_refuses_another_database() -> Result<()> {
    let mut postgres = Postgres::start().await?;
    let mut node = node_with_pending(&mut postgres).await?;
    let foreign = Postgres::start_foreign().await?;
    node.set("DATABASE_URL", &foreign.create_database("holdfast").await?);
    node.syncd(&["migrate"]).await?.expect_code(0);
    // A first probe that is late is worth a warning of its own.
    node.set("LOG_LEVEL", "error");
    for program in BOTH {
        let finished = node.run(program, &[]).await?;
        finished.expect_code(CONFIGURATION);
        assert_one_line(&finished, &["syncd adopt"]);
    }
    Ok(())
}

#[tokio::test]
async fn settings_read_again_are_told_apart_from_those_in_force() -> Result<()> {
    let node = Node::new()?;
    let dotenv = node.directory().join(".env");
    fs::write(&dotenv, "SYNC_BATCH_SIZE=60\n")?;
    let mut syncd = node.start_syncd().await?;
    // There and back: each is a change.
    for (reloads, size) in [(1, 70), (2, 60)] {
        fs::write(&dotenv, format!("SYNC_BATCH_SIZE={size}\n"))?;
        reload(&mut syncd, "applied", reloads).await?;
    }
    reload(&mut syncd, "nothing has changed", 1).await?;
    fs::write(&dotenv, "SYNC_BATCH_SIZE=60\nBUFFER_MAX_SIZE=7\n")?;
    reload(&mut syncd, "changed settings need a restart", 1).await
}

/// Has it read its settings again, until its log tells of `what` so many times.
async fn reload(syncd: &mut Program, what: &str, times: usize) -> Result<()> {
    syncd.signal(Signal::SIGHUP)?;
    eventually(SETTLE, what, async || {
        let log = syncd.log();
        let told = log.matches(what).count() == times;
        told.then_some(()).ok_or(log)
    })
    .await
}
