//! Sessions and revocations, in a real Redis.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{Client, FromRedisValue, cmd};
use holdfast_shared::config::Config;
use holdfast_shared::domain::{Revocation, Session, SessionId, Timestamp, UserId};
use holdfast_shared::health::Probe;
use holdfast_shared::store::redis::{Redis, RevocationCursor, RevocationPage};
use holdfast_shared::store::{FailureClass, StoreError};
use holdfast_tests::redis::Setup;
use holdfast_tests::{FaultProxy, Flow};

use crate::support::{HASTE, PATIENCE, SLACK, some_user};

struct Fixture {
    server: holdfast_tests::Redis,
    store: Redis,
}

impl Fixture {
    async fn start() -> Result<Self> {
        let server = holdfast_tests::Redis::start().await?;
        let store = store(server.port())?;
        Ok(Fixture { server, store })
    }

    async fn ask<T: FromRedisValue>(&self, words: &[&str]) -> Result<T> {
        let mut command = cmd(words[0]);
        words[1..].iter().for_each(|word| _ = command.arg(*word));
        Ok(command.query_async(&mut self.connect().await?).await?)
    }

    async fn connect(&self) -> Result<MultiplexedConnection> {
        let client = Client::open(format!("redis://127.0.0.1:{}", self.server.port()))?;
        Ok(client.get_multiplexed_async_connection().await?)
    }
}

fn store(port: u16) -> Result<Redis> {
    store_by(&format!("redis://127.0.0.1:{port}/0"))
}

fn store_by(url: &str) -> Result<Redis> {
    store_within(url, PATIENCE)
}

fn store_within(url: &str, deadline: Duration) -> Result<Redis> {
    let pair = ("REDIS_URL".to_owned(), url.to_owned());
    let config = Config::from_pairs([pair])?.redis.context("it is set")?;
    Ok(Redis::new(&config, deadline))
}

/// What comes after the cursor, which must be there still.
async fn since(store: &Redis, cursor: RevocationCursor) -> Result<RevocationPage> {
    let page = store.revocations_since(cursor).await?;
    page.context("what was read is there no more")
}

fn now() -> Timestamp {
    chrono::Utc::now().into()
}

fn in_seconds(seconds: i64) -> Timestamp {
    Timestamp::from_micros(now().as_micros() + seconds * 1_000_000)
}

fn session_id(name: &str) -> SessionId {
    SessionId::parse(name).expect("valid")
}

fn session(user: &UserId, name: &str, expires_in_s: i64) -> Session {
    Session {
        id: session_id(name),
        user_id: user.clone(),
        created_at: now(),
        last_seen_at: now(),
        expires_at: in_seconds(expires_in_s),
        user_agent: Some("Mozilla/5.0 (ünï)".to_owned()),
    }
}

fn revocation(user: &UserId, name: &str, keep_s: i64) -> (UserId, Revocation) {
    (
        user.clone(),
        Revocation {
            session_id: session_id(name),
            keep_until: in_seconds(keep_s),
        },
    )
}

fn names(revocations: &[Revocation]) -> Vec<&str> {
    revocations
        .iter()
        .map(|revocation| revocation.session_id.as_str())
        .collect()
}

#[tokio::test]
async fn a_session_is_recorded_until_its_token_expires() -> Result<()> {
    let fixture = Fixture::start().await?;
    let user = some_user();
    let mut first = session(&user, "one:with colon", 3600);
    fixture.store.record_session(&first).await?;
    assert_eq!(
        fixture.store.find_session(&first.id).await?,
        Some(first.clone())
    );
    let seen_again = Session {
        created_at: in_seconds(9),
        last_seen_at: in_seconds(9),
        ..first.clone()
    };
    fixture.store.record_session(&seen_again).await?;
    first.last_seen_at = seen_again.last_seen_at;
    assert_eq!(
        fixture.store.find_session(&first.id).await?,
        Some(first.clone()),
        "created_at stays"
    );
    let other = Session {
        user_agent: None,
        ..session(&user, "two", 7200)
    };
    fixture.store.record_session(&other).await?;
    assert_eq!(fixture.store.list_sessions(&user).await?, [other, first]);
    assert_eq!(fixture.store.list_sessions(&some_user()).await?, []);
    for key in [
        "session:one:with colon".to_owned(),
        format!("user_sessions:{user}"),
    ] {
        let ttl_ms: i64 = fixture.ask(&["PTTL", &key]).await?;
        assert!((3_000_000..=7_200_000).contains(&ttl_ms), "{key}: {ttl_ms}");
    }
    fixture
        .store
        .record_session(&session(&user, "past", -5))
        .await?;
    assert_eq!(fixture.store.find_session(&session_id("past")).await?, None);
    Ok(())
}

