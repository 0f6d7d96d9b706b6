//! The schema: its migrations, which are part of the binary, and how they get into a database.

use sqlx::migrate::{Migrate, Migration, Migrator};
use sqlx::postgres::PgConnection;

use super::errors::classify_migration;
use crate::store::StoreError;

/// What a migration run did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationReport {
    /// The migrations it applied, in order, such as `001_initial`.
    pub applied: Vec<String>,
    /// How many of this binary's were there before.
    pub already: usize,
}

/// The version of the newest migration that this binary knows: the oldest schema it works with.
pub(super) fn newest_version() -> i64 {
    migrator()
        .iter()
        .map(|migration| migration.version)
        .max()
        .unwrap_or(0)
}

/// Applies the migrations that are missing, while no other process does. A database that has newer ones is left as
/// it is: the previous binary works with the next schema.
pub(super) async fn migrate(connection: &mut PgConnection) -> Result<MigrationReport, StoreError> {
    connection.lock().await.map_err(classify_migration)?;
    let report = migrate_locked(connection).await;
    connection.unlock().await.map_err(classify_migration)?;
    report
}

async fn migrate_locked(connection: &mut PgConnection) -> Result<MigrationReport, StoreError> {
    let migrator = migrator();
    connection
        .ensure_migrations_table(&migrator.table_name)
        .await
        .map_err(classify_migration)?;
    let present = connection
        .list_applied_migrations(&migrator.table_name)
        .await
        .map_err(classify_migration)?;
    let is_present = |migration: &&Migration| {
        present
            .iter()
            .any(|known| known.version == migration.version)
    };
    let (already, missing): (Vec<&Migration>, Vec<&Migration>) =
        migrator.iter().partition(is_present);
    // `run` does the same, in a future that can't be sent to another thread.
    migrator
        .run_direct(None, connection, false)
        .await
        .map_err(classify_migration)?;
    Ok(MigrationReport {
        applied: missing.into_iter().map(name).collect(),
        already: already.len(),
    })
}

/// The file's name without its ending.
fn name(migration: &Migration) -> String {
    format!(
        "{:03}_{}",
        migration.version,
        migration.description.replace(' ', "_")
    )
}

fn migrator() -> Migrator {
    let mut migrator = sqlx::migrate!("../migrations");
    migrator.set_ignore_missing(true).set_locking(false);
    migrator
}
