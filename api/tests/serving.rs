//! The process' own bounds and its end, through [`holdfast_api::run`], which is what `main` calls. The buffer is the
//! store here, so that nothing else has to run.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use holdfast_shared::config::Config;
use jsonwebtoken::{EncodingKey, Header, encode};
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const SECRET: &str = "a-secret-for-serving-tests-of-more-than-32-bytes";

/// Longer than anything here takes; what isn't there by then never comes.
const PATIENCE: Duration = Duration::from_secs(10);

/// A process under test, in this one.
struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<Result<()>>,
    _directory: TempDir,
}

impl Server {
    async fn start(settings: &[(&str, &str)]) -> Result<Self> {
        let directory = tempfile::tempdir().context("a temporary directory")?;
        let buffer = directory.path().join("buffer.redb").display().to_string();
        let own = [
            ("BUFFER_PATH", buffer.as_str()),
            ("JWT_SECRET", SECRET),
            ("APP_ENV", "testing"),
        ];
        let pairs = own
            .iter()
            .chain(settings)
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let config = Config::from_pairs(pairs)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let metrics = PrometheusBuilder::new().build_recorder().handle();
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async {
            let _asked_or_dropped = stopped.await;
        };
        let running = tokio::spawn(holdfast_api::run(listener, config, metrics, stopped));
        Ok(Server {
            address,
            stop: Some(stop),
            running,
            _directory: directory,
        })
    }

    async fn connect(&self) -> Result<Connection> {
        Ok(Connection(TcpStream::connect(self.address).await?))
    }

    fn ask_to_stop(&mut self) -> Result<()> {
        let stop = self.stop.take().context("asked once")?;
        stop.send(()).ok().context("it still runs")
    }

    /// Waits for its end; gives how long that took.
    async fn ended(self) -> Result<Duration> {
        let started = Instant::now();
        tokio::time::timeout(PATIENCE, self.running)
            .await
            .context("it never ended")???;
        Ok(started.elapsed())
    }
}

/// A client that says exactly what it is told to.
struct Connection(TcpStream);

impl Connection {
    async fn send(&mut self, text: &str) -> Result<()> {
        self.0
            .write_all(text.as_bytes())
            .await
            .context("can't send")
    }

    /// Reads one answer with a length: its status, its headers in lower case, its body.
    async fn answer(&mut self) -> Result<(u16, String, String)> {
        tokio::time::timeout(PATIENCE, self.read_answer())
            .await
            .context("no answer")?
    }

    async fn read_answer(&mut self) -> Result<(u16, String, String)> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.0.read_u8().await.context("it was closed")?);
        }
        let head = String::from_utf8(head)?.to_ascii_lowercase();
        let status = head.split(' ').nth(1).context("a status")?.parse()?;
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.unwrap_or("0").parse()?];
        self.0.read_exact(&mut body).await?;
        Ok((status, head, String::from_utf8(body)?))
    }

    /// Whether the other side ends the connection without saying any more.
    async fn is_closed(&mut self) -> bool {
        let read = tokio::time::timeout(PATIENCE, self.0.read_u8()).await;
        matches!(read, Ok(Err(_)))
    }
}

fn token(user: &str) -> String {
    let claims = json!({"sub": user, "exp": 4_102_444_800_u64, "jti": user});
    encode(
        &Header::default(),
        &claims,
        &EncodingKey::from_secret(SECRET.as_bytes()),
    )
    .expect("signed")
}

fn get(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\r\n",
        token("ann")
    )
}

fn post_task(title: &str) -> String {
    let body = json!({"title": title}).to_string();
    format!(
        "POST /api/v1/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        token("ann"),
        body.len()
    )
}

/// Sends the headers of a write, and waits until the server asks for the body, which it then doesn't get: the body is
/// given back.
async fn begin_write(client: &mut Connection, title: &str) -> Result<String> {
    let request = post_task(title).replacen("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n", 1);
    let (head, body) = request
        .rsplit_once("\r\n\r\n")
        .context("a head and a body")?;
    client.send(&format!("{head}\r\n\r\n")).await?;
    ensure!(
        client.answer().await?.0 == 100,
        "the body was not asked for"
    );
    Ok(body.to_owned())
}

#[tokio::test]
async fn beyond_the_cap_probes_are_answered_and_others_are_told_to_come_back() -> Result<()> {
    let server = Server::start(&[("MAX_CONNECTIONS", "1")]).await?;
    let mut first = server.connect().await?;
    first.send(&get("/api/v1/tasks")).await?;
    assert_eq!(first.answer().await?.0, 200);

    for path in ["/livez", "/readyz", "/health", "/metrics"] {
        let mut probe = server.connect().await?;
        probe.send(&get(path)).await?;
        let (status, head, _) = probe.answer().await?;
        assert_eq!(status, 200, "{path}");
        assert!(head.contains("connection: close"), "{head}");
        assert!(probe.is_closed().await, "{path}");
    }
    let mut refused = server.connect().await?;
    refused.send(&get("/api/v1/tasks")).await?;
    let (status, head, body) = refused.answer().await?;
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("/problems/too-many-connections"), "{body}");
    assert!(head.contains("connection: close"), "{head}");
    assert!(head.contains("retry-after: "), "{head}");
    assert!(refused.is_closed().await);
    let mut silent = server.connect().await?;
    assert!(silent.is_closed().await, "it has a second");

    drop(first);
    let started = Instant::now();
    loop {
        let mut next = server.connect().await?;
        next.send(&get("/api/v1/tasks")).await?;
        if next.answer().await?.0 == 200 {
            return Ok(());
        }
        ensure!(started.elapsed() < PATIENCE, "the place stays taken");
    }
}

