//! `/api/v1/operations`: what became of the caller's buffered writes.

use std::sync::Arc;
use std::time::Duration;

use holdfast_shared::domain::{OperationId, OperationRecord};
use holdfast_shared::repository::ReadError;
use warp::reply::Response;

use super::{App, Head, read_problem};
use crate::lifecycle;
use crate::middleware::auth::{Caller, expect_in_force};
use crate::transport::problem::Problem;
use crate::transport::{cursor, query, response};

/// Reads an operation, waiting for its end if the client asks for that. A process that is about to end answers at
/// once, with what is known so far.
///
/// # Errors
/// 400 for a bad `wait`, 401 when the session was revoked meanwhile, 404, 503.
pub async fn read(app: Arc<App>, caller: Caller, head: Head) -> Result<Response, Problem> {
    let patience = query::wait(&head.query)?;
    let id = OperationId::parse(&head.parameter).ok_or_else(Problem::not_found)?;
    let found = find(&app, &caller, id, patience)
        .await
        .map_err(read_problem)?;
    expect_in_force(&app.repository, &caller)?;
    let record = found.ok_or_else(Problem::not_found)?;
    Ok(response::operation(&record))
}

/// Lists the caller's operations, newest first.
///
/// # Errors
/// 400 naming a bad parameter, 503.
pub async fn list(app: Arc<App>, caller: Caller, head: Head) -> Result<Response, Problem> {
    let query = query::operations(&head.query)?;
    // One more than is shown tells whether there are more.
    let listed = app
        .repository
        .list_operations(&caller.user, query.state, query.before, query.limit + 1)
        .await;
    let mut records = listed.map_err(read_problem)?;
    let has_more = records.len() > query.limit;
    records.truncate(query.limit);
    let next = records
        .last()
        .filter(|_| has_more)
        .map(|record| cursor::of_operation(record.id));
    Ok(response::operation_page(&records, next))
}

async fn find(
    app: &App,
    caller: &Caller,
    id: OperationId,
    patience: Duration,
) -> Result<Option<OperationRecord>, ReadError> {
    if patience.is_zero() {
        return app.repository.find_operation(&caller.user, id).await;
    }
    tokio::select! {
        found = app.repository.await_operation(&caller.user, id, patience) => found,
        () = lifecycle::draining(app.phase.clone()) => app.repository.find_operation(&caller.user, id).await,
    }
}
