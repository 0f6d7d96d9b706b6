//! Is the harness what the other tests take it for? Real servers that start,
//! die, hang and come back; a proxy that hurts; nothing left behind.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use holdfast_tests::processes::Process;
use holdfast_tests::redis::{Persistence, Setup};
use holdfast_tests::tokens::{self, KeyPair};
use holdfast_tests::{
    FaultProxy, Flow, Ledger, Postgres, Redis, ReservedPort, eventually, raw_http,
};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use serde_json::{Value, json};
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Executor, Row};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

/// Long enough to be sure that nothing comes.
const SILENCE: Duration = Duration::from_millis(300);

async fn make_table(connection: &mut PgConnection) -> Result<()> {
    connection
        .execute(
            "CREATE TABLE tasks (id uuid PRIMARY KEY, user_id text NOT NULL, title text NOT NULL)",
        )
        .await?;
    Ok(())
}

async fn insert(connection: &mut PgConnection, id: Uuid, title: &str) -> Result<()> {
    sqlx::query("INSERT INTO tasks (id, user_id, title) VALUES ($1, 'me', $2)")
        .bind(id)
        .bind(title)
        .execute(connection)
        .await?;
    Ok(())
}

async fn count(connection: &mut PgConnection) -> Result<i64> {
    let row = sqlx::query("SELECT count(*) AS count FROM tasks")
        .fetch_one(connection)
        .await?;
    Ok(row.try_get("count")?)
}

#[tokio::test]
async fn postgres_keeps_what_was_committed_over_a_kill_and_a_stop() -> Result<()> {
    let mut postgres = Postgres::start().await?;
    postgres.create_database("app").await?;
    let mut connection = postgres.connect("app").await?;
    make_table(&mut connection).await?;
    insert(&mut connection, Uuid::new_v4(), "before the kill").await?;

    postgres.kill9().await?;
    assert!(postgres.connect("app").await.is_err());
    assert!(count(&mut connection).await.is_err());
    postgres.start_again().await?;
    let mut connection = postgres.connect("app").await?;
    insert(&mut connection, Uuid::new_v4(), "before the stop").await?;

    postgres.stop_immediate().await?;
    postgres.start_again().await?;
    assert_eq!(count(&mut postgres.connect("app").await?).await?, 2);
    Ok(())
}

