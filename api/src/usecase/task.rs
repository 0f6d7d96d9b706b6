//! Writing tasks.

use holdfast_shared::domain::task::NewTask;
use holdfast_shared::domain::{Body, Kind, Rejection, Stamp, TaskId, TaskState};
use holdfast_shared::repository::{Found, Repository, WriteError, Written};

use super::{Terms, write};

/// The id a new task gets: under an idempotency key the same on every node, so that two nodes can't make two tasks.
pub fn new_id(terms: &Terms) -> TaskId {
    match &terms.idempotency {
        Some(idempotency) => TaskId::derived(&terms.user, &idempotency.key),
        None => TaskId::generate(),
    }
}

/// Creates a task under this id.
///
/// # Errors
/// As [`Repository::write`].
pub async fn create(
    repository: &Repository,
    terms: Terms,
    id: TaskId,
    task: NewTask,
) -> Result<Written, WriteError> {
    write(
        repository,
        terms,
        Kind::Create,
        Body::Task {
            id,
            change: making(task),
        },
    )
    .await
}

/// Replaces a task, or creates it where there is none; `known` is what a read has just said of it. What is known to
/// be deleted stays so. Under an id that is derived from a key only its `POST` makes a task: there, and only there, what
/// isn't there is refused.
///
/// # Errors
/// As [`Repository::write`].
pub async fn replace(
    repository: &Repository,
    terms: Terms,
    id: TaskId,
    task: NewTask,
    known: Option<&Found<TaskState>>,
) -> Result<Written, WriteError> {
    let known = known.map(|found| &found.value);
    if known.is_some_and(|task| task.deleted.is_some()) {
        return Err(WriteError::Rejected(Rejection::Deleted));
    }
    if id.is_derived() {
        return patch(repository, terms, id, task.into_change()).await;
    }
    if known.is_some_and(TaskState::is_complete) {
        match patch(repository, terms.clone(), id, task.clone().into_change()).await {
            // This node's memory was of a task that the store doesn't have: then it is made.
            Err(WriteError::Rejected(Rejection::NotFound)) => {}
            other => return other,
        }
    }
    create(repository, terms, id, task).await
}

/// Sets some of a task's fields.
///
/// # Errors
/// As [`Repository::write`].
pub async fn patch(
    repository: &Repository,
    terms: Terms,
    id: TaskId,
    change: TaskState,
) -> Result<Written, WriteError> {
    write(repository, terms, Kind::Update, Body::Task { id, change }).await
}

/// Deletes a task, for good.
///
/// # Errors
/// As [`Repository::write`].
pub async fn delete(
    repository: &Repository,
    terms: Terms,
    id: TaskId,
) -> Result<Written, WriteError> {
    let change = TaskState {
        deleted: Some(Stamp::ZERO),
        ..TaskState::default()
    };
    write(repository, terms, Kind::Delete, Body::Task { id, change }).await
}

/// A change that may make the row; the stamps come with the operation's.
fn making(task: NewTask) -> TaskState {
    TaskState {
        created: Some(Stamp::ZERO),
        ..task.into_change()
    }
}
