//! Does each of the API's bounds hold against clients that test it, and what
//! does that cost in memory? Each test prints a table: what was done, how much
//! memory the API had before, meanwhile and after, and what came of it.

mod crowd;
mod table;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use holdfast_tests::{Node, Program, eventually, raw_http, tokens};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;

use crate::crowd::Crowd;
use crate::table::{Row, print};

const PATIENCE: Duration = Duration::from_secs(60);

/// Clients of each slow kind at once.
const SLOW_CLIENTS: usize = 200;

/// Clients that don't take their answers, of eight megabytes each.
const SLOW_READERS: usize = 20;

/// From one byte of a slow client to its next: well within what any time limit
/// on a single read would be.
const DRIP: Duration = Duration::from_secs(1);

/// What a busy machine may add to a time limit.
const SLACK: Duration = Duration::from_secs(15);

/// Most connections, by default.
const MOST: usize = 10_000;

/// Descriptors this process needs besides those for these connections: other
/// tests run at the same time.
const OWN_FILES: usize = 2_000;

/// Pages a slow reader asks for, more than the kernel takes from the API: one it would keep for whoever doesn't read.
const PAGES: usize = 16;

struct Site {
    api: Program,
    address: String,
    _node: Node,
}

impl Site {
    async fn start() -> Result<Self> {
        let node = Node::new()?;
        let api = node.start_api().await?;
        Ok(Self::of(node, api))
    }

    fn of(node: Node, api: Program) -> Self {
        Site {
            address: node.api_address(),
            api,
            _node: node,
        }
    }

    /// Waits until the API has no more memory than this, or no less than it
    /// had the second before.
    async fn settled_bytes(&self) -> Result<u64> {
        let mut last = self.api.resident_bytes()?;
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let now = self.api.resident_bytes()?;
            if now >= last {
                return Ok(now);
            }
            last = now;
        }
    }
}

fn head(method: &str, path: &str, lines: &str) -> String {
    let token = tokens::valid("somebody");
    format!("{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n{lines}")
}

/// Three kinds of slow clients, each at an API of its own, at the same time.
#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_are_let_go_in_time() -> Result<()> {
    let (headers, bodies, readers) =
        tokio::try_join!(slow_headers(), slow_bodies(), slow_readers())?;
    print(&[headers, bodies, readers]);
    Ok(())
}

/// A header that never ends, a byte a second: the connection is closed.
async fn slow_headers() -> Result<Row> {
    let site = Site::start().await?;
    let mut row = Row::begin(
        &site.api,
        format!("{SLOW_CLIENTS} × headers, a byte a second"),
    )?;
    let begun = Instant::now();
    let start = head("GET", "/api/v1/tasks", "X: ");
    let crowd = Crowd::gather(&site.address, SLOW_CLIENTS, start.as_bytes()).await?;
    row.meanwhile(&site.api)?;
    let answers = crowd.drip(DRIP, PATIENCE).await?;
    let took = begun.elapsed();
    ensure!(
        answers.iter().all(Vec::is_empty),
        "a half request was answered"
    );
    let limit = Duration::from_secs(10);
    ensure!(
        took >= limit && took < limit + SLACK,
        "closed after {took:?}"
    );
    row.end(
        site.settled_bytes().await?,
        format!("closed after {:.1} s", took.as_secs_f64()),
    );
    Ok(row)
}

/// A body that never ends, a byte a second: 408.
async fn slow_bodies() -> Result<Row> {
    let site = Site::start().await?;
    let mut row = Row::begin(&site.api, format!("{SLOW_CLIENTS} × body, a byte a second"))?;
    let begun = Instant::now();
    let start = head(
        "POST",
        "/api/v1/tasks",
        "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{",
    );
    let crowd = Crowd::gather(&site.address, SLOW_CLIENTS, start.as_bytes()).await?;
    row.meanwhile(&site.api)?;
    let answers = crowd.drip(DRIP, PATIENCE).await?;
    let took = begun.elapsed();
    for answer in &answers {
        let text = String::from_utf8_lossy(answer);
        ensure!(text.starts_with("HTTP/1.1 408 "), "answered with {text}");
        ensure!(
            text.contains("/problems/body-timeout"),
            "answered with {text}"
        );
    }
    let limit = Duration::from_secs(30);
    ensure!(
        took >= limit && took < limit + SLACK,
        "answered after {took:?}"
    );
    row.end(
        site.settled_bytes().await?,
        format!("408 after {:.1} s", took.as_secs_f64()),
    );
    Ok(row)
}

