//! `/api/v1/sessions`: where the caller is logged in, and ending that.
//!
//! A revocation is never handled strictly: once it is fsynced here it holds here, which is what it is for, and a log
//! out that is refused because Redis is away would leave the session in force. So `Prefer: handling=strict` is not
//! heeded, as a client sees from the missing `Preference-Applied`.

use std::sync::Arc;

use holdfast_shared::domain::{SessionId, Timestamp};
use holdfast_shared::repository::Awaited;
use warp::reply::Response;

use super::{App, Head, read_problem, write_problem};
use crate::middleware::auth::Caller;
use crate::transport::body::BodyStream;
use crate::transport::problem::Problem;
use crate::transport::response::{self, Resource, Verb};
use crate::usecase;

/// Lists the caller's sessions.
///
/// # Errors
/// 503.
pub async fn list(app: Arc<App>, caller: Caller, _head: Head) -> Result<Response, Problem> {
    let sessions = app
        .repository
        .list_sessions(&caller.user)
        .await
        .map_err(|error| read_problem(error).awaiting(Awaited::Redis))?;
    Ok(response::session_page(&sessions, &caller.session))
}

/// Revokes one of the caller's sessions.
///
/// # Errors
/// 404 when it is no session of the caller's, or a problem of the write. Where whose it is can't be known now, 503:
/// nobody may end another user's session.
pub async fn revoke(
    app: Arc<App>,
    caller: Caller,
    head: Head,
    _body: BodyStream,
) -> Result<Response, Problem> {
    let id = SessionId::parse(&head.parameter).map_err(|_| Problem::not_found())?;
    if id == caller.session {
        return end_own(&app, &caller).await;
    }
    let found = app
        .repository
        .find_session(&caller.user, &id)
        .await
        .map_err(|error| read_problem(error).awaiting(Awaited::Redis))?;
    let session = found.ok_or_else(Problem::not_found)?;
    end(&app, &caller, id, session.expires_at).await
}

/// Revokes the session that asks.
///
/// # Errors
/// A problem of the write.
pub async fn log_out(
    app: Arc<App>,
    caller: Caller,
    _head: Head,
    _body: BodyStream,
) -> Result<Response, Problem> {
    end_own(&app, &caller).await
}

/// Ends the caller's session. It ends with the last of its tokens, if that can be known now: a log out doesn't fail for it.
async fn end_own(app: &App, caller: &Caller) -> Result<Response, Problem> {
    let id = caller.session.clone();
    let found = app.repository.find_session(&caller.user, &id).await;
    let stored = found.ok().flatten().map(|session| session.expires_at);
    let expires_at = stored.map_or(caller.expires_at, |stored| stored.max(caller.expires_at));
    end(app, caller, id, expires_at).await
}

async fn end(
    app: &App,
    caller: &Caller,
    id: SessionId,
    expires_at: Timestamp,
) -> Result<Response, Problem> {
    let written = usecase::session::revoke(&app.repository, &caller.user, id, expires_at).await;
    let written = written.map_err(|error| write_problem(error, Verb::Delete))?;
    Ok(response::written(&written, Resource::Session, Verb::Delete))
}
