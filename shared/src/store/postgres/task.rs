//! The statements on tasks, and how a task lies in a row.
//!
//! Beside each field stands the stamp of the write that set it. A stamp of 0 is no register: every write that makes
//! a task sets all its fields, so that is found in tombstones only, whose fields are cleared.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::connection::Connection;
use super::values::{
    columns, field_stamp, field_value, read_stamp, read_user, stored_stamp, stored_time, unreadable,
};
use crate::domain::task::{Description, Tags, Title};
use crate::domain::{
    Priority, Register, Row, Stamp, State, Status, TaskId, TaskState, Timestamp, UserId,
};

/// Reads tasks: `SELECT` of all columns, and the rest of the statement.
macro_rules! select_tasks {
    ($rest:literal, $($argument:expr),+) => {
        sqlx::query_as!(
            TaskRow,
            "SELECT id, user_id, title, description, status, priority, due_at, tags, created_stamp, deleted_stamp, \
             title_stamp, description_stamp, status_stamp, priority_stamp, due_at_stamp, tags_stamp FROM tasks "
                + $rest,
            $($argument),+
        )
    };
}

/// The tasks with these ids, whoever's, tombstones included; in no particular order.
pub(super) async fn find(
    connection: &mut Connection<'_>,
    ids: &[Uuid],
) -> Result<Vec<(TaskId, Row)>, sqlx::Error> {
    let rows = select_tasks!("WHERE id = ANY($1)", ids)
        .fetch_all(connection)
        .await?;
    rows.into_iter().map(TaskRow::into_row).collect()
}

/// The same, locked until the end of the transaction, in order of id, so that two batches never wait for each other.
pub(super) async fn lock(
    connection: &mut Connection<'_>,
    ids: &[Uuid],
) -> Result<Vec<(TaskId, Row)>, sqlx::Error> {
    let rows = select_tasks!("WHERE id = ANY($1) ORDER BY id FOR UPDATE", ids)
        .fetch_all(connection)
        .await?;
    rows.into_iter().map(TaskRow::into_row).collect()
}

/// Merges a change that deletes nothing into its task, or makes the task if the change may: one statement, which
/// decides field by field as [`TaskState::merge`] does. Returns the task as it is then; `None` where nothing was
/// touched, since there is no such task, it is another user's, or it is deleted.
pub(super) async fn merge(
    connection: &mut Connection<'_>,
    id: TaskId,
    owner: &UserId,
    change: &TaskState,
) -> Result<Option<Row>, sqlx::Error> {
    #[cfg(feature = "seeded-bugs")]
    super::seeded::forget_stamps(connection, id).await?;
    let task = TaskColumns::of(id, owner, change);
    let row = sqlx::query_as!(
        TaskRow,
        "INSERT INTO tasks AS mine (id, user_id, title, description, status, priority, due_at, tags, \
             created_stamp, title_stamp, description_stamp, status_stamp, priority_stamp, due_at_stamp, tags_stamp) \
         SELECT $1, $2, $3, $4, $5, $6, $7, $8::text::text[], $9::bigint, $10, $11, $12, $13, $14, $15 \
         WHERE $9 > 0 OR EXISTS (SELECT FROM tasks WHERE id = $1) \
         ON CONFLICT (id) DO UPDATE SET \
             title = CASE WHEN EXCLUDED.title_stamp > mine.title_stamp \
                 THEN EXCLUDED.title ELSE mine.title END, \
             description = CASE WHEN EXCLUDED.description_stamp > mine.description_stamp \
                 THEN EXCLUDED.description ELSE mine.description END, \
             status = CASE WHEN EXCLUDED.status_stamp > mine.status_stamp \
                 THEN EXCLUDED.status ELSE mine.status END, \
             priority = CASE WHEN EXCLUDED.priority_stamp > mine.priority_stamp \
                 THEN EXCLUDED.priority ELSE mine.priority END, \
             due_at = CASE WHEN EXCLUDED.due_at_stamp > mine.due_at_stamp \
                 THEN EXCLUDED.due_at ELSE mine.due_at END, \
             tags = CASE WHEN EXCLUDED.tags_stamp > mine.tags_stamp \
                 THEN EXCLUDED.tags ELSE mine.tags END, \
             created_stamp = LEAST(mine.created_stamp, NULLIF(EXCLUDED.created_stamp, 0)), \
             title_stamp = GREATEST(mine.title_stamp, EXCLUDED.title_stamp), \
             description_stamp = GREATEST(mine.description_stamp, EXCLUDED.description_stamp), \
             status_stamp = GREATEST(mine.status_stamp, EXCLUDED.status_stamp), \
             priority_stamp = GREATEST(mine.priority_stamp, EXCLUDED.priority_stamp), \
             due_at_stamp = GREATEST(mine.due_at_stamp, EXCLUDED.due_at_stamp), \
             tags_stamp = GREATEST(mine.tags_stamp, EXCLUDED.tags_stamp) \
         WHERE mine.user_id = EXCLUDED.user_id AND mine.deleted_stamp = 0 \
         RETURNING id, user_id, title, description, status, priority, due_at, tags, created_stamp, deleted_stamp, \
             title_stamp, description_stamp, status_stamp, priority_stamp, due_at_stamp, tags_stamp",
        task.id,
        task.user_id,
        task.title,
        task.description,
        task.status,
        task.priority,
        task.due_at,
        task.tags,
        task.created_stamp,
        task.title_stamp,
        task.description_stamp,
        task.status_stamp,
        task.priority_stamp,
        task.due_at_stamp,
        task.tags_stamp,
    )
    .fetch_optional(connection)
    .await?;
    row.map(|row| Ok(row.into_row()?.1)).transpose()
}