/// Answers that nobody reads: the connection is cut.
async fn slow_readers() -> Result<Row> {
    let site = Site::start().await?;
    fill_a_page(&site).await?;
    let what = format!("{SLOW_READERS} × {PAGES} pages of a MiB nobody reads");
    let mut row = Row::begin(&site.api, what)?;
    let begun = Instant::now();
    let request = head("GET", "/api/v1/tasks?limit=200", "\r\n").repeat(PAGES);
    let crowd = Crowd::gather(&site.address, SLOW_READERS, request.as_bytes()).await?;
    // What the API holds for them it holds until it gives up.
    let most = crowd
        .wait_cut(PATIENCE, || site.api.resident_bytes())
        .await?;
    row.meanwhile_bytes(most);
    let took = begun.elapsed();
    let limit = Duration::from_secs(30);
    ensure!(took >= limit && took < limit + SLACK, "cut after {took:?}");
    row.end(
        site.settled_bytes().await?,
        format!("cut after {:.1} s", took.as_secs_f64()),
    );
    Ok(row)
}

/// As many of the largest tasks there can be as a page takes, and some more.
async fn fill_a_page(site: &Site) -> Result<()> {
    let client = site.api.client(&tokens::valid("somebody"));
    let task = json!({"title": "large", "description": "😀".repeat(10_000)});
    for _ in 0..40 {
        client.create_task(&task).await?.expect(201);
    }
    Ok(())
}

/// The process may open few files at first, and asks for more by itself.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_connections_are_held_and_probes_answered_beyond_them() -> Result<()> {
    let most = room_for_connections()?.min(MOST);
    let node = Node::new()?.with("MAX_CONNECTIONS", &most.to_string());
    let few_files = ["sh", "-c", "ulimit -Sn 1024; exec \"$0\""];
    let api = node.start_api_under(&few_files).await?;
    let site = Site::of(node, api);
    let client = site.api.client(&tokens::valid("somebody"));
    client
        .create_task(&json!({"title": "held"}))
        .await?
        .expect(201);

    let mut row = Row::begin(&site.api, format!("{most} idle connections"))?;
    // One of them is the client's, which keeps it.
    let crowd = Crowd::keep_alive(&site.address, most - 1, PATIENCE).await?;
    row.meanwhile(&site.api)?;
    let listed = client.get("/tasks").await?;
    listed.expect(200);

    let mut beyond = Vec::new();
    for path in ["/livez", "/readyz", "/metrics"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        let answer = raw_http::exchange(&site.address, request.as_bytes(), PATIENCE).await?;
        answer.expect(200);
        beyond.push(answer.elapsed());
    }
    let request = head("GET", "/api/v1/tasks", "Connection: close\r\n\r\n");
    let refused = raw_http::exchange(&site.address, request.as_bytes(), PATIENCE).await?;
    assert_eq!(
        refused.expect_problem(503).json()["type"],
        "/problems/too-many-connections"
    );
    refused.expect_header("retry-after");
    let slowest = beyond.iter().max().context("probes")?.as_millis();
    crowd.leave().await?;
    eventually(PATIENCE, "room again", async || {
        let answer = raw_http::exchange(&site.address, request.as_bytes(), PATIENCE).await;
        match answer {
            Ok(answer) if answer.status() == 200 => Ok(()),
            Ok(answer) => Err(answer.status().to_string()),
            Err(error) => Err(format!("{error:#}")),
        }
    })
    .await?;
    let outcome = format!("held; a probe beyond them took {slowest} ms, a request got 503");
    row.end(site.settled_bytes().await?, outcome);
    print(&[row]);
    Ok(())
}

/// Raises this process' limit of open files, and so its children's, as far as
/// it goes; gives how many connections fit.
fn room_for_connections() -> Result<usize> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = (MOST + OWN_FILES) as u64;
    // Root may have more than it was given.
    if hard < wanted && setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted).is_ok() {
        return Ok(MOST);
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(wanted), hard)?;
    let room = usize::try_from(hard)?.saturating_sub(OWN_FILES);
    ensure!(
        room >= 1_000,
        "the hard limit of open files is {hard}: raise it (ulimit -Hn)"
    );
    Ok(room)
}

#[tokio::test(flavor = "multi_thread")]
async fn where_too_few_files_may_be_opened_fewer_connections_are_taken_and_that_is_said()
-> Result<()> {
    let node = Node::new()?;
    let few_files = ["sh", "-c", "ulimit -n 500; exec \"$0\""];
    let api = node.start_api_under(&few_files).await?;
    let site = Site::of(node, api);
    let log = site.api.log();
    assert!(log.contains("MAX_CONNECTIONS is more than"), "{log}");
    // 500 files, less 128 for others, less 256 spare connections.
    assert!(log.contains("connections=116"), "{log}");
    let request = head("GET", "/api/v1/tasks", "Connection: close\r\n\r\n");
    let mut crowd = Crowd::connect(&site.address, 100).await?;
    loop {
        let answer = raw_http::exchange(&site.address, request.as_bytes(), PATIENCE).await?;
        if answer.status() == 503 {
            break;
        }
        crowd.add(Crowd::connect(&site.address, 1).await?);
        ensure!(crowd.len() < 500, "{} connections are taken", crowd.len());
    }
    // Those that hadn't quite ended when the last ones came are not counted here.
    ensure!(
        (110..=116).contains(&crowd.len()),
        "{} were taken",
        crowd.len()
    );
    Ok(())
}

