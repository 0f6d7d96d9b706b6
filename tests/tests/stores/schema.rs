//! Migrations, and what is said of a database that lacks them.

use anyhow::Result;
use holdfast_shared::health::Probe;
use holdfast_shared::store::FailureClass;
use sqlx::Executor;

use crate::support::Fixture;

#[tokio::test]
async fn migrations_are_applied_once() -> Result<()> {
    let fixture = Fixture::start_empty().await?;
    let first = fixture.store.migrate().await?;
    assert_eq!(
        (first.applied, first.already),
        (
            vec!["001_initial".to_owned(), "002_add_indexes".to_owned()],
            0
        )
    );
    let second = fixture.store.migrate().await?;
    assert_eq!((second.applied, second.already), (vec![], 2));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_migrating_at_the_same_time_one_waits() -> Result<()> {
    let fixture = Fixture::start_empty().await?;
    let other = fixture.store.clone();
    let other = tokio::spawn(async move { other.migrate().await });
    let mut applied = [
        fixture.store.migrate().await?.applied.len(),
        other.await??.applied.len(),
    ];
    applied.sort_unstable();
    assert_eq!(applied, [0, 2]);
    Ok(())
}

#[tokio::test]
async fn a_newer_schema_is_fine() -> Result<()> {
    let fixture = Fixture::start().await?;
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
        VALUES (999, 'from the future', true, '', 0)";
    fixture.connect().await?.execute(newer).await?;
    assert_eq!(fixture.store.migrate().await?.already, 2);
    fixture.store.probe().await?;
    Ok(())
}

#[tokio::test]
async fn a_missing_or_old_schema_is_named() -> Result<()> {
    let fixture = Fixture::start_empty().await?;
    let missing = fixture.store.probe().await.expect_err("there is no schema");
    assert_eq!(
        (missing.class(), missing.sqlstate()),
        (FailureClass::Systemic, Some("42P01"))
    );
    assert!(
        missing.to_string().contains("run syncd migrate"),
        "{missing}"
    );
    fixture.store.migrate().await?;
    fixture
        .connect()
        .await?
        .execute("DELETE FROM _sqlx_migrations WHERE version = 2")
        .await?;
    let old = fixture.store.probe().await.expect_err("the schema is old");
    assert_eq!(old.class(), FailureClass::Systemic);
    assert!(old.to_string().contains("run syncd migrate"), "{old}");
    Ok(())
}

#[tokio::test]
async fn a_changed_migration_is_refused() -> Result<()> {
    let fixture = Fixture::start().await?;
    fixture
        .connect()
        .await?
        .execute("UPDATE _sqlx_migrations SET checksum = '' WHERE version = 1")
        .await?;
    let error = fixture.store.migrate().await.expect_err("it was changed");
    assert_eq!(error.class(), FailureClass::Systemic);
    Ok(())
}

#[tokio::test]
async fn a_probe_tells_the_database_and_its_clock() -> Result<()> {
    let (one, other) = (Fixture::start().await?, Fixture::start().await?);
    let (first, again, foreign) = (
        one.store.probe().await?,
        one.store.probe().await?,
        other.store.probe().await?,
    );
    assert!(first.database_id.is_some());
    assert_eq!(first.database_id, again.database_id);
    assert_ne!(first.database_id, foreign.database_id);
    let offset_ms = again.clock.expect("measured").wall_ms();
    assert!(offset_ms.abs() < 1000, "{offset_ms}");
    Ok(())
}
