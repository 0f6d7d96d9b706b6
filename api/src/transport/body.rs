//! Reading a request's body: bounded in size, by its announced length and as it comes, and in time.
//!
//! warp's own filters either buffer without a bound or refuse chunked bodies with a wrong status, so the stream is
//! read here.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use holdfast_shared::seeded::Bug;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;

use super::problem::{Kind, Problem};

/// Most bytes of a body. The largest valid task, of 10 000 characters in its description, takes about 45 KiB.
pub const MAX_BODY_BYTES: usize = 64 * 1024;

/// How long a body may take from the end of the headers to its own.
pub const BODY_DEADLINE: Duration = Duration::from_secs(30);

/// A body that hasn't been read yet.
pub type BodyStream = BoxStream<'static, Result<Bytes, warp::Error>>;

/// Reads a body to its end.
///
/// # Errors
/// 413 when it is announced, or turns out, to be larger than [`MAX_BODY_BYTES`]; 408 when it isn't finished after
/// [`BODY_DEADLINE`]; 400 when it breaks off.
pub async fn read(headers: &HeaderMap, body: BodyStream) -> Result<Bytes, Problem> {
    refuse_announced_length(headers)?;
    match tokio::time::timeout(BODY_DEADLINE, collect(body)).await {
        Ok(result) => result,
        Err(_) => Err(Problem::new(
            Kind::BodyTimeout,
            "the body was not finished in 30 seconds",
        )),
    }
}

fn refuse_announced_length(headers: &HeaderMap) -> Result<(), Problem> {
    let announced = headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok());
    match announced.and_then(|text| text.parse::<u64>().ok()) {
        Some(length) if length > MAX_BODY_BYTES as u64 => Err(too_large()),
        _ => Ok(()),
    }
}

async fn collect(mut body: BodyStream) -> Result<Bytes, Problem> {
    let mut whole = BytesMut::new();
    while let Some(chunk) = body.next().await {
        let chunk = chunk
            .map_err(|_| Problem::new(Kind::UnreadableBody, "the body broke off before its end"))?;
        if whole.len() + chunk.len() > MAX_BODY_BYTES && !Bug::BodyUnbounded.is_on() {
            return Err(too_large());
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(whole.freeze())
}

fn too_large() -> Problem {
    Problem::new(Kind::BodyTooLarge, "the body is larger than 65536 bytes")
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http::HeaderValue;

    use super::*;

    fn chunks(sizes: &[usize]) -> BodyStream {
        let chunks: Vec<_> = sizes
            .iter()
            .map(|size| Ok(Bytes::from(vec![b'x'; *size])))
            .collect();
        stream::iter(chunks).boxed()
    }

    #[tokio::test]
    async fn a_body_of_exactly_the_limit_is_read() {
        let body = read(&HeaderMap::new(), chunks(&[MAX_BODY_BYTES - 1, 1]))
            .await
            .expect("fits");
        assert_eq!(body.len(), MAX_BODY_BYTES);
    }

    #[tokio::test]
    async fn a_chunked_body_over_the_limit_is_413() {
        let problem = read(&HeaderMap::new(), chunks(&[MAX_BODY_BYTES, 1]))
            .await
            .expect_err("too large");
        assert_eq!(problem.kind(), Kind::BodyTooLarge);
    }

    #[tokio::test]
    async fn an_announced_length_over_the_limit_is_413_before_anything_is_read() {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_LENGTH, HeaderValue::from(MAX_BODY_BYTES + 1));
        let problem = read(&headers, stream::pending().boxed())
            .await
            .expect_err("too large");
        assert_eq!(problem.kind(), Kind::BodyTooLarge);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_is_not_finished_in_time_is_408() {
        let problem = read(&HeaderMap::new(), stream::pending().boxed())
            .await
            .expect_err("too slow");
        assert_eq!(problem.kind(), Kind::BodyTimeout);
    }
}