/// Whoever is beyond the bound and says nothing makes room in a second.
#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_beyond_the_bound_do_not_keep_probes_out() -> Result<()> {
    let node = Node::new()?.with("MAX_CONNECTIONS", "8");
    let api = node.start_api().await?;
    let site = Site::of(node, api);
    let what = "608 silent connections, at most 8";
    let mut row = Row::begin(&site.api, what.to_owned())?;
    let silent = Crowd::connect(&site.address, 608).await?;
    row.meanwhile(&site.api)?;
    let request = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n";
    let probe = raw_http::exchange(&site.address, request, PATIENCE).await?;
    probe.expect(200);
    let took = probe.elapsed();
    // 600 are more than twice as many as there is room for at once.
    ensure!(
        took < Duration::from_secs(5) + SLACK,
        "a probe took {took:?}"
    );
    let answers = silent.drip(PATIENCE, PATIENCE).await?;
    ensure!(answers.iter().all(Vec::is_empty), "silence was answered");
    row.end(
        site.settled_bytes().await?,
        format!("a probe took {:.1} s", took.as_secs_f64()),
    );
    print(&[row]);
    Ok(())
}

/// What is sent, and which statuses it may get.
struct Oversized {
    what: &'static str,
    bytes: Vec<u8>,
    status: &'static str,
}

fn oversized() -> Vec<Oversized> {
    let megabyte = "x".repeat(1024 * 1024);
    let json = "Content-Type: application/json\r\n";
    let post = |lines: &str| head("POST", "/api/v1/tasks", &format!("{json}{lines}\r\n"));
    let body = |text: &str| {
        format!(
            "{}{text}",
            post(&format!("Content-Length: {}\r\n", text.len()))
        )
    };
    let chunked =
        post("Transfer-Encoding: chunked\r\n") + &format!("100000\r\n{megabyte}\r\n").repeat(4);
    let deep = format!("{{\"title\":{}", "[".repeat(60 * 1024));
    let fields: String = (0..5_000)
        .map(|number| format!("\"f{number}\":1,"))
        .collect();
    let one = |what, bytes: String, status| Oversized {
        what,
        bytes: bytes.into_bytes(),
        status,
    };
    vec![
        one(
            "a body of 4 GiB, announced",
            post("Content-Length: 4294967296\r\n"),
            "413",
        ),
        one("a body of 1 MiB, sent", body(&megabyte), "413"),
        one("chunks of 4 MiB", chunked, "413"),
        one(
            "a header of 1 MiB",
            head("GET", "/api/v1/tasks", &format!("X: {megabyte}\r\n\r\n")),
            "431",
        ),
        one(
            "a path of 1 MiB",
            head("GET", &format!("/{megabyte}"), "\r\n"),
            "431",
        ),
        one(
            "5000 headers",
            head("GET", "/livez", &("A: b\r\n".repeat(5_000) + "\r\n")),
            "431",
        ),
        one(
            "a query of 30 KiB",
            head(
                "GET",
                &format!("/api/v1/tasks?q={}", "x".repeat(30 * 1024)),
                "Connection: close\r\n\r\n",
            ),
            "400",
        ),
        one(
            "JSON 60 Ki levels deep",
            body(&deep).replacen("\r\n", "\r\nConnection: close\r\n", 1),
            "400",
        ),
        one(
            "5000 unknown fields",
            body(&format!("{{{fields}\"title\":\"x\"}}")).replacen(
                "\r\n",
                "\r\nConnection: close\r\n",
                1,
            ),
            "422",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_too_large_is_refused_and_not_kept() -> Result<()> {
    const AT_ONCE: usize = 50;
    let site = Site::start().await?;
    let mut rows = Vec::new();
    for Oversized {
        what,
        bytes,
        status,
    } in oversized()
    {
        let mut row = Row::begin(&site.api, format!("{AT_ONCE} × {what}"))?;
        let crowd = Crowd::connect(&site.address, AT_ONCE).await?;
        let answers = crowd.exchange(&bytes, PATIENCE).await?;
        row.meanwhile(&site.api)?;
        for answer in &answers {
            let text = String::from_utf8_lossy(answer);
            ensure!(
                text.starts_with(&format!("HTTP/1.1 {status} ")),
                "{what}: {text}"
            );
            ensure!(text.contains("application/problem+json"), "{what}: {text}");
        }
        row.end(site.settled_bytes().await?, status.to_owned());
        rows.push(row);
    }
    print(&rows);
    let list = site
        .api
        .client(&tokens::valid("somebody"))
        .get("/tasks")
        .await?;
    assert_eq!(list.expect(200).json()["items"], json!([]));
    let (first, last) = (rows[0].before_bytes(), site.api.resident_bytes()?);
    ensure!(
        last < first + 64 * 1024 * 1024,
        "memory grew from {first} to {last} bytes"
    );
    Ok(())
}
