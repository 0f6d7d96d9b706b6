//! HTTP written by hand, for what a well-behaved client can't send.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use crate::answer::Answer;

/// The largest answer that is read.
const ANSWER_LIMIT_BYTES: u64 = 1024 * 1024;

/// Sends `request` as it is on a connection of its own, and reads until the
/// server closes it; so the request should ask for `Connection: close`.
///
/// # Errors
/// When there is no whole answer within `deadline`.
pub async fn exchange(address: &str, request: &[u8], deadline: Duration) -> Result<Answer> {
    let started = std::time::Instant::now();
    let bytes = tokio::time::timeout(deadline, talk(address, request))
        .await
        .with_context(|| format!("the connection was not closed within {deadline:?}"))??;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").context("no whole answer")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.with_context(|| format!("no status line: {head}"))?;
    Ok(Answer::new(
        status,
        headers(head)?,
        body.to_owned(),
        started.elapsed(),
    ))
}

async fn talk(address: &str, request: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address)
        .await
        .context("cannot connect")?;
    // A server that refuses a body may close before it has been sent in whole;
    // what it answered is still there to be read.
    let sent = stream.write_all(request).await;
    let mut answer = Vec::new();
    let read = (&mut stream)
        .take(ANSWER_LIMIT_BYTES)
        .read_to_end(&mut answer)
        .await;
    if answer.is_empty() {
        sent.context("the request was cut off")?;
        read.context("the answer was cut off")?;
    }
    Ok(answer)
}

fn headers(head: &str) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for line in head.lines().skip(1) {
        let (name, value) = line.split_once(':').context("a header without a colon")?;
        let name: HeaderName = name.parse().context("a header's name")?;
        headers.append(
            name,
            HeaderValue::from_str(value.trim()).context("a header's value")?,
        );
    }
    Ok(headers)
}