#[tokio::test]
async fn a_session_ends_with_the_last_of_its_tokens() -> Result<()> {
    let fixture = Fixture::start().await?;
    let user = some_user();
    for (expires_in_s, last_s) in [(3600, 3600), (7200, 7200), (60, 7200)] {
        let seen = session(&user, "one", expires_in_s);
        fixture.store.record_session(&seen).await?;
        let found = fixture.store.find_session(&seen.id).await?;
        let ends = found.expect("in force").expires_at;
        let away_s = (ends.as_millis() - in_seconds(last_s).as_millis()).abs() / 1000;
        assert!(away_s < 60, "after {expires_in_s} it is {away_s} s off");
    }
    Ok(())
}

#[tokio::test]
async fn a_users_sessions_are_bounded() -> Result<()> {
    let fixture = Fixture::start().await?;
    let user = some_user();
    for number in 0..1010 {
        fixture
            .store
            .record_session(&session(&user, &format!("s{number}"), 1000 + number))
            .await?;
    }
    let kept = fixture.store.list_sessions(&user).await?;
    assert_eq!(kept.len(), 1000);
    assert_eq!(
        kept[0].id.as_str(),
        "s1009",
        "those that expire last are kept"
    );
    Ok(())
}

#[tokio::test]
async fn a_revoked_session_is_known_and_gone() -> Result<()> {
    let fixture = Fixture::start().await?;
    let user = some_user();
    let session = session(&user, "one", 60);
    fixture.store.record_session(&session).await?;
    assert!(!fixture.store.is_revoked(&session.id).await?);
    let revocations = [
        revocation(&user, "one", 100),
        revocation(&user, "unseen", 100),
    ];
    for _ in 0..2 {
        fixture.store.revoke(&revocations).await?;
        assert!(fixture.store.is_revoked(&session.id).await?);
        assert_eq!(fixture.store.list_sessions(&user).await?, []);
    }
    fixture.store.record_session(&session).await?;
    assert_eq!(
        fixture.store.find_session(&session.id).await?,
        None,
        "seen by a node that doesn't know yet"
    );
    assert_eq!(fixture.store.list_sessions(&user).await?, []);
    let ttl_ms: i64 = fixture.ask(&["PTTL", "revocation:one"]).await?;
    assert!((90_000..=100_000).contains(&ttl_ms), "{ttl_ms}");
    fixture.store.revoke(&[]).await?;
    Ok(())
}

#[tokio::test]
async fn revocations_are_read_once_and_in_order() -> Result<()> {
    let fixture = Fixture::start().await?;
    let (store, user) = (&fixture.store, some_user());
    let nothing = since(store, RevocationCursor::default()).await?;
    assert_eq!((nothing.revocations, nothing.is_last), (vec![], true));
    let both = [revocation(&user, "a", 100), revocation(&user, "b", 200)];
    store.revoke(&both).await?;
    let news = since(store, nothing.cursor).await?;
    assert_eq!(
        (news.revocations, news.is_last),
        (both.map(|(_, revocation)| revocation).to_vec(), true)
    );
    let nothing = since(store, news.cursor.clone()).await?;
    assert_eq!(
        (nothing.revocations, &nothing.cursor),
        (vec![], &news.cursor)
    );
    store.revoke(&[revocation(&user, "c", 100)]).await?;
    let news = since(store, nothing.cursor).await?;
    assert_eq!(names(&news.revocations), ["c"]);
    Ok(())
}

#[tokio::test]
async fn many_revocations_come_in_pages_none_left_out() -> Result<()> {
    let fixture = Fixture::start().await?;
    let user = some_user();
    let many: Vec<_> = (0..5000)
        .map(|number| revocation(&user, &format!("s{number}"), 100))
        .collect();
    fixture.store.revoke(&many).await?;
    let mut cursor = RevocationCursor::default();
    let mut read = Vec::new();
    loop {
        let page = since(&fixture.store, cursor).await?;
        assert!(page.revocations.len() <= 2000);
        read.extend(page.revocations);
        cursor = page.cursor;
        if page.is_last {
            break;
        }
    }
    assert_eq!(read.len(), 5000);
    assert!(read.iter().zip(&many).all(|(one, (_, other))| one == other));
    Ok(())
}

