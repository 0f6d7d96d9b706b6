//! PostgreSQL killed, frozen, cut off: each call ends in time, and the first one after the outage succeeds.

use std::time::{Duration, Instant};

use anyhow::Result;
use futures_util::FutureExt;
use holdfast_shared::domain::{Outcome, TaskId};
use holdfast_shared::health::Probe;
use holdfast_shared::store::FailureClass;
use holdfast_shared::store::postgres::Postgres;
use holdfast_tests::{FaultProxy, Flow, StallWatch, eventually};

use crate::failures::assert_failed;
use crate::operations::{buffered, create, retitle};
use crate::support::{
    self, DATABASE, Fixture, HASTE, PATIENCE, SLACK, apply_one, hasty, outcomes, row, some_user,
};

#[tokio::test]
async fn a_killed_server_is_noticed_at_once_and_found_again() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    let store = fixture.store_with(hasty());
    let (user, id) = (some_user(), TaskId::generate());
    apply_one(&store, &create(&user, id, 1)).await?;
    fixture.server.kill9().await?;
    for number in 2..5 {
        let started = Instant::now();
        let error = store
            .apply(&[retitle(&user, id, number, "x")])
            .await
            .expect_err("nobody is there");
        assert_eq!(error.class(), FailureClass::Unavailable, "{error}");
        assert!(
            started.elapsed() < SLACK,
            "a refused connection takes no time"
        );
    }
    assert_failed(store.probe().await, FailureClass::Unavailable, None);
    fixture.server.start_again().await?;
    assert_eq!(
        apply_one(&store, &retitle(&user, id, 9, "x"))
            .await?
            .outcome,
        Outcome::Applied
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_server_costs_each_call_its_deadline_and_no_more() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    let store = fixture.store_with(hasty());
    let user = some_user();
    let ids: Vec<TaskId> = (0..30).map(|_| TaskId::generate()).collect();
    for id in &ids {
        apply_one(&store, &create(&user, *id, 1)).await?;
    }
    use_lately(&store).await?;
    fixture.server.freeze()?;
    let started = Instant::now();
    let mut calls = tokio::task::JoinSet::new();
    for id in &ids {
        let (store, operation) = (store.clone(), retitle(&user, *id, 2, "x"));
        calls.spawn(async move { store.apply(&[operation]).await });
    }
    let mut asked = 0;
    while let Some(ended) = calls.join_next().await {
        let error = ended?.expect_err("nobody answers");
        asked += usize::from(error.outcome_unknown());
        assert!(
            matches!(
                error.class(),
                FailureClass::Unavailable | FailureClass::Contended
            ),
            "{error}"
        );
    }
    assert!(started.elapsed() < HASTE + SLACK, "{:?}", started.elapsed());
    assert!(
        asked >= 1,
        "at least the call that had a connection doesn't know"
    );
    fixture.server.thaw()?;
    let (started, watch) = (Instant::now(), StallWatch::start()?);
    for id in &ids {
        apply_one(&store, &retitle(&user, *id, 3, "y")).await?;
    }
    let (took, stalled) = (started.elapsed(), watch.total()?);
    assert!(
        took < SLACK + stalled,
        "dead connections were tried: {took:?}; the machine stood still for {stalled:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_went_silent_are_not_tried_one_by_one() -> Result<()> {
    let fixture = Fixture::start().await?;
    let mut proxy = FaultProxy::start(fixture.server.port()).await?;
    let store = support::store(&fixture.server.url_through(proxy.port(), DATABASE), hasty());
    let (user, id) = (some_user(), TaskId::generate());
    apply_one(&store, &create(&user, id, 1)).await?;
    open_connections(&store).await?;
    proxy.set(Flow::BlackHole).await?;
    let error = assert_failed(store.find_task(id).await, FailureClass::Unavailable, None);
    assert!(error.outcome_unknown());
    proxy.set(Flow::Cut).await?;
    proxy.set(Flow::Pass).await?;
    let started = Instant::now();
    assert!(store.find_task(id).await?.is_some());
    assert!(started.elapsed() < SLACK, "{:?}", started.elapsed());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_hangs_is_given_up_when_a_probe_finds_the_server_elsewhere() -> Result<()> {
    let (mut first, second) = (Fixture::start().await?, Fixture::start().await?);
    let proxy = FaultProxy::start(first.server.port()).await?;
    let url = first.server.url_through(proxy.port(), DATABASE);
    let store = support::store(&url, support::patient());
    let (user, id) = (some_user(), TaskId::generate());
    apply_one(&store, &create(&user, id, 1)).await?;
    store.probe().await?;
    use_lately(&store).await?;

    first.server.freeze()?;
    proxy.lead_to(second.server.port());
    let mut hanging = std::pin::pin!(store.find_task(id));
    assert!(hanging.as_mut().now_or_never().is_none());
    // The monitor doesn't wait for ever, and one failed probe is forgiven.
    let cut_off = tokio::time::timeout(Duration::from_millis(100), store.probe()).await;
    assert!(cut_off.is_err(), "the first server still answers");
    store.probe().await?;
    let started = Instant::now();
    let error = assert_failed(hanging.await, FailureClass::Unavailable, None);
    assert!(error.outcome_unknown());
    assert!(started.elapsed() < SLACK, "{:?}", started.elapsed());
    assert!(
        store.find_task(id).await?.is_none(),
        "the second server has no such task"
    );
    Ok(())
}

/// Uses a connection, which isn't asked then whether it lives when it is used again at once.
async fn use_lately(store: &Postgres) -> Result<()> {
    store.find_task(TaskId::generate()).await?;
    Ok(())
}

/// Uses several connections at once, so that they all lie in the pool afterwards.
async fn open_connections(store: &Postgres) -> Result<()> {
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..30 {
        let store = store.clone();
        calls.spawn(async move { store.find_task(TaskId::generate()).await });
    }
    while let Some(ended) = calls.join_next().await {
        ended??;
    }
    Ok(())
}

#[tokio::test]
async fn an_answer_that_got_lost_leaves_the_outcome_unknown_and_a_repeat_harmless() -> Result<()> {
    let fixture = Fixture::start().await?;
    let mut proxy = FaultProxy::start(fixture.server.port()).await?;
    let store = support::store(&fixture.server.url_through(proxy.port(), DATABASE), hasty());
    let (user, id) = (some_user(), TaskId::generate());
    apply_one(&store, &create(&user, TaskId::generate(), 1)).await?;
    use_lately(&store).await?;
    proxy.set(Flow::HalfOpen).await?;
    let lost = create(&user, id, 2);
    let error = assert_failed(
        store.apply(std::slice::from_ref(&lost)).await,
        FailureClass::Unavailable,
        None,
    );
    assert!(error.outcome_unknown());
    eventually(
        PATIENCE,
        "the write whose answer got lost",
        async || match fixture.store.find_task(id).await {
            Ok(Some(_)) => Ok(()),
            other => Err(format!("{other:?}")),
        },
    )
    .await?;
    proxy.set(Flow::Cut).await?;
    proxy.set(Flow::Pass).await?;
    let before = row(&fixture.store, id).await?;
    assert_eq!(
        outcomes(&store.apply(&[buffered(lost)]).await?),
        [Outcome::Applied]
    );
    assert_eq!(row(&fixture.store, id).await?, before);
    Ok(())
}