/// Makes a tombstone of a task, in one statement. Returns it; `None` where nothing was touched, since there is no
/// such task, it is another user's, or it is deleted already.
pub(super) async fn delete(
    connection: &mut Connection<'_>,
    id: TaskId,
    owner: &UserId,
    deleted: Stamp,
) -> Result<Option<Row>, sqlx::Error> {
    let row = sqlx::query_as!(
        TaskRow,
        "UPDATE tasks SET title = '', description = '', status = 'todo', priority = 3, due_at = NULL, tags = '{}', \
             deleted_stamp = $3, title_stamp = 0, description_stamp = 0, status_stamp = 0, priority_stamp = 0, \
             due_at_stamp = 0, tags_stamp = 0 \
         WHERE id = $1 AND user_id = $2 AND deleted_stamp = 0 \
         RETURNING id, user_id, title, description, status, priority, due_at, tags, created_stamp, deleted_stamp, \
             title_stamp, description_stamp, status_stamp, priority_stamp, due_at_stamp, tags_stamp",
        id.as_uuid(),
        owner.as_str(),
        deleted.as_i64(),
    )
    .fetch_optional(&mut *connection)
    .await?;
    #[cfg(feature = "seeded-bugs")]
    super::seeded::purge(connection, id).await?;
    row.map(|row| Ok(row.into_row()?.1)).transpose()
}

