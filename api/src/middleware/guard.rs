//! What every request is held to: a panic becomes a problem and not a broken connection, and an answer comes in time.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use warp::reply::Response;

use crate::transport::problem::{Kind, Problem};

/// How long any answer may take: above the longest `wait` of an operation (60 s) and the deadline of a body (30 s),
/// each with the deadlines of the stores behind it.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(75);

/// Runs what answers a request; what it doesn't manage itself is answered for it.
pub async fn guard(answering: impl Future<Output = Response>, request_id: &str) -> Response {
    let caught = AssertUnwindSafe(answering).catch_unwind();
    match tokio::time::timeout(ANSWER_DEADLINE, caught).await {
        Ok(Ok(response)) => response,
        Ok(Err(panic)) => {
            tracing::error!(
                panic = panic_message(panic.as_ref()),
                "a request met a defect"
            );
            Problem::internal().into_response(request_id)
        }
        Err(_) => {
            tracing::error!(
                deadline_s = ANSWER_DEADLINE.as_secs(),
                "a request was given up"
            );
            let detail = "no answer was found in time; a write may still take effect";
            Problem::new(Kind::TimedOut, detail).into_response(request_id)
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&'static str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("not a text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_answered_with_500() {
        let response = guard(async { panic!("on purpose") }, "r-1").await;
        assert_eq!(response.status().as_u16(), 500);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_never_comes_is_503_in_the_end() {
        let response = guard(std::future::pending(), "r-1").await;
        assert_eq!(response.status().as_u16(), 503);
        assert!(response.headers().contains_key("retry-after"));
    }
}