#[tokio::test]
async fn postgres_is_durable_and_the_role_has_no_special_rights() -> Result<()> {
    let postgres = Postgres::start().await?;
    postgres.create_database("app").await?;
    let mut connection = postgres.connect("app").await?;
    for setting in ["fsync", "synchronous_commit", "full_page_writes"] {
        let row = sqlx::query("SELECT current_setting($1) AS value")
            .bind(setting)
            .fetch_one(&mut connection)
            .await?;
        assert_eq!(row.try_get::<String, _>("value")?, "on", "{setting}");
    }
    let row = sqlx::query("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
        .fetch_one(&mut connection)
        .await?;
    assert!(!row.try_get::<bool, _>("rolsuper")?);
    Ok(())
}

#[tokio::test]
async fn a_frozen_postgres_answers_nobody_until_it_is_thawed() -> Result<()> {
    let mut postgres = Postgres::start().await?;
    let mut connection = postgres.connect_admin("postgres").await?;
    postgres.freeze()?;
    let old_connection = connection.ping();
    let silent = tokio::time::timeout(SILENCE, old_connection).await;
    assert!(silent.is_err(), "an existing connection was answered");
    assert!(postgres.connect_admin("postgres").await.is_err());
    postgres.thaw()?;
    eventually(
        Duration::from_secs(10),
        "an answer after the thaw",
        async || {
            let connected = postgres.connect_admin("postgres").await;
            connected.map_err(|error| format!("{error:#}"))
        },
    )
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_frozen_postgres_can_be_killed_and_started_again() -> Result<()> {
    let mut postgres = Postgres::start().await?;
    let _connection = postgres.connect_admin("postgres").await?;
    postgres.freeze()?;
    postgres.kill9().await?;
    postgres.start_again().await?;
    postgres.connect_admin("postgres").await?;
    Ok(())
}

#[tokio::test]
async fn a_foreign_postgres_has_another_system_identifier() -> Result<()> {
    async fn identifier(postgres: &Postgres) -> Result<i64> {
        let mut connection = postgres.connect_admin("postgres").await?;
        let row = sqlx::query("SELECT system_identifier FROM pg_control_system()")
            .fetch_one(&mut connection)
            .await?;
        Ok(row.try_get("system_identifier")?)
    }
    let (one, foreign) = tokio::try_join!(Postgres::start(), Postgres::start_foreign())?;
    assert_ne!(identifier(&one).await?, identifier(&foreign).await?);
    Ok(())
}

#[tokio::test]
async fn nothing_of_postgres_outlives_its_owner() -> Result<()> {
    let postgres = Postgres::start().await?;
    let port = postgres.port();
    let mut connection = postgres.connect_admin("postgres").await?;
    let row =
        sqlx::query("SELECT pg_backend_pid() AS pid, current_setting('data_directory') AS data")
            .fetch_one(&mut connection)
            .await?;
    let backend: i32 = row.try_get("pid")?;
    let backend = Process::find(u32::try_from(backend)?).context("no such backend")?;
    let data: String = row.try_get("data")?;
    drop(postgres);
    assert!(!std::path::Path::new(&data).exists());
    assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err());
    eventually(
        Duration::from_secs(5),
        "the end of the backend",
        async || {
            if backend.is_gone() {
                Ok(())
            } else {
                Err("still there")
            }
        },
    )
    .await
}

#[tokio::test]
async fn redis_is_killed_frozen_and_started_again() -> Result<()> {
    let mut redis = Redis::start().await?;
    redis.ask("SET key value").await?;
    redis.freeze()?;
    let silent = tokio::time::timeout(SILENCE, redis.ask("GET key")).await;
    assert!(silent.is_err(), "a frozen Redis answered");
    redis.thaw()?;
    assert_eq!(redis.ask("EXISTS key").await?, ":1\r\n");
    redis.kill9().await?;
    assert!(redis.ask("PING").await.is_err());
    redis.start_again().await?;
    assert_eq!(redis.ask("EXISTS key").await?, ":0\r\n");
    Ok(())
}

#[tokio::test]
async fn a_redis_that_keeps_every_write_has_it_after_a_kill() -> Result<()> {
    let mut redis = Redis::start_as(Setup::default().keeping(Persistence::EveryWrite)).await?;
    redis.ask("SET key value").await?;
    redis.kill9().await?;
    redis.start_again().await?;
    assert_eq!(redis.ask("EXISTS key").await?, ":1\r\n");
    Ok(())
}

#[test]
fn reserved_ports_differ_and_are_free() -> Result<()> {
    let ports: Vec<ReservedPort> = (0..50)
        .map(|_| ReservedPort::claim())
        .collect::<Result<_>>()?;
    let mut numbers: Vec<u16> = ports.iter().map(ReservedPort::number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), ports.len());
    for port in &ports {
        std::net::TcpListener::bind(port.address())?;
    }
    Ok(())
}

#[tokio::test]
async fn a_wait_that_fails_says_what_it_saw_last() -> Result<()> {
    let mut looks = 0;
    let waited: Result<()> = eventually(Duration::from_millis(100), "better days", async || {
        looks += 1;
        Err(format!("look {looks}"))
    })
    .await;
    let message = waited.err().context("it did not fail")?.to_string();
    assert!(message.contains("better days"), "{message}");
    assert!(message.contains(&format!("look {looks}")), "{message}");
    Ok(())
}

#[tokio::test]
async fn a_wait_is_not_held_up_by_a_look_that_hangs() -> Result<()> {
    let started = Instant::now();
    let waited: Result<()> = eventually(Duration::from_millis(100), "an answer", async || {
        std::future::pending::<Result<(), String>>().await
    })
    .await;
    assert!(waited.is_err());
    ensure!(started.elapsed() < Duration::from_secs(5), "it hung");
    Ok(())
}

