//! What the bugs of [`crate::seeded`] that are made in SQL do.

use super::connection::Connection;
use crate::domain::TaskId;
use crate::seeded::Bug;

/// Makes every field of a task older than whatever comes.
pub(super) async fn forget_stamps(
    connection: &mut Connection<'_>,
    id: TaskId,
) -> Result<(), sqlx::Error> {
    if !Bug::SqlMergeIgnoresStamps.is_on() {
        return Ok(());
    }
    let statement = "UPDATE tasks SET title_stamp = 0, description_stamp = 0, status_stamp = 0, priority_stamp = 0, \
         due_at_stamp = 0, tags_stamp = 0 WHERE id = $1";
    let done = sqlx::query(statement).bind(id.as_uuid());
    done.execute(connection).await.map(drop)
}

/// Removes a tombstone.
pub(super) async fn purge(connection: &mut Connection<'_>, id: TaskId) -> Result<(), sqlx::Error> {
    if !Bug::TombstonePurged.is_on() {
        return Ok(());
    }
    let done = sqlx::query("DELETE FROM tasks WHERE id = $1").bind(id.as_uuid());
    done.execute(connection).await.map(drop)
}
