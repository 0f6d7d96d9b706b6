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
    let answers = exchange_all(address, request, deadline).await?;
    answers.into_iter().next().context("no whole answer")
}

/// The same, giving every answer that comes until the server closes the
/// connection: of none, an empty list. Each has a length, or is the last.
///
/// # Errors
/// As [`exchange`], and when what comes is no answer.
pub async fn exchange_all(
    address: &str,
    request: &[u8],
    deadline: Duration,
) -> Result<Vec<Answer>> {
    let started = std::time::Instant::now();
    let bytes = tokio::time::timeout(deadline, talk(address, request))
        .await
        .with_context(|| format!("the connection was not closed within {deadline:?}"))??;
    let mut rest = bytes.as_slice();
    let mut answers = Vec::new();
    while !rest.is_empty() {
        let (answer, behind) = take_answer(rest, started.elapsed())?;
        answers.push(answer);
        rest = behind;
    }
    Ok(answers)
}

/// The head of the only answer that comes until the server closes the
/// connection, and all that comes after it, whatever the head says of that.
///
/// # Errors
/// As [`exchange`].
pub async fn head_and_rest(
    address: &str,
    request: &[u8],
    deadline: Duration,
) -> Result<(Answer, Vec<u8>)> {
    let bytes = tokio::time::timeout(deadline, talk(address, request))
        .await
        .with_context(|| format!("the connection was not closed within {deadline:?}"))??;
    let head = take_head(&bytes)?;
    let rest = bytes[head.bytes..].to_vec();
    let answer = Answer::new(head.status, head.headers, String::new(), Duration::ZERO);
    Ok((answer, rest))
}

struct Head {
    status: u16,
    headers: HeaderMap,
    bytes: usize,
}

fn take_head(bytes: &[u8]) -> Result<Head> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
    let end = end.context("no whole answer")? + 4;
    let head = std::str::from_utf8(&bytes[..end]).context("a head that is no text")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.with_context(|| format!("no status line: {head}"))?;
    Ok(Head {
        status,
        headers: headers(head.trim_end())?,
        bytes: end,
    })
}

/// The first answer, and what is behind it.
fn take_answer(bytes: &[u8], elapsed: Duration) -> Result<(Answer, &[u8])> {
    let Head {
        status,
        headers,
        bytes: end,
    } = take_head(bytes)?;
    let behind = &bytes[end..];
    let length = match headers.get("content-length") {
        Some(length) => length.to_str()?.parse().context("a length that is none")?,
        None if status < 200 || status == 204 || status == 304 => 0,
        None => behind.len(),
    };
    let body = behind.get(..length).context("the answer was cut off")?;
    let text = String::from_utf8_lossy(body).into_owned();
    let answer = Answer::new(status, headers, text, elapsed);
    Ok((answer, &behind[length..]))
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