/// A server that sends back whatever comes.
async fn start_echo() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });
    Ok(port)
}

async fn echoed(stream: &mut TcpStream, byte: u8) -> Result<u8> {
    stream.write_all(&[byte]).await?;
    Ok(stream.read_u8().await?)
}

/// Whether nothing at all comes from the stream for a while.
async fn is_silent(stream: &mut TcpStream) -> bool {
    tokio::time::timeout(SILENCE, stream.read_u8())
        .await
        .is_err()
}

#[tokio::test]
async fn the_proxy_passes_and_delays() -> Result<()> {
    let mut proxy = FaultProxy::start(start_echo().await?).await?;
    let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).await?;
    assert_eq!(echoed(&mut stream, 7).await?, 7);
    proxy.set(Flow::Delay(Duration::from_millis(100))).await?;
    let started = Instant::now();
    assert_eq!(echoed(&mut stream, 8).await?, 8);
    assert!(
        started.elapsed() >= Duration::from_millis(200),
        "{:?}",
        started.elapsed()
    );
    Ok(())
}

#[tokio::test]
async fn the_proxy_hands_on_an_orderly_end() -> Result<()> {
    let proxy = FaultProxy::start(start_echo().await?).await?;
    let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).await?;
    stream.write_all(b"last words").await?;
    stream.shutdown().await?;
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await?;
    assert_eq!(all, b"last words");
    Ok(())
}

#[tokio::test]
async fn the_proxy_cuts_and_refuses_and_comes_back() -> Result<()> {
    let mut proxy = FaultProxy::start(start_echo().await?).await?;
    let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).await?;
    assert_eq!(echoed(&mut stream, 1).await?, 1);
    proxy.set(Flow::Cut).await?;
    assert!(stream.read_u8().await.is_err());
    assert!(
        TcpStream::connect(("127.0.0.1", proxy.port()))
            .await
            .is_err()
    );
    proxy.set(Flow::Pass).await?;
    let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).await?;
    assert_eq!(echoed(&mut stream, 2).await?, 2);
    Ok(())
}

#[tokio::test]
async fn the_proxy_swallows_old_and_new_connections_in_a_black_hole() -> Result<()> {
    let mut proxy = FaultProxy::start(start_echo().await?).await?;
    let mut old = TcpStream::connect(("127.0.0.1", proxy.port())).await?;
    assert_eq!(echoed(&mut old, 1).await?, 1);
    proxy.set(Flow::BlackHole).await?;
    let mut new = TcpStream::connect(("127.0.0.1", proxy.port())).await?;
    old.write_all(&[2]).await?;
    new.write_all(&[3]).await?;
    assert!(is_silent(&mut old).await);
    assert!(is_silent(&mut new).await);
    proxy.set(Flow::Pass).await?;
    assert_eq!(old.read_u8().await?, 2);
    assert_eq!(new.read_u8().await?, 3);
    Ok(())
}

#[tokio::test]
async fn behind_a_half_open_proxy_a_commit_happens_and_nobody_learns_it() -> Result<()> {
    let postgres = Postgres::start().await?;
    postgres.create_database("app").await?;
    let mut direct = postgres.connect("app").await?;
    make_table(&mut direct).await?;
    let mut proxy = FaultProxy::start(postgres.port()).await?;
    let mut through = PgConnection::connect(&postgres.url_through(proxy.port(), "app")).await?;
    // Prepared before the answers get lost, so that one message commits it.
    insert(&mut through, Uuid::new_v4(), "answered").await?;
    proxy.set(Flow::HalfOpen).await?;
    let unanswered = insert(&mut through, Uuid::new_v4(), "unanswered");
    assert!(tokio::time::timeout(SILENCE, unanswered).await.is_err());
    eventually(
        Duration::from_secs(5),
        "the unanswered row",
        async || match count(&mut direct).await {
            Ok(2) => Ok(()),
            Ok(rows) => Err(format!("{rows} rows")),
            Err(error) => Err(format!("{error:#}")),
        },
    )
    .await
}