#[tokio::test]
async fn expired_revocations_are_trimmed() -> Result<()> {
    let fixture = Fixture::start().await?;
    let user = some_user();
    fixture
        .store
        .revoke(&[revocation(&user, "old", -1), revocation(&user, "new", 100)])
        .await?;
    assert!(!fixture.store.is_revoked(&session_id("old")).await?);
    let left = since(&fixture.store, RevocationCursor::default()).await?;
    assert_eq!(names(&left.revocations), ["new"]);
    Ok(())
}

#[tokio::test]
async fn a_redis_that_lost_what_was_read_says_so() -> Result<()> {
    let fixture = Fixture::start().await?;
    let (store, user) = (&fixture.store, some_user());
    let first = revocation(&user, "first", 100);
    let last = revocation(&user, "last", 100);
    store.revoke(std::slice::from_ref(&first)).await?;
    let kept = since(store, RevocationCursor::default()).await?;
    store.revoke(std::slice::from_ref(&last)).await?;
    let lost = since(store, kept.cursor.clone()).await?;
    // As after a failover to a replica that didn't get the last write, and then got another.
    fixture
        .ask::<()>(&["ZREMRANGEBYRANK", "revocations", "-1", "-1"])
        .await?;
    fixture
        .ask::<()>(&["ZADD", "revocations", "9999999999999", "garbage"])
        .await?;
    assert_eq!(store.revocations_since(lost.cursor).await?, None);
    assert!(since(store, kept.cursor).await?.revocations.is_empty());
    store.revoke_again(&[first.1, last.1]).await?;
    let all = since(store, RevocationCursor::default()).await?;
    assert_eq!(names(&all.revocations), ["first", "last"]);
    assert!(store.is_revoked(&session_id("last")).await?);
    Ok(())
}

fn assert_failed<T: std::fmt::Debug>(
    result: Result<T, StoreError>,
    class: FailureClass,
) -> StoreError {
    let error = result.expect_err("it has to fail");
    assert_eq!(error.class(), class, "{error}");
    error
}

