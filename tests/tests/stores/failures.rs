//! How PostgreSQL fails, and what the store says of it: each class is provoked, and each call ends in time.

use std::time::{Duration, Instant};

use anyhow::Result;
use holdfast_shared::domain::{Outcome, TaskId};
use holdfast_shared::health::Probe;
use holdfast_shared::store::postgres::Timeouts;
use holdfast_shared::store::{FailureClass, StoreError};
use holdfast_tests::{FaultProxy, Flow, eventually};
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Executor, Row};

use crate::operations::{buffered, create, keyed, retitle};
use crate::support::{
    self, DATABASE, Fixture, PATIENCE, apply_one, hasty, outcomes, row, some_user,
};

/// What a hasty call may take beyond its deadline, on a busy machine.
const SLACK: Duration = Duration::from_millis(500);

fn assert_failed<T: std::fmt::Debug>(
    result: Result<T, StoreError>,
    class: FailureClass,
    sqlstate: Option<&str>,
) -> StoreError {
    let error = result.expect_err("it has to fail");
    assert_eq!(
        (error.class(), error.sqlstate()),
        (class, sqlstate),
        "{error}"
    );
    error
}

/// Locks a task's row until the connection goes.
async fn hold_row(fixture: &Fixture, id: TaskId) -> Result<PgConnection> {
    let mut connection = fixture.connect().await?;
    connection.execute("BEGIN").await?;
    sqlx::query("SELECT FROM tasks WHERE id = $1 FOR UPDATE")
        .bind(id.as_uuid())
        .execute(&mut connection)
        .await?;
    Ok(connection)
}

#[tokio::test]
async fn a_row_that_somebody_keeps_locked_holds_up_nothing_else() -> Result<()> {
    let fixture = Fixture::start().await?;
    let store = fixture.store_with(hasty());
    let (user, locked, free) = (some_user(), TaskId::generate(), TaskId::generate());
    for id in [locked, free] {
        apply_one(&fixture.store, &create(&user, id, 1)).await?;
    }
    let holder = hold_row(&fixture, locked).await?;
    let started = Instant::now();
    for dressed in [
        retitle(&user, locked, 2, "x"),
        buffered(retitle(&user, locked, 3, "x")),
    ] {
        let error = assert_failed(
            store.apply(&[dressed]).await,
            FailureClass::Contended,
            Some("55P03"),
        );
        assert!(!error.outcome_unknown());
    }
    assert!(started.elapsed() < Duration::from_millis(1500) + SLACK);
    assert_eq!(
        apply_one(&store, &retitle(&user, free, 2, "y"))
            .await?
            .outcome,
        Outcome::Applied
    );
    holder.close().await?;
    assert_eq!(
        apply_one(&store, &retitle(&user, locked, 4, "z"))
            .await?
            .outcome,
        Outcome::Applied
    );
    Ok(())
}

#[tokio::test]
async fn a_statement_that_takes_too_long_is_given_up_by_the_server() -> Result<()> {
    let fixture = Fixture::start().await?;
    let (user, id) = (some_user(), TaskId::generate());
    apply_one(&fixture.store, &create(&user, id, 1)).await?;
    let _holder = hold_row(&fixture, id).await?;
    let timeouts = Timeouts {
        statement: Duration::from_millis(100),
        lock: PATIENCE,
        ..support::patient()
    };
    let slow = fixture
        .store_with(timeouts)
        .apply(&[retitle(&user, id, 2, "x")])
        .await;
    assert_failed(slow, FailureClass::Contended, Some("57014"));
    Ok(())
}

#[tokio::test]
async fn a_failed_transaction_keeps_no_lock() -> Result<()> {
    let fixture = Fixture::start().await?;
    let store = fixture.store_with(hasty());
    let (user, locked, free) = (some_user(), TaskId::generate(), TaskId::generate());
    for id in [locked, free] {
        apply_one(&fixture.store, &create(&user, id, 1)).await?;
    }
    let _holder = hold_row(&fixture, locked.max(free)).await?;
    let both = [retitle(&user, locked, 2, "x"), retitle(&user, free, 2, "x")];
    assert_failed(
        store.apply(&both).await,
        FailureClass::Contended,
        Some("55P03"),
    );
    let first = locked.min(free);
    assert_eq!(
        apply_one(&store, &retitle(&user, first, 3, "y"))
            .await?
            .outcome,
        Outcome::Applied
    );
    Ok(())
}