#[tokio::test]
async fn the_ledger_finds_what_is_missing_doubled_and_outdated() -> Result<()> {
    let postgres = Postgres::start().await?;
    postgres.create_database("app").await?;
    let mut connection = postgres.connect("app").await?;
    make_table(&mut connection).await?;
    let ledger = Ledger::new("check");
    let created: Vec<_> = (0..4)
        .map(|_| {
            let (number, title) = ledger.begin_task();
            let id = Uuid::new_v4();
            ledger.acknowledge_task(number, id);
            (number, id, title)
        })
        .collect();
    let (_, present, title) = &created[0];
    insert(&mut connection, *present, title).await?;
    let (_, doubled, title) = &created[1];
    insert(&mut connection, *doubled, title).await?;
    insert(&mut connection, Uuid::new_v4(), title).await?;
    let (number, outdated, title) = &created[2];
    insert(&mut connection, *outdated, title).await?;
    ledger.begin_rename(*number, "renamed");
    ledger.acknowledge_rename(*number);
    insert(&mut connection, Uuid::new_v4(), "of somebody else").await?;

    let findings = ledger.compare(&mut connection).await?;
    assert_eq!((findings.acknowledged, findings.present_once), (4, 1));
    assert_eq!(findings.missing, ["check 3"]);
    assert_eq!(findings.doubled, ["check 1"]);
    assert_eq!(findings.outdated.len(), 1);
    assert_eq!(findings.broken_promises().len(), 3);
    Ok(())
}

#[test]
fn good_tokens_are_good_and_bad_ones_are_bad() -> Result<()> {
    let validation = Validation::new(Algorithm::HS256);
    let key = DecodingKey::from_secret(tokens::SECRET.as_bytes());
    let check = |token: &str| decode::<Value>(token, &key, &validation).is_ok();
    assert!(check(&tokens::valid("me")));
    assert!(!check(&tokens::foreign("me")));
    assert!(!check(&tokens::unsigned("me")));
    assert!(!check(&tokens::tampered("me")));
    let mut no_leeway = Validation::new(Algorithm::HS256);
    no_leeway.leeway = 30;
    assert!(decode::<Value>(&tokens::expired("me"), &key, &no_leeway).is_err());

    let claims = tokens::claims("me");
    let algorithms = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];
    for (pair, algorithm) in KeyPair::ALL.into_iter().zip(algorithms) {
        let pem = std::fs::read(pair.public_key_file())?;
        let key = match pair {
            KeyPair::Rs256 => DecodingKey::from_rsa_pem(&pem)?,
            KeyPair::Es256 => DecodingKey::from_ec_pem(&pem)?,
            KeyPair::EdDsa => DecodingKey::from_ed_pem(&pem)?,
        };
        let token = pair.sign(&claims, Some("its id"))?;
        let decoded = decode::<Value>(&token, &key, &Validation::new(algorithm))?;
        assert_eq!(decoded.claims["sub"], "me");
        assert_eq!(decoded.header.kid.as_deref(), Some("its id"));
    }
    Ok(())
}

#[tokio::test]
async fn a_raw_exchange_reads_what_came_before_the_close() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await?;
        let mut request = [0; 4];
        stream.read_exact(&mut request).await?;
        stream
            .write_all(b"HTTP/1.1 418 I'm a teapot\r\nX-Kind: short\r\n\r\n{\"stout\":true}")
            .await
    });
    let answer = raw_http::exchange(&address, b"brew", Duration::from_secs(5)).await?;
    assert_eq!(answer.status(), 418);
    assert_eq!(answer.header("x-kind"), Some("short"));
    assert_eq!(answer.json(), &json!({"stout": true}));
    Ok(())
}