/// Inserts new tasks. Where one of the ids is taken it fails with a unique violation: `ON CONFLICT DO NOTHING` would
/// cost half as much again for each row.
pub(super) async fn insert(
    connection: &mut Connection<'_>,
    tasks: &TaskArrays<'_>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "INSERT INTO tasks (id, user_id, title, description, status, priority, due_at, tags, created_stamp, \
             deleted_stamp, title_stamp, description_stamp, status_stamp, priority_stamp, due_at_stamp, tags_stamp) \
         SELECT UNNEST($1::uuid[]), UNNEST($2::text[]), UNNEST($3::text[]), UNNEST($4::text[]), UNNEST($5::text[]), \
             UNNEST($6::smallint[]), UNNEST($7::timestamptz[]), UNNEST($8::text[])::text[], UNNEST($9::bigint[]), \
             UNNEST($10::bigint[]), UNNEST($11::bigint[]), UNNEST($12::bigint[]), UNNEST($13::bigint[]), \
             UNNEST($14::bigint[]), UNNEST($15::bigint[]), UNNEST($16::bigint[])",
        &tasks.id,
        &tasks.user_id as &[&str],
        &tasks.title as &[&str],
        &tasks.description as &[&str],
        &tasks.status as &[&str],
        &tasks.priority,
        &tasks.due_at as &[Option<DateTime<Utc>>],
        &tasks.tags,
        &tasks.created_stamp,
        &tasks.deleted_stamp,
        &tasks.title_stamp,
        &tasks.description_stamp,
        &tasks.status_stamp,
        &tasks.priority_stamp,
        &tasks.due_at_stamp,
        &tasks.tags_stamp,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Sets whole tasks that the transaction has locked. Owners stay.
pub(super) async fn overwrite(
    connection: &mut Connection<'_>,
    tasks: &TaskArrays<'_>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE tasks SET title = new.title, description = new.description, status = new.status, \
             priority = new.priority, due_at = new.due_at, tags = new.tags::text[], \
             created_stamp = new.created_stamp, deleted_stamp = new.deleted_stamp, title_stamp = new.title_stamp, \
             description_stamp = new.description_stamp, status_stamp = new.status_stamp, \
             priority_stamp = new.priority_stamp, due_at_stamp = new.due_at_stamp, tags_stamp = new.tags_stamp \
         FROM UNNEST($1::uuid[], $2::text[], $3::text[], $4::text[], $5::smallint[], $6::timestamptz[], \
             $7::text[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], \
             $14::bigint[], $15::bigint[]) \
             AS new (id, title, description, status, priority, due_at, tags, created_stamp, deleted_stamp, \
             title_stamp, description_stamp, status_stamp, priority_stamp, due_at_stamp, tags_stamp) \
         WHERE tasks.id = new.id",
        &tasks.id,
        &tasks.title as &[&str],
        &tasks.description as &[&str],
        &tasks.status as &[&str],
        &tasks.priority,
        &tasks.due_at as &[Option<DateTime<Utc>>],
        &tasks.tags,
        &tasks.created_stamp,
        &tasks.deleted_stamp,
        &tasks.title_stamp,
        &tasks.description_stamp,
        &tasks.status_stamp,
        &tasks.priority_stamp,
        &tasks.due_at_stamp,
        &tasks.tags_stamp,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A row as it is read.
#[derive(sqlx::FromRow)]
pub(super) struct TaskRow {
    id: Uuid,
    user_id: String,
    title: String,
    description: String,
    status: String,
    priority: i16,
    due_at: Option<DateTime<Utc>>,
    tags: Vec<String>,
    created_stamp: i64,
    deleted_stamp: i64,
    title_stamp: i64,
    description_stamp: i64,
    status_stamp: i64,
    priority_stamp: i64,
    due_at_stamp: i64,
    tags_stamp: i64,
}

impl TaskRow {
    /// The columns that [`sqlx::FromRow`] reads, for statements that are built.
    pub(super) const COLUMNS: &str = "id, user_id, title, description, status, priority, due_at, tags, \
        created_stamp, deleted_stamp, title_stamp, description_stamp, status_stamp, priority_stamp, due_at_stamp, \
        tags_stamp";

    /// The task's id and state, whoever's it is.
    pub(super) fn into_state(self) -> Result<(TaskId, TaskState), sqlx::Error> {
        fn register<T>(value: T, stamp: i64) -> Option<Register<T>> {
            read_stamp(stamp).map(|stamp| Register::new(value, stamp))
        }
        let status = Status::parse(&self.status).map_err(unreadable)?;
        let priority = Priority::parse(self.priority.into()).map_err(unreadable)?;
        let task = TaskState {
            created: read_stamp(self.created_stamp),
            deleted: read_stamp(self.deleted_stamp),
            title: register(Title::from_stored(self.title), self.title_stamp),
            description: register(
                Description::from_stored(self.description),
                self.description_stamp,
            ),
            status: register(status, self.status_stamp),
            priority: register(priority, self.priority_stamp),
            due_at: register(self.due_at.map(Timestamp::from), self.due_at_stamp),
            tags: register(Tags::from_stored(self.tags), self.tags_stamp),
        };
        Ok((TaskId::from_uuid(self.id), task))
    }

    fn into_row(self) -> Result<(TaskId, Row), sqlx::Error> {
        let owner = read_user(&self.user_id)?;
        let (id, task) = self.into_state()?;
        Ok((
            id,
            Row {
                owner,
                state: State::Task(task),
            },
        ))
    }
}

columns! {
    /// A task as columns: placeholders, with stamp 0, for fields that aren't set.
    TaskColumns,
    /// Whole tasks, column by column, as `UNNEST` takes them.
    TaskArrays {
        id: Uuid,
        user_id: &'a str,
        title: &'a str,
        description: &'a str,
        status: &'a str,
        priority: i16,
        due_at: Option<DateTime<Utc>>,
        tags: String,
        created_stamp: i64,
        deleted_stamp: i64,
        title_stamp: i64,
        description_stamp: i64,
        status_stamp: i64,
        priority_stamp: i64,
        due_at_stamp: i64,
        tags_stamp: i64,
    }
}

/// The fields of a tombstone.
static CLEARED: TaskState = TaskState {
    created: None,
    deleted: None,
    title: None,
    description: None,
    status: None,
    priority: None,
    due_at: None,
    tags: None,
};

impl<'a> TaskColumns<'a> {
    /// A state as a row; of a deleted task only its end is kept.
    pub(super) fn of(id: TaskId, owner: &'a UserId, task: &'a TaskState) -> Self {
        let fields = if task.deleted.is_some() {
            &CLEARED
        } else {
            task
        };
        let due_at = field_value(&fields.due_at).copied().flatten();
        TaskColumns {
            id: id.as_uuid(),
            user_id: owner.as_str(),
            title: field_value(&fields.title).map_or("", Title::as_str),
            description: field_value(&fields.description).map_or("", Description::as_str),
            status: field_value(&fields.status)
                .copied()
                .unwrap_or_default()
                .as_str(),
            priority: field_value(&fields.priority)
                .copied()
                .unwrap_or_default()
                .number()
                .into(),
            due_at: due_at.map(stored_time),
            tags: array_literal(field_value(&fields.tags).map_or(&[], Tags::as_slice)),
            created_stamp: stored_stamp(task.created),
            deleted_stamp: stored_stamp(task.deleted),
            title_stamp: field_stamp(&fields.title),
            description_stamp: field_stamp(&fields.description),
            status_stamp: field_stamp(&fields.status),
            priority_stamp: field_stamp(&fields.priority),
            due_at_stamp: field_stamp(&fields.due_at),
            tags_stamp: field_stamp(&fields.tags),
        }
    }
}

/// An array in PostgreSQL's text form. Arrays of different lengths can't be elements of an array, so `UNNEST` gets
/// them as texts.
fn array_literal(items: &[String]) -> String {
    let mut literal = String::from("{");
    for (index, item) in items.iter().enumerate() {
        literal.push_str(if index == 0 { "\"" } else { ",\"" });
        for character in item.chars() {
            if matches!(character, '"' | '\\') {
                literal.push('\\');
            }
            literal.push(character);
        }
        literal.push('"');
    }
    literal.push('}');
    literal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_literal_quotes_what_could_end_it() {
        assert_eq!(array_literal(&[]), "{}");
        let items = ["a,b".to_owned(), "say \"hi\"".to_owned(), "\\".to_owned()];
        assert_eq!(array_literal(&items), r#"{"a,b","say \"hi\"","\\"}"#);
    }
}
