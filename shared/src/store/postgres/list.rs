//! The list of a user's tasks: the one statement that is put together from parts.
//!
//! It selects and sorts as [`TaskQuery::selects`] and [`TaskQuery::compare`] do, which the merge with the buffer's
//! tasks relies on.

use sqlx::{Postgres, QueryBuilder};

use super::connection::Connection;
use super::task::TaskRow;
use super::values::stored_time;
use crate::domain::query::{FINAL_SIGMA, SIGMA, folded};
use crate::domain::{Cursor, SortField, TaskId, TaskQuery, TaskState, Timestamp, UserId};

/// Finds up to `query.limit` of the user's tasks, in order, no tombstones, and none of `without`.
pub(super) async fn find(
    connection: &mut Connection<'_>,
    user: &UserId,
    query: &TaskQuery,
    without: &[TaskId],
) -> Result<Vec<(TaskId, TaskState)>, sqlx::Error> {
    let mut sql = QueryBuilder::new("SELECT ");
    sql.push(TaskRow::COLUMNS)
        .push(" FROM tasks WHERE deleted_stamp = 0 AND user_id = ")
        .push_bind(user.as_str());
    push_conditions(&mut sql, query);
    if !without.is_empty() {
        let ids: Vec<_> = without.iter().map(|id| id.as_uuid()).collect();
        sql.push(" AND id <> ALL(").push_bind(ids).push(")");
    }
    if let Some(cursor) = &query.after {
        push_beginning(&mut sql, query, cursor);
    }
    let direction = if query.descending { " DESC" } else { " ASC" };
    sql.push(" ORDER BY ")
        .push(column(query.sort))
        .push(direction);
    if query.sort == SortField::DueAt {
        sql.push(" NULLS LAST");
    }
    sql.push(", id").push(direction);
    sql.push(" LIMIT ")
        .push_bind(i64::try_from(query.limit).unwrap_or(i64::MAX));
    let rows: Vec<TaskRow> = sql.build_query_as().fetch_all(connection).await?;
    rows.into_iter().map(TaskRow::into_state).collect()
}

fn push_conditions(sql: &mut QueryBuilder<Postgres>, query: &TaskQuery) {
    if let Some(status) = query.status {
        sql.push(" AND status = ").push_bind(status.as_str());
    }
    if let Some(priority) = query.priority {
        sql.push(" AND priority = ")
            .push_bind(i16::from(priority.number()));
    }
    if let Some(tag) = &query.tag {
        sql.push(" AND ")
            .push_bind(tag.clone())
            .push(" = ANY(tags)");
    }
    if let Some(bound) = query.due_before {
        sql.push(" AND due_at <= ").push_bind(stored_time(bound));
    }
    if let Some(bound) = query.due_after {
        sql.push(" AND due_at >= ").push_bind(stored_time(bound));
    }
    if let Some(text) = &query.text {
        push_text(sql, text);
    }
}

/// Lower case is ICU's: that of the database may know no letters but ASCII's. Then as [`folded`] does.
fn push_text(sql: &mut QueryBuilder<Postgres>, text: &str) {
    for (before, column) in [(" AND (", "title"), (" OR ", "description")] {
        sql.push(format_args!(
            "{before}strpos(translate(lower({column} COLLATE \"und-x-icu\"), '{FINAL_SIGMA}', '{SIGMA}'), "
        ));
        sql.push_bind(folded(text)).push(") > 0");
    }
    sql.push(")");
}

/// Rows after the cursor. Tasks without a due time come last in either direction, so they are after every task that
/// has one.
fn push_beginning(sql: &mut QueryBuilder<Postgres>, query: &TaskQuery, cursor: &Cursor) {
    let beyond = if query.descending { " < " } else { " > " };
    let column = column(query.sort);
    let id = cursor.id.as_uuid();
    let Some(key) = cursor.key else {
        match query.sort {
            SortField::DueAt => sql
                .push(" AND due_at IS NULL AND id")
                .push(beyond)
                .push_bind(id),
            _ => sql.push(" AND FALSE"),
        };
        return;
    };
    sql.push(" AND ((")
        .push(column)
        .push(", id)")
        .push(beyond)
        .push("(");
    match query.sort {
        SortField::Priority => sql.push_bind(key),
        _ => sql.push_bind(stored_time(Timestamp::from_micros(key))),
    };
    sql.push(", ").push_bind(id).push(")");
    if query.sort == SortField::DueAt {
        sql.push(" OR due_at IS NULL");
    }
    sql.push(")");
}

fn column(field: SortField) -> &'static str {
    match field {
        SortField::CreatedAt => "created_at",
        SortField::UpdatedAt => "updated_at",
        SortField::DueAt => "due_at",
        SortField::Priority => "priority",
    }
}