#[tokio::test]
async fn a_read_only_database_counts_as_away() -> Result<()> {
    let fixture = Fixture::start().await?;
    let mut admin = fixture.server.connect_admin(DATABASE).await?;
    admin
        .execute("ALTER DATABASE holdfast SET default_transaction_read_only = on")
        .await?;
    let store = fixture.store_with(hasty());
    let write = store
        .apply(&[create(&some_user(), TaskId::generate(), 1)])
        .await;
    assert_failed(write, FailureClass::Unavailable, Some("25006"));
    assert_failed(
        store.probe().await,
        FailureClass::Unavailable,
        Some("25006"),
    );
    admin
        .execute("ALTER DATABASE holdfast RESET default_transaction_read_only")
        .await?;
    store.probe().await?;
    Ok(())
}

#[tokio::test]
async fn a_deployment_that_cannot_work_is_systemic() -> Result<()> {
    let fixture = Fixture::start().await?;
    let operation = create(&some_user(), TaskId::generate(), 1);
    let nowhere = support::store(&fixture.server.url("nowhere"), hasty());
    assert_failed(
        nowhere.apply(std::slice::from_ref(&operation)).await,
        FailureClass::Systemic,
        Some("3D000"),
    );
    let url = fixture.server.url(DATABASE);
    let stranger = support::store(
        &url.replacen("holdfast:holdfast@", "stranger:x@", 1),
        hasty(),
    );
    assert_failed(
        stranger.apply(std::slice::from_ref(&operation)).await,
        FailureClass::Systemic,
        Some("28000"),
    );
    let mut admin = fixture.server.connect_admin(DATABASE).await?;
    admin.execute("ALTER TABLE tasks OWNER TO postgres").await?;
    assert_failed(
        fixture.store.apply(std::slice::from_ref(&operation)).await,
        FailureClass::Systemic,
        Some("42501"),
    );
    admin.execute("DROP TABLE tasks").await?;
    let missing = assert_failed(
        fixture.store.apply(&[operation]).await,
        FailureClass::Systemic,
        Some("42P01"),
    );
    assert!(
        missing.to_string().contains("run syncd migrate"),
        "{missing}"
    );
    Ok(())
}

#[tokio::test]
async fn a_wrong_password_is_systemic_and_never_shown() -> Result<()> {
    let fixture = Fixture::start().await?;
    let mut admin = fixture.server.connect_admin(DATABASE).await?;
    let file: String = admin.fetch_one("SHOW hba_file").await?.try_get(0)?;
    std::fs::write(
        file,
        "host all postgres all trust\nhost all all all scram-sha-256\n",
    )?;
    admin.execute("SELECT pg_reload_conf()").await?;
    let url = fixture
        .server
        .url(DATABASE)
        .replacen(":holdfast@", ":wrong-secret@", 1);
    let error =
        eventually(
            PATIENCE,
            "the server to ask for passwords",
            async || match support::store(&url, hasty()).probe().await {
                Ok(_) => Err("it lets everybody in"),
                Err(error) => Ok(error),
            },
        )
        .await?;
    assert_eq!(
        (error.class(), error.sqlstate()),
        (FailureClass::Systemic, Some("28P01"))
    );
    let mut cause: Option<&dyn std::error::Error> = Some(&error);
    while let Some(error) = cause {
        assert!(!error.to_string().contains("wrong-secret"), "{error}");
        cause = error.source();
    }
    assert!(!format!("{error:?}").contains("wrong-secret"));
    Ok(())
}

#[tokio::test]
async fn a_server_out_of_connections_counts_as_away() -> Result<()> {
    let fixture = Fixture::start().await?;
    let mut admin = fixture.server.connect_admin(DATABASE).await?;
    admin
        .execute("ALTER ROLE holdfast CONNECTION LIMIT 0")
        .await?;
    let error = assert_failed(
        fixture
            .store_with(hasty())
            .find_task(TaskId::generate())
            .await,
        FailureClass::Unavailable,
        Some("53300"),
    );
    assert!(!error.outcome_unknown());
    Ok(())
}

