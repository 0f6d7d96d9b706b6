//! The store as the programs use it, on each kind of Redis.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use holdfast_shared::config::Config;
use holdfast_shared::domain::{Revocation, Session, SessionId, Timestamp, UserId};
use holdfast_shared::health::Probe;
use holdfast_shared::store::redis::{Redis, RevocationCursor};
use holdfast_shared::store::{FailureClass, StoreError};
use holdfast_tests::redis::Setup;
use holdfast_tests::redis_service::{Access, RedisService, SERVICE};
use holdfast_tests::{RedisCluster, eventually};

use crate::site::SETTLE;

/// What a call is given, unless a test is about that.
const PATIENCE: Duration = Duration::from_secs(10);
/// What it is given in those that are.
pub const HASTE: Duration = Duration::from_secs(2);
/// What a busy machine may add to a deadline.
const SLACK: Duration = Duration::from_secs(3);
/// More than one page, so that a cluster gets commands for every node in one call.
const MANY: usize = 2500;

/// A store on the Redis of this URL.
pub fn store(url: &str) -> Result<Redis> {
    store_within(url, PATIENCE)
}

/// The same, with a deadline for each call.
pub fn store_within(url: &str, deadline: Duration) -> Result<Redis> {
    let pair = ("REDIS_URL".to_owned(), url.to_owned());
    let config = Config::from_pairs([pair])?.redis.context("it is set")?;
    Ok(Redis::new(&config, deadline))
}

/// The text of a failure that must be of this class.
#[track_caller]
pub fn failed<T: std::fmt::Debug>(result: Result<T, StoreError>, class: FailureClass) -> String {
    let error = result.expect_err("it has to fail");
    assert_eq!(error.class(), class, "{error}: {error:?}");
    error.to_string()
}

fn in_seconds(seconds: i64) -> Timestamp {
    let now: Timestamp = chrono::Utc::now().into();
    Timestamp::from_micros(now.as_micros() + seconds * 1_000_000)
}

fn user(number: usize) -> UserId {
    UserId::parse(&format!("user-{number}")).expect("valid")
}

fn session(user: &UserId, name: &str) -> Session {
    Session {
        id: SessionId::parse(name).expect("valid"),
        user_id: user.clone(),
        created_at: in_seconds(0),
        last_seen_at: in_seconds(0),
        expires_at: in_seconds(3600),
        user_agent: None,
    }
}

fn revocation(name: &str) -> Revocation {
    Revocation {
        session_id: SessionId::parse(name).expect("valid"),
        keep_until: in_seconds(3600),
    }
}

/// Everything that the store is for.
pub async fn does_its_work(store: &Redis) -> Result<()> {
    store.probe().await?;
    for number in 0..20 {
        let user = user(number);
        let sessions = ["a", "b"].map(|name| session(&user, &format!("{name}-{number}")));
        for session in &sessions {
            store.record_session(session).await?;
        }
        assert_eq!(store.list_sessions(&user).await?.len(), 2);
        let revoked = revocation(&format!("a-{number}"));
        store.revoke(&[(user.clone(), revoked)]).await?;
        assert_eq!(store.list_sessions(&user).await?, sessions[1..]);
    }
    let many: Vec<_> = (0..MANY)
        .map(|number| (user(number % 7), revocation(&format!("many-{number}"))))
        .collect();
    store.revoke(&many).await?;
    let all = read_all(store).await?;
    assert_eq!(all.len(), 20 + MANY);
    let names = all[20..].iter().map(|one| one.session_id.as_str());
    let expected = many.iter().map(|(_, one)| one.session_id.as_str());
    assert!(names.eq(expected), "another order");
    let last = SessionId::parse(&format!("many-{}", MANY - 1)).expect("valid");
    assert!(store.is_revoked(&last).await?);
    Ok(())
}

async fn read_all(store: &Redis) -> Result<Vec<Revocation>> {
    let (mut all, mut cursor) = (Vec::new(), RevocationCursor::default());
    loop {
        let page = store.revocations_since(cursor).await?;
        let page = page.context("what was read is there no more")?;
        all.extend(page.revocations);
        cursor = page.cursor;
        if page.is_last {
            return Ok(all);
        }
    }
}

