//! The documents that tell what this API is, without a token.

use std::sync::Arc;

use warp::reply::Response;

use super::{App, Head};
use crate::transport::problem::{Kind, Problem};

/// One of the documents, by its path.
///
/// # Errors
/// 404 when there is none, 400 or 412 when a condition is malformed or doesn't hold.
pub async fn read(app: Arc<App>, head: Head) -> Result<Response, Problem> {
    let document = app
        .documents
        .find(&head.path)
        .ok_or_else(|| Problem::new(Kind::NotFound, "there is no such page"))?;
    document.answer(&head.headers)
}
