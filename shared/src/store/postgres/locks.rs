//! Who is in the way: which rows others hold locked at this moment, found out without waiting for any of them.

use uuid::Uuid;

use crate::domain::{ResourceKey, TaskId, UserId};

use super::connection::Connection;
use super::values::read_user;

/// Those of these resources whose rows another transaction has locked. What isn't there can't be locked.
///
/// Fails (55P03) when a whole table is: then it isn't about rows. Locks every row that is free until it ends, which is
/// at once.
pub(super) async fn find_locked(
    connection: &mut Connection<'_>,
    resources: &[ResourceKey],
) -> Result<Vec<ResourceKey>, sqlx::Error> {
    let (mut tasks, mut users): (Vec<Uuid>, Vec<String>) = (Vec::new(), Vec::new());
    for resource in resources {
        match resource {
            ResourceKey::Task(id) => tasks.push(id.as_uuid()),
            ResourceKey::Profile(user) => users.push(user.as_str().to_owned()),
            ResourceKey::Session(_) => {}
        }
    }
    let mut transaction = connection.begin().await?;
    let mut connection = transaction.connection();
    lock_tables(&mut connection).await?;
    let mut locked = Vec::new();
    if !tasks.is_empty() {
        let found = locked_tasks(&mut connection, &tasks).await?;
        locked.extend(found.into_iter().map(ResourceKey::Task));
    }
    if !users.is_empty() {
        let found = locked_users(&mut connection, &users).await?;
        locked.extend(found.into_iter().map(ResourceKey::Profile));
    }
    transaction.rollback().await?;
    Ok(locked)
}

/// As every write locks them, but without waiting.
async fn lock_tables(connection: &mut Connection<'_>) -> Result<(), sqlx::Error> {
    sqlx::query!("LOCK TABLE tasks, users, applied_operations IN ROW EXCLUSIVE MODE NOWAIT")
        .execute(connection)
        .await?;
    Ok(())
}

async fn locked_tasks(
    connection: &mut Connection<'_>,
    ids: &[Uuid],
) -> Result<Vec<TaskId>, sqlx::Error> {
    let locked = sqlx::query_scalar!(
        "WITH free AS MATERIALIZED (SELECT id FROM tasks WHERE id = ANY($1) FOR UPDATE SKIP LOCKED) \
         SELECT id AS \"id!\" FROM tasks WHERE id = ANY($1) EXCEPT SELECT id FROM free",
        ids,
    )
    .fetch_all(connection)
    .await?;
    Ok(locked.into_iter().map(TaskId::from_uuid).collect())
}

async fn locked_users(
    connection: &mut Connection<'_>,
    ids: &[String],
) -> Result<Vec<UserId>, sqlx::Error> {
    let locked = sqlx::query_scalar!(
        "WITH free AS MATERIALIZED (SELECT id FROM users WHERE id = ANY($1) FOR UPDATE SKIP LOCKED) \
         SELECT id AS \"id!\" FROM users WHERE id = ANY($1) EXCEPT SELECT id FROM free",
        ids,
    )
    .fetch_all(connection)
    .await?;
    locked.iter().map(|id| read_user(id)).collect()
}
