//! One HTTP/1.1 connection that is kept alive, with requests made beforehand as bytes.
//!
//! A client library would cost about as much as the server it measures, and the load shares the cores with it.

use std::io::ErrorKind;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The largest answer that is taken: a task of the longest description is far below it.
const ANSWER_LIMIT_BYTES: usize = 1024 * 1024;

/// Read at once; an ordinary answer fits.
const CHUNK_BYTES: usize = 4096;

/// An open connection to a server.
#[derive(Debug)]
pub struct KeepAlive {
    stream: TcpStream,
    received: Vec<u8>,
    body_at: usize,
}

/// Where the head of an answer ends and what it says.
struct Head {
    status: u16,
    body_at: usize,
    body_bytes: usize,
}

impl KeepAlive {
    /// Connects to `address`, such as `127.0.0.1:8080`.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn open(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address)
            .await
            .with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true).context("cannot set TCP_NODELAY")?;
        Ok(Self {
            stream,
            received: Vec::with_capacity(CHUNK_BYTES),
            body_at: 0,
        })
    }

    /// Sends a request and reads the whole answer; gives its status.
    ///
    /// # Errors
    /// When the connection ends before, or the answer has no length.
    pub async fn exchange(&mut self, request: &[u8]) -> Result<u16> {
        self.stream
            .write_all(request)
            .await
            .context("cannot send a request")?;
        self.received.clear();
        let head = loop {
            self.receive().await?;
            if let Some(head) = read_head(&self.received)? {
                break head;
            }
        };
        let whole = head.body_at + head.body_bytes;
        while self.received.len() < whole {
            self.receive().await?;
        }
        self.body_at = head.body_at;
        Ok(head.status)
    }

    /// The body of the last answer.
    pub fn body(&self) -> &[u8] {
        &self.received[self.body_at..]
    }

    async fn receive(&mut self) -> Result<()> {
        if self.received.len() > ANSWER_LIMIT_BYTES {
            bail!("an answer of more than {ANSWER_LIMIT_BYTES} bytes");
        }
        self.received.reserve(CHUNK_BYTES);
        match self.stream.read_buf(&mut self.received).await {
            Ok(0) => bail!("the server closed the connection instead of answering"),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error).context("cannot read an answer"),
        }
    }
}

/// The request's bytes. `token` is sent as bearer; a body has the type JSON.
pub fn request(method: &str, path: &str, token: &str, body: &str) -> Vec<u8> {
    let content = match method {
        "GET" => String::new(),
        "PATCH" => content_headers("application/merge-patch+json", body),
        _ => content_headers("application/json", body),
    };
    format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n{content}\r\n{body}")
        .into_bytes()
}

fn content_headers(content_type: &str, body: &str) -> String {
    format!(
        "content-type: {content_type}\r\ncontent-length: {}\r\n",
        body.len()
    )
}

/// `None` while the head hasn't been received in whole.
fn read_head(received: &[u8]) -> Result<Option<Head>> {
    let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = std::str::from_utf8(&received[..end]).context("the answer's head is no text")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.with_context(|| format!("no status line: {head}"))?;
    let body_bytes = match content_length(head) {
        Some(length) => length,
        None if status == 204 || status == 304 => 0,
        None => bail!("an answer without a length: {head}"),
    };
    Ok(Some(Head {
        status,
        body_at: end + 4,
        body_bytes,
    }))
}

fn content_length(head: &str) -> Option<usize> {
    let mut headers = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    let (_, value) = headers.find(|(name, _)| name.eq_ignore_ascii_case("content-length"))?;
    value.trim().parse().ok()
}