#[tokio::test]
async fn data_that_the_database_refuses_is_the_items_fault() -> Result<()> {
    let fixture = Fixture::start().await?;
    fixture
        .connect()
        .await?
        .execute("ALTER TABLE tasks ADD CHECK (title <> 'poison')")
        .await?;
    let (user, id) = (some_user(), TaskId::generate());
    apply_one(&fixture.store, &create(&user, id, 1)).await?;
    for poison in [
        retitle(&user, id, 2, "poison"),
        buffered(retitle(&user, id, 3, "poison")),
    ] {
        assert_failed(
            fixture.store.apply(&[poison]).await,
            FailureClass::Item,
            Some("23514"),
        );
    }
    Ok(())
}

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
    assert!(
        started.elapsed() < Duration::from_millis(750) + SLACK,
        "{:?}",
        started.elapsed()
    );
    assert!(
        asked >= 1,
        "at least the call that had a connection doesn't know"
    );
    fixture.server.thaw()?;
    let started = Instant::now();
    for id in &ids {
        apply_one(&store, &retitle(&user, *id, 3, "y")).await?;
    }
    assert!(
        started.elapsed() < Duration::from_secs(1) + SLACK,
        "dead connections were tried: {:?}",
        started.elapsed()
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

/// Uses several connections at once, so that they all lie in the pool afterwards.
async fn open_connections(store: &holdfast_shared::store::postgres::Postgres) -> Result<()> {
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

#[tokio::test]
async fn when_all_connections_are_busy_the_server_is_not_blamed() -> Result<()> {
    let fixture = Fixture::start().await?;
    let (user, id) = (some_user(), TaskId::generate());
    apply_one(&fixture.store, &create(&user, id, 1)).await?;
    let mut config = support::config(&fixture.server.url(DATABASE));
    config.max_connections = 2;
    let store = holdfast_shared::store::postgres::Postgres::new(&config, hasty());
    let holder = hold_row(&fixture, id).await?;
    let waiting = [retitle(&user, id, 2, "x")];
    let (waiting, starved) =
        tokio::join!(store.apply(&waiting), store.find_task(TaskId::generate()));
    assert_failed(waiting, FailureClass::Contended, Some("55P03"));
    match starved {
        Ok(None) => {}
        other => _ = assert_failed(other, FailureClass::Contended, None),
    }
    holder.close().await?;
    store.probe().await?;
    Ok(())
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_a_clean_store() -> Result<()> {
    let fixture = Fixture::start().await?;
    let mut config = support::config(&fixture.server.url(DATABASE));
    config.max_connections = 2;
    let store = holdfast_shared::store::postgres::Postgres::new(&config, support::patient());
    let (user, id, other) = (some_user(), TaskId::generate(), TaskId::generate());
    apply_one(&store, &create(&user, id, 1)).await?;
    let holder = hold_row(&fixture, id).await?;
    let slice = [retitle(&user, id, 2, "x"), create(&user, other, 2)].map(buffered);
    let gone = tokio::time::timeout(Duration::from_millis(200), store.apply(&slice)).await;
    assert!(gone.is_err(), "it waited for the row");
    assert_eq!(
        apply_one(&store, &create(&user, TaskId::generate(), 3))
            .await?
            .outcome,
        Outcome::Applied
    );
    holder.close().await?;
    assert_eq!(
        apply_one(&store, &retitle(&user, id, 4, "y"))
            .await?
            .outcome,
        Outcome::Applied
    );
    assert!(
        fixture.store.find_task(other).await?.is_none(),
        "what nobody waits for is rolled back"
    );
    Ok(())
}

#[tokio::test]
async fn a_table_that_changed_under_a_prepared_statement_is_no_lasting_trouble() -> Result<()> {
    let fixture = Fixture::start().await?;
    let mut config = support::config(&fixture.server.url(DATABASE));
    config.max_connections = 2;
    let store = holdfast_shared::store::postgres::Postgres::new(&config, support::patient());
    let (user, id) = (some_user(), TaskId::generate());
    apply_one(&store, &create(&user, id, 1)).await?;
    store.find_task(id).await?;
    fixture
        .connect()
        .await?
        .execute("ALTER TABLE tasks ALTER COLUMN title TYPE varchar(500)")
        .await?;
    let error = assert_failed(
        store.find_task(id).await,
        FailureClass::Contended,
        Some("0A000"),
    );
    assert!(!error.outcome_unknown());
    assert!(
        store.find_task(id).await?.is_some(),
        "a new connection prepares it anew"
    );
    Ok(())
}

#[tokio::test]
async fn without_a_statement_cache_nothing_of_a_session_is_relied_on() -> Result<()> {
    let fixture = Fixture::start().await?;
    let mut config = support::config(&fixture.server.url(DATABASE));
    config.statement_cache = 0;
    config.options = config.options.statement_cache_capacity(0);
    let store = holdfast_shared::store::postgres::Postgres::new(&config, hasty());
    let (user, id) = (some_user(), TaskId::generate());
    for _ in 0..3 {
        store.probe().await?;
        apply_one(&store, &keyed(create(&user, id, 1), "k", 1)).await?;
    }
    for number in 2..5 {
        assert_eq!(
            apply_one(&store, &retitle(&user, id, number, "x"))
                .await?
                .outcome,
            Outcome::Applied
        );
    }
    assert_eq!(fixture.store.count_applied_operations().await?, 1);
    let _holder = hold_row(&fixture, id).await?;
    assert_failed(
        store.apply(&[retitle(&user, id, 9, "x")]).await,
        FailureClass::Contended,
        Some("55P03"),
    );
    Ok(())
}