#[tokio::test]
async fn what_is_under_way_is_finished_and_nothing_new_is_taken() -> Result<()> {
    let mut server = Server::start(&[]).await?;
    let mut idle = server.connect().await?;
    idle.send(&get("/livez")).await?;
    assert_eq!(idle.answer().await?.0, 200);
    let mut writing = server.connect().await?;
    let body = begin_write(&mut writing, "to the end").await?;

    server.ask_to_stop()?;
    assert!(
        idle.is_closed().await,
        "an idle connection is closed at once"
    );
    assert!(
        server.connect().await.is_err(),
        "no new connection is taken"
    );
    writing.send(&body).await?;
    let (status, head, _) = writing.answer().await?;
    assert_eq!(status, 201);
    assert!(head.contains("connection: close"), "{head}");
    server.ended().await?;
    Ok(())
}

#[tokio::test]
async fn what_is_not_done_at_the_deadline_is_closed() -> Result<()> {
    let mut server = Server::start(&[("SHUTDOWN_TIMEOUT_SECONDS", "1")]).await?;
    let mut stuck = server.connect().await?;
    begin_write(&mut stuck, "never finished").await?;
    server.ask_to_stop()?;
    assert!(stuck.is_closed().await);
    let took = server.ended().await?;
    ensure!(took < Duration::from_secs(3), "the end took {took:?}");
    Ok(())
}

#[tokio::test]
async fn a_write_is_finished_though_its_client_has_gone() -> Result<()> {
    let server = Server::start(&[]).await?;
    let mut leaving = server.connect().await?;
    leaving.send(&post_task("left alone")).await?;
    drop(leaving);
    let mut reader = server.connect().await?;
    let started = Instant::now();
    loop {
        reader.send(&get("/api/v1/tasks")).await?;
        let (status, _, body) = reader.answer().await?;
        assert_eq!(status, 200, "{body}");
        if body.contains("left alone") {
            return Ok(());
        }
        ensure!(started.elapsed() < PATIENCE, "the write was never finished");
    }
}

#[tokio::test]
async fn an_answer_to_head_has_the_headers_and_no_body() -> Result<()> {
    let server = Server::start(&[]).await?;
    let mut client = server.connect().await?;
    client
        .send("HEAD /health HTTP/1.1\r\nHost: x\r\n\r\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        .await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.0.read_u8().await?);
    }
    assert!(String::from_utf8(head)?.contains("content-length: "));
    let (status, _, body) = client.answer().await?;
    assert_eq!((status, body.as_str()), (200, r#"{"status":"alive"}"#));
    Ok(())
}

#[tokio::test]
async fn an_answer_names_its_request_and_is_not_kept() -> Result<()> {
    let server = Server::start(&[]).await?;
    let mut client = server.connect().await?;
    client
        .send("PUT /livez HTTP/1.1\r\nHost: x\r\nX-Request-Id: mine-1\r\nContent-Length: 0\r\n\r\n")
        .await?;
    let (status, head, body) = client.answer().await?;
    assert_eq!(status, 405);
    for header in [
        "x-request-id: mine-1",
        "allow: get, head, options",
        "cache-control: no-store",
        "x-content-type-options: nosniff",
    ] {
        assert!(
            head.contains(&format!("{header}\r\n")),
            "{header} in {head}"
        );
    }
    assert!(body.contains("\"request_id\":\"mine-1\""), "{body}");
    Ok(())
}

#[tokio::test]
async fn a_user_beyond_the_rate_is_429_and_others_are_not() -> Result<()> {
    let server = Server::start(&[("RATE_LIMIT_PER_MINUTE", "2")]).await?;
    let mut client = server.connect().await?;
    for (expected, left) in [(200, 1), (200, 0), (429, 0)] {
        client.send(&get("/api/v1/tasks")).await?;
        let (status, head, body) = client.answer().await?;
        assert_eq!(status, expected, "{body}");
        assert!(
            head.contains("ratelimit-policy: \"user\";q=2;w=60\r\n"),
            "{head}"
        );
        assert!(
            head.contains(&format!("ratelimit: \"user\";r={left};t=")),
            "{head}"
        );
        let is_told_when = head.contains("retry-after: ");
        assert_eq!(is_told_when, expected == 429, "{head}");
    }
    client
        .send(&get("/api/v1/tasks").replace(&token("ann"), &token("bob")))
        .await?;
    assert_eq!(client.answer().await?.0, 200);
    client.send(&get("/livez")).await?;
    let (status, head, _) = client.answer().await?;
    assert_eq!(status, 200);
    assert!(!head.contains("ratelimit"), "nobody's request: {head}");
    Ok(())
}

#[tokio::test]
async fn headers_beyond_their_bound_are_431() -> Result<()> {
    let server = Server::start(&[]).await?;
    let mut client = server.connect().await?;
    let filler = "x".repeat(40 * 1024);
    client
        .send(&format!(
            "GET /livez HTTP/1.1\r\nHost: x\r\nX-Filler: {filler}\r\n\r\n"
        ))
        .await?;
    let (status, _, body) = client.answer().await?;
    assert_eq!(status, 431);
    assert!(body.contains("/problems/headers-too-large"), "{body}");
    Ok(())
}