#[tokio::test]
async fn a_replica_counts_as_away_until_it_is_master_again() -> Result<()> {
    let fixture = Fixture::start().await?;
    fixture.store.probe().await?;
    fixture
        .ask::<()>(&["CONFIG", "SET", "replica-read-only", "yes"])
        .await?;
    fixture.ask::<()>(&["REPLICAOF", "127.0.0.1", "1"]).await?;
    assert_failed(fixture.store.probe().await, FailureClass::Unavailable);
    let write = fixture
        .store
        .revoke(&[revocation(&some_user(), "x", 100)])
        .await;
    let error = assert_failed(write, FailureClass::Unavailable);
    assert!(error.to_string().contains("replica"), "{error}");
    fixture.ask::<()>(&["REPLICAOF", "NO", "ONE"]).await?;
    fixture.store.probe().await?;
    fixture
        .store
        .revoke(&[revocation(&some_user(), "x", 100)])
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_redis_without_memory_counts_as_away() -> Result<()> {
    let fixture = Fixture::start().await?;
    fixture
        .ask::<()>(&["CONFIG", "SET", "maxmemory", "1"])
        .await?;
    assert_failed(fixture.store.probe().await, FailureClass::Unavailable);
    let write = fixture
        .store
        .revoke(&[revocation(&some_user(), "x", 100)])
        .await;
    assert_failed(write, FailureClass::Unavailable);
    Ok(())
}

#[tokio::test]
async fn a_redis_without_room_for_another_client_counts_as_away() -> Result<()> {
    let fixture = Fixture::start().await?;
    let held = fixture.connect().await?;
    let command = cmd("CONFIG").arg("SET").arg("maxclients").arg(1).to_owned();
    let () = command.query_async(&mut held.clone()).await?;
    let error = assert_failed(fixture.store.probe().await, FailureClass::Unavailable);
    assert_eq!(error.to_string(), "redis has no connection free");
    drop(held);
    Ok(())
}

#[tokio::test]
async fn a_password_that_is_asked_for_is_systemic() -> Result<()> {
    let fixture = Fixture::start().await?;
    fixture
        .ask::<()>(&["CONFIG", "SET", "requirepass", "right"])
        .await?;
    assert_failed(
        fixture.store.is_revoked(&session_id("x")).await,
        FailureClass::Systemic,
    );
    let url = format!(
        "redis://:wrong-secret@127.0.0.1:{}/2",
        fixture.server.port()
    );
    let error = assert_failed(store_by(&url)?.probe().await, FailureClass::Systemic);
    assert!(
        error.to_string().contains("user or the password"),
        "{error}"
    );
    assert!(!format!("{error:?}").contains("wrong-secret"));
    let right = format!("redis://:right@127.0.0.1:{}/2", fixture.server.port());
    store_by(&right)?.probe().await?;
    Ok(())
}

#[tokio::test]
async fn a_login_that_nobody_asks_for_and_a_database_that_is_not_there_are_systemic() -> Result<()>
{
    let fixture = Fixture::start().await?;
    for url in ["redis://:pw@127.0.0.1:PORT", "redis://127.0.0.1:PORT/9999"] {
        let url = url.replace("PORT", &fixture.server.port().to_string());
        let error = assert_failed(store_by(&url)?.probe().await, FailureClass::Systemic);
        let said = "refuses the password or the database of REDIS_URL";
        assert!(error.to_string().contains(said), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn a_server_is_also_reached_by_its_socket() -> Result<()> {
    let setup = Setup::default()
        .protected_by("right")
        .with(&["--unixsocket", "socket"]);
    let server = holdfast_tests::Redis::start_as(setup).await?;
    let path = server.directory().join("socket");
    let url = format!("redis+unix://{}?pass=right&db=3", path.display());
    store_by(&url)?.probe().await?;
    let keyspace = server.ask("INFO keyspace").await?;
    assert!(keyspace.contains("db3:keys=1"), "{keyspace}");
    Ok(())
}

#[tokio::test]
async fn a_user_without_the_right_is_systemic() -> Result<()> {
    let fixture = Fixture::start().await?;
    fixture
        .ask::<()>(&["ACL", "SETUSER", "weak", "on", ">pw", "~*", "+ping", "+get"])
        .await?;
    let url = format!("redis://weak:pw@127.0.0.1:{}", fixture.server.port());
    let error = assert_failed(store_by(&url)?.probe().await, FailureClass::Systemic);
    assert!(error.to_string().contains("lacks a right"), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_redis_costs_each_call_its_deadline_and_is_found_again() -> Result<()> {
    let fixture = Fixture::start().await?;
    let mut proxy = FaultProxy::start(fixture.server.port()).await?;
    let store = store_within(&format!("redis://127.0.0.1:{}", proxy.port()), HASTE)?;
    store.probe().await?;
    store.is_revoked(&session_id("x")).await?;
    proxy.set(Flow::BlackHole).await?;
    let started = Instant::now();
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let store = store.clone();
        calls.spawn(async move { store.is_revoked(&session_id("x")).await });
    }
    while let Some(ended) = calls.join_next().await {
        ended?.expect_err("nobody answers");
    }
    assert!(started.elapsed() < HASTE + SLACK, "{:?}", started.elapsed());
    proxy.set(Flow::Cut).await?;
    let error = assert_failed(
        store.is_revoked(&session_id("x")).await,
        FailureClass::Unavailable,
    );
    assert!(!error.outcome_unknown(), "it was refused");
    assert_failed(store.probe().await, FailureClass::Unavailable);
    proxy.set(Flow::Pass).await?;
    let started = Instant::now();
    assert!(!store.is_revoked(&session_id("x")).await?);
    store.probe().await?;
    assert!(started.elapsed() < SLACK, "{:?}", started.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_killed_redis_is_noticed_at_once_and_found_again() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    let user = some_user();
    fixture
        .store
        .record_session(&session(&user, "x", 60))
        .await?;
    fixture.server.kill9().await?;
    for _ in 0..3 {
        let started = Instant::now();
        assert_failed(
            fixture.store.list_sessions(&user).await,
            FailureClass::Unavailable,
        );
        assert!(started.elapsed() < SLACK, "{:?}", started.elapsed());
    }
    fixture.server.start_again().await?;
    assert_eq!(
        fixture.store.list_sessions(&user).await?,
        [],
        "this one forgets with a restart"
    );
    Ok(())
}
