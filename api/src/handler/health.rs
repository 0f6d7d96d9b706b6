//! What probes and scrapers ask, without a token.

use std::sync::Arc;

use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use serde_json::json;
use warp::reply::Response;

use super::{App, Head};
use crate::transport::problem::{Kind, Problem};
use crate::transport::response;

/// Prometheus' text format.
const EXPOSITION: HeaderValue =
    HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// The process runs.
///
/// # Errors
/// None.
pub async fn livez(_app: Arc<App>, _head: Head) -> Result<Response, Problem> {
    Ok(response::json(StatusCode::OK, &json!({"status": "alive"})))
}

/// The process can serve: a store or the buffer takes writes. A full buffer stays ready, since its node still
/// answers all that needs no buffer.
///
/// # Errors
/// 503.
pub async fn readyz(app: Arc<App>, _head: Head) -> Result<Response, Problem> {
    if app.repository.health().await.ready {
        return Ok(response::json(StatusCode::OK, &json!({"status": "ready"})));
    }
    Err(Problem::new(
        Kind::NotReady,
        "PostgreSQL is away and the buffer can't be used",
    ))
}

/// How things stand.
///
/// # Errors
/// None: 503 when not ready, but with the report.
pub async fn health(app: Arc<App>, _head: Head) -> Result<Response, Problem> {
    Ok(response::health(&app.repository.health().await))
}

/// All metrics.
///
/// # Errors
/// None.
pub async fn metrics(app: Arc<App>, _head: Head) -> Result<Response, Problem> {
    let mut response = Response::new(app.metrics.render().into());
    response.headers_mut().insert(CONTENT_TYPE, EXPOSITION);
    Ok(response)
}