/// Waits until the store takes writes.
async fn comes_up(store: &Redis) -> Result<()> {
    eventually(SETTLE, "the store to come up", async || store.probe().await).await?;
    Ok(())
}

#[tokio::test]
async fn a_service_with_passwords_of_its_own_and_its_sentinels() -> Result<()> {
    let service = RedisService::start(Access {
        password: Some("opensesame".to_owned()),
        sentinel_password: Some("guardword".to_owned()),
        authority: None,
    })
    .await?;
    let url = service.url()?;
    does_its_work(&store(&url)?).await?;

    let systemic = async |url: &str| -> Result<String> {
        let said = failed(store(url)?.probe().await, FailureClass::Systemic);
        assert!(
            !said.contains("guard") && !said.contains("opensesame"),
            "{said}"
        );
        Ok(said)
    };
    let wrong = url.replace("guardword", "guess");
    let said = "of a sentinel: redis refuses the user or the password";
    assert_eq!(systemic(&wrong).await?, said);
    let (without, _) = url.split_once('?').context("it has a parameter")?;
    let said = "of a sentinel: redis asks for a password";
    assert_eq!(systemic(without).await?, said);
    let wrong = url.replace("opensesame", "guess");
    assert_eq!(
        systemic(&wrong).await?,
        "redis refuses the user or the password"
    );
    let wrong = url.replace("opensesame", "");
    assert_eq!(systemic(&wrong).await?, "redis asks for a password");
    let wrong = url.replace(SERVICE, "another");
    let said = "of a sentinel: it knows no service of the name in REDIS_URL";
    assert_eq!(systemic(&wrong).await?, said);
    Ok(())
}

#[tokio::test]
async fn urls_of_the_wrong_kind_are_no_outages() -> Result<()> {
    let cluster = RedisCluster::start_patient().await?;
    let redis = holdfast_tests::Redis::start().await?;
    let systemic = async |url: String| -> Result<String> {
        Ok(failed(store(&url)?.probe().await, FailureClass::Systemic))
    };
    let port = redis.port();
    let said = systemic(format!("redis+sentinel://127.0.0.1:{port}/{SERVICE}")).await?;
    assert!(said.contains("REDIS_URL must name sentinels"), "{said}");
    let said = systemic(format!("redis+cluster://127.0.0.1:{port}")).await?;
    assert!(said.contains("redis is no cluster"), "{said}");
    let nodes = cluster.url()?.replace("redis+cluster", "redis");
    let said: Vec<String> = {
        let mut all = Vec::new();
        // One of them has the very key that is written.
        for node in nodes.trim_start_matches("redis://").split(',') {
            let store = store(&format!("redis://{node}"))?;
            for result in [
                store.probe().await.map(drop),
                store.revoke_again(&[revocation("x")]).await,
            ] {
                all.extend(result.err().map(|error| error.to_string()));
            }
        }
        all
    };
    assert!(
        said.iter()
            .all(|text| text.contains("must begin with redis+cluster")),
        "{said:?}"
    );
    assert!(said.len() >= 5, "{said:?}");
    Ok(())
}

#[tokio::test]
async fn a_server_that_a_sentinel_calls_master_must_be_one() -> Result<()> {
    let master = holdfast_tests::Redis::start().await?;
    let port = master.port().to_string();
    let replica = Setup::default().with(&["--replicaof", "127.0.0.1", &port]);
    let replica = holdfast_tests::Redis::start_as(replica).await?;
    // As a sentinel does that has been cut off since before a failover.
    let mistaken = format!(
        "sentinel monitor {SERVICE} 127.0.0.1 {} 1\n\
         sentinel down-after-milliseconds {SERVICE} 60000\n",
        replica.port()
    );
    let sentinel = holdfast_tests::Redis::start_as(Setup::default().watching(mistaken)).await?;
    let url = format!("redis+sentinel://127.0.0.1:{}/{SERVICE}", sentinel.port());
    let said = failed(
        store(&url)?.is_revoked(&revocation("x").session_id).await,
        FailureClass::Unavailable,
    );
    assert_eq!(
        said,
        "the sentinels name a server as master that is none now"
    );
    Ok(())
}

