//! `/api/v1/profile`: the caller's own, made from the token's claims at first sight.

use std::sync::Arc;

use holdfast_shared::domain::ProfileState;
use holdfast_shared::repository::{Found, Written};
use warp::reply::Response;

use super::{App, Head, answer_write, read_problem};
use crate::middleware::auth::Caller;
use crate::transport::body::BodyStream;
use crate::transport::condition::{self, ReadVerdict};
use crate::transport::header::BodyForm;
use crate::transport::problem::Problem;
use crate::transport::request;
use crate::transport::response::{self, Resource, Verb};
use crate::usecase::{self, Terms};

/// Reads the profile.
///
/// # Errors
/// 412, 503.
pub async fn read(app: Arc<App>, caller: Caller, head: Head) -> Result<Response, Problem> {
    let found = find(&app, &caller).await?;
    let etag = found.value.etag(&caller.user);
    match condition::judge_read(&head.headers, &etag)? {
        ReadVerdict::NotModified => Ok(response::not_modified(&etag, found.sync_state, found.age)),
        ReadVerdict::Whole => whole(&caller, &found),
    }
}

/// Replaces the profile: what the document leaves out is emptied.
///
/// # Errors
/// A problem of the request, or of the write.
pub async fn replace(
    app: Arc<App>,
    caller: Caller,
    head: Head,
    body: BodyStream,
) -> Result<Response, Problem> {
    let terms = head.conditional_terms(&caller)?;
    let body = head.read_body(&app, &caller, BodyForm::Json, body).await?;
    let change = request::whole_profile(&body)?;
    write(&app, &caller, terms, change, Verb::Replace).await
}

/// Changes fields of the profile by a merge patch. One that mentions nothing is a read, as for a task.
///
/// # Errors
/// A problem of the request, or of the write.
pub async fn patch(
    app: Arc<App>,
    caller: Caller,
    head: Head,
    body: BodyStream,
) -> Result<Response, Problem> {
    let mut terms = head.conditional_terms(&caller)?;
    let body = head
        .read_body(&app, &caller, BodyForm::MergePatch, body)
        .await?;
    terms.idempotency = head.idempotency(&body)?;
    let change = request::profile_patch(&body)?;
    if change == ProfileState::default()
        && terms.are_plain()
        && let Ok(found) = find(&app, &caller).await
    {
        return whole(&caller, &found);
    }
    write(&app, &caller, terms, change, Verb::Patch).await
}

async fn write(
    app: &App,
    caller: &Caller,
    terms: Terms,
    change: ProfileState,
    verb: Verb,
) -> Result<Response, Problem> {
    let handling = terms.handling;
    let written = usecase::profile::change(&app.repository, terms, &caller.claims, change).await;
    // A user's profile is always there, made at first sight, so no write of a client's makes it: never 201.
    let written = written.map(|written| Written {
        created: false,
        ..written
    });
    answer_write(written, handling, Resource::Profile(&caller.user), verb)
}

async fn find(app: &App, caller: &Caller) -> Result<Found<ProfileState>, Problem> {
    app.repository
        .find_profile(&caller.user, &caller.claims)
        .await
        .map_err(read_problem)
}

fn whole(caller: &Caller, found: &Found<ProfileState>) -> Result<Response, Problem> {
    response::profile(&caller.user, found).ok_or_else(Problem::unavailable)
}
