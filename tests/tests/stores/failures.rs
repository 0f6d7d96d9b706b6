//! What the store says of PostgreSQL's refusals: each class of failure is provoked.

use std::time::{Duration, Instant};

use anyhow::Result;
use holdfast_shared::domain::{Outcome, TaskId};
use holdfast_shared::health::Probe;
use holdfast_shared::store::postgres::{Postgres, Timeouts};
use holdfast_shared::store::{FailureClass, StoreError};
use holdfast_tests::eventually;
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Executor, Row};

use crate::operations::{buffered, create, keyed, retitle};
use crate::support::{
    self, DATABASE, Fixture, LOCK_WAIT, PATIENCE, SLACK, apply_one, hasty, put_off, some_user,
};

pub fn assert_failed<T: std::fmt::Debug>(
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
pub async fn hold_row(fixture: &Fixture, id: TaskId) -> Result<PgConnection> {
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
    let store = fixture.store_with(put_off());
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
    assert!(started.elapsed() < LOCK_WAIT * 2 + SLACK);
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
    let store = fixture.store_with(put_off());
    let (user, one, locked) = (some_user(), TaskId::generate(), TaskId::generate());
    for id in [one, locked] {
        apply_one(&fixture.store, &create(&user, id, 1)).await?;
    }
    let _holder = hold_row(&fixture, locked).await?;
    let both = [retitle(&user, one, 2, "x"), retitle(&user, locked, 2, "x")];
    assert_failed(
        store.apply(&both).await,
        FailureClass::Contended,
        Some("55P03"),
    );
    let mut other = fixture.connect().await?;
    let first =
        sqlx::query("SELECT FROM tasks WHERE id = $1 FOR UPDATE NOWAIT").bind(one.as_uuid());
    assert_eq!(
        first.execute(&mut other).await?.rows_affected(),
        1,
        "before anybody uses that connection again"
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
async fn when_all_connections_are_busy_the_server_is_not_blamed() -> Result<()> {
    let fixture = Fixture::start().await?;
    let (user, id) = (some_user(), TaskId::generate());
    apply_one(&fixture.store, &create(&user, id, 1)).await?;
    let mut config = support::config(&fixture.server.url(DATABASE));
    config.max_connections = 2;
    let store = Postgres::new(&config, put_off());
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
    let store = Postgres::new(&config, support::patient());
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
    let store = Postgres::new(&config, support::patient());
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
    let store = Postgres::new(&config, put_off());
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