#[tokio::test]
async fn a_demoted_master_is_left_for_the_new_one() -> Result<()> {
    let mut service = RedisService::start(Access::default()).await?;
    let store = store(&service.url()?)?;
    does_its_work(&store).await?;
    let master = service.master_by(0).await?;
    let told = service.sentinels()[0]
        .ask(&format!("SENTINEL FAILOVER {SERVICE}"))
        .await?;
    assert_eq!(told, "+OK\r\n");
    service.wait_failover(master).await?;
    comes_up(&store).await?;
    store.revoke_again(&[revocation("after")]).await?;
    assert_eq!(read_all(&store).await?.len(), 20 + MANY + 1);
    Ok(())
}

#[tokio::test]
async fn a_cluster_does_it_all_and_a_moving_slot_is_followed() -> Result<()> {
    let cluster = RedisCluster::start_patient().await?;
    let store = store(&cluster.url()?)?;
    does_its_work(&store).await?;
    let owner = cluster.master_of("revocations").await?;
    let masters = cluster.masters().await?;
    let other = masters
        .into_iter()
        .find(|one| *one != owner)
        .context("three")?;
    cluster
        .move_slot("revocations", other, async || {
            // All keys of the slot have gone, so the old owner sends there.
            store.revoke_again(&[revocation("halfway")]).await?;
            assert_eq!(read_all(&store).await?.len(), 20 + MANY + 1);
            Ok(())
        })
        .await?;
    store.revoke_again(&[revocation("after")]).await?;
    assert_eq!(read_all(&store).await?.len(), 20 + MANY + 2);
    store.probe().await?;
    assert_eq!(cluster.master_of("revocations").await?, other);
    Ok(())
}

#[tokio::test]
async fn a_script_on_a_slot_that_is_torn_waits_its_turn() -> Result<()> {
    let cluster = RedisCluster::start_patient().await?;
    let store = store(&cluster.url()?)?;
    store.revoke_again(&[revocation("before")]).await?;
    let owner = cluster.master_of("revocations").await?;
    let masters = cluster.masters().await?;
    let other = masters
        .into_iter()
        .find(|one| *one != owner)
        .context("three")?;
    cluster
        .tear_slot("revocations", other, async || {
            let torn = store.revoke_again(&[revocation("torn")]).await;
            failed(torn, FailureClass::Contended);
            Ok(())
        })
        .await?;
    store.revoke_again(&[revocation("torn")]).await?;
    assert_eq!(read_all(&store).await?.len(), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_with_a_hung_master_is_away_within_the_deadline() -> Result<()> {
    let mut cluster = RedisCluster::start().await?;
    let store = store_within(&cluster.url()?, HASTE)?;
    comes_up(&store).await?;
    let master = cluster.master_of("revocations").await?;
    cluster.node(master).freeze()?;
    let started = Instant::now();
    let refused = store.revoke_again(&[revocation("x")]).await;
    failed(refused, FailureClass::Unavailable);
    let taken = started.elapsed();
    assert!(taken < HASTE + SLACK, "{taken:?}");
    // Its replica takes over.
    comes_up(&store).await?;
    eventually(SETTLE, "a revocation", async || {
        store.revoke_again(&[revocation("x")]).await
    })
    .await?;
    cluster.node(master).thaw()?;
    comes_up(&store).await?;
    assert_eq!(read_all(&store).await?.len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_probe_of_a_cluster_reaches_every_master() -> Result<()> {
    let mut cluster = RedisCluster::start_patient().await?;
    let store = store(&cluster.url()?)?;
    for master in cluster.masters().await? {
        store.probe().await?;
        cluster.node(master).freeze()?;
        failed(
            tokio::time::timeout(HASTE, store.probe())
                .await
                .unwrap_or_else(|_| Err(StoreError::new(FailureClass::Unavailable, "late"))),
            FailureClass::Unavailable,
        );
        cluster.node(master).thaw()?;
        comes_up(&store).await?;
    }
    Ok(())
}
