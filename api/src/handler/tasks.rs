//! `/api/v1/tasks`.

use std::sync::Arc;

use holdfast_shared::domain::Rejection;
use holdfast_shared::domain::{Cursor, TaskId, TaskQuery, TaskState};
use holdfast_shared::repository::{Found, TaskPage, WriteError};
use http::StatusCode;
use warp::reply::Response;

use super::{App, Head, answer_write, note_direct, read_problem};
use crate::middleware::auth::Caller;
use crate::transport::body::BodyStream;
use crate::transport::condition::{self, ReadVerdict};
use crate::transport::header::BodyForm;
use crate::transport::problem::{Kind, Problem};
use crate::transport::response::{self, Resource, Verb};
use crate::transport::{cursor, query, request};
use crate::usecase;

/// Bytes of text after which a page ends, so that what is held for a client who doesn't read is bounded: some 25 of the
/// largest tasks, or more than 200 of 5 KB.
const PAGE_BYTES: usize = 1024 * 1024;

/// Creates a task.
///
/// # Errors
/// A problem of the request, or of the write.
pub async fn create(
    app: Arc<App>,
    caller: Caller,
    head: Head,
    body: BodyStream,
) -> Result<Response, Problem> {
    let mut terms = head.terms(&caller)?;
    let body = head.read_body(&app, &caller, BodyForm::Json, body).await?;
    terms.idempotency = head.idempotency(&body)?;
    let task = request::new_task(&body)?;
    let id = usecase::task::new_id(&terms);
    let handling = terms.handling;
    let written = usecase::task::create(&app.repository, terms, id, task).await;
    answer_write(written, handling, Resource::Task(id), Verb::Create)
}

/// Lists the caller's tasks.
///
/// # Errors
/// 400 naming a bad parameter, 503.
pub async fn list(app: Arc<App>, caller: Caller, head: Head) -> Result<Response, Problem> {
    let query = query::tasks(&head.query)?;
    let mut page = app
        .repository
        .list_tasks(&caller.user, &query)
        .await
        .map_err(read_problem)?;
    page.cut(PAGE_BYTES);
    Ok(response::task_page(&page, next_cursor(&page, &query)))
}

/// Reads a task.
///
/// # Errors
/// 404, 412, 503.
pub async fn read(app: Arc<App>, caller: Caller, head: Head) -> Result<Response, Problem> {
    let id = head.task_id()?;
    let found = find(&app, &caller, id).await?;
    let etag = found.value.etag();
    match condition::judge_read(&head.headers, &etag)? {
        ReadVerdict::NotModified => Ok(response::not_modified(&etag, found.sync_state, found.age)),
        ReadVerdict::Whole => whole(id, &found),
    }
}

/// Creates or replaces a task under the client's id.
///
/// # Errors
/// A problem of the request, or of the write; 410 for a deleted id.
pub async fn replace(
    app: Arc<App>,
    caller: Caller,
    head: Head,
    body: BodyStream,
) -> Result<Response, Problem> {
    let id = head.task_id()?;
    let terms = head.conditional_terms(&caller)?;
    let body = head.read_body(&app, &caller, BodyForm::Json, body).await?;
    let task = request::new_task(&body)?;
    // What this node can't know now is judged where the write is applied.
    let known = app
        .repository
        .find_task(&caller.user, id)
        .await
        .unwrap_or(None);
    let handling = terms.handling;
    let written = usecase::task::replace(&app.repository, terms, id, task, known.as_ref()).await;
    match written {
        Err(WriteError::Rejected(Rejection::NotFound)) => Err(Problem::new(
            Kind::NotFound,
            "no task of yours has this id, and ids of version 8 are given by an Idempotency-Key only: choose another",
        )),
        written => answer_write(written, handling, Resource::Task(id), Verb::Replace),
    }
}

/// Changes fields of a task by a merge patch, which needs no read: only what it mentions is written. One that mentions
/// nothing is a read, unless it is to be remembered, or judged, or can't be made now.
///
/// # Errors
/// A problem of the request, or of the write.
pub async fn patch(
    app: Arc<App>,
    caller: Caller,
    head: Head,
    body: BodyStream,
) -> Result<Response, Problem> {
    let id = head.task_id()?;
    let mut terms = head.conditional_terms(&caller)?;
    let body = head
        .read_body(&app, &caller, BodyForm::MergePatch, body)
        .await?;
    terms.idempotency = head.idempotency(&body)?;
    let change = request::task_patch(&body)?;
    if change == TaskState::default()
        && terms.are_plain()
        && let Ok(found) = app.repository.find_task(&caller.user, id).await
    {
        return whole(id, &present(found)?);
    }
    let handling = terms.handling;
    let written = usecase::task::patch(&app.repository, terms, id, change).await;
    answer_write(written, handling, Resource::Task(id), Verb::Patch)
}

/// Deletes a task; one that is deleted already stays so.
///
/// # Errors
/// A problem of the request, or of the write.
pub async fn delete(
    app: Arc<App>,
    caller: Caller,
    head: Head,
    _body: BodyStream,
) -> Result<Response, Problem> {
    let id = head.task_id()?;
    let terms = head.conditional_terms(&caller)?;
    let handling = terms.handling;
    match usecase::task::delete(&app.repository, terms, id).await {
        Err(WriteError::Rejected(Rejection::Deleted)) => {
            let mut answer = response::empty(StatusCode::NO_CONTENT);
            note_direct(handling, &mut answer);
            Ok(answer)
        }
        written => answer_write(written, handling, Resource::Task(id), Verb::Delete),
    }
}

/// A task that is there.
async fn find(app: &App, caller: &Caller, id: TaskId) -> Result<Found<TaskState>, Problem> {
    let found = app
        .repository
        .find_task(&caller.user, id)
        .await
        .map_err(read_problem)?;
    present(found)
}

fn present(found: Option<Found<TaskState>>) -> Result<Found<TaskState>, Problem> {
    found
        .filter(|found| found.value.deleted.is_none())
        .ok_or_else(Problem::not_found)
}

/// A task of which only a pending change is known can't be shown.
fn whole(id: TaskId, found: &Found<TaskState>) -> Result<Response, Problem> {
    response::task(id, found).ok_or_else(Problem::unavailable)
}

fn next_cursor(page: &TaskPage, query: &TaskQuery) -> Option<String> {
    let (id, last) = page.items.last().filter(|_| page.has_more)?;
    let place = Cursor {
        key: query.key(&last.value),
        id: *id,
    };
    Some(cursor::of_task(query.sort, query.descending, &place))
}
