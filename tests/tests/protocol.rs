//! Is what HTTP/1.1 leaves open, or a client gets wrong, answered safely and in
//! the contract's form? Every shape is written by hand, byte for byte.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use holdfast_tests::{Answer, Node, Program, raw_http, tokens};

/// Longer than anything here takes, lingering included.
const PATIENCE: Duration = Duration::from_secs(20);

struct Site {
    address: String,
    authorization: String,
    _api: Program,
    _node: Node,
}

/// An API in embedded mode, which speaks HTTP as any other.
async fn start() -> Result<Site> {
    let node = Node::new()?;
    let api = node.start_api().await?;
    Ok(Site {
        address: node.api_address(),
        authorization: format!("Authorization: Bearer {}\r\n", tokens::valid("somebody")),
        _api: api,
        _node: node,
    })
}

impl Site {
    /// All that is answered until the server closes the connection. `@AUTH`
    /// stands for a header with a token.
    async fn say(&self, request: &str) -> Result<Vec<Answer>> {
        self.say_bytes(request.replace("@AUTH", &self.authorization).as_bytes())
            .await
    }

    async fn say_bytes(&self, request: &[u8]) -> Result<Vec<Answer>> {
        raw_http::exchange_all(&self.address, request, PATIENCE).await
    }

    /// How many tasks there are.
    async fn count_tasks(&self) -> Result<usize> {
        let list = self
            .say("GET /api/v1/tasks HTTP/1.1\r\nHost: x\r\nConnection: close\r\n@AUTH\r\n")
            .await?;
        let items = list.first().context("an answer")?.json()["items"]
            .as_array()
            .map(Vec::len);
        items.context("no list of tasks")
    }
}

/// The head of a request that creates a task, with these further lines.
fn post(lines: &str) -> String {
    format!(
        "POST /api/v1/tasks HTTP/1.1\r\nHost: x\r\n@AUTHContent-Type: application/json\r\n{lines}\r\n"
    )
}

/// A request that must not be answered when it hides behind another one.
const SMUGGLED: &str = "GET /livez HTTP/1.1\r\nHost: x\r\nX-Request-Id: smuggled\r\n\r\n";

#[tokio::test]
async fn what_cannot_be_parsed_is_refused_with_a_problem_and_the_connection_ends() -> Result<()> {
    let site = start().await?;
    let many = (0..101).fold(String::new(), |all, number| {
        all + &format!("A{number}: b\r\n")
    });
    let long = format!("X: {}\r\n", "x".repeat(40 * 1024));
    let host = "Host: x\r\n";
    let heads = [
        ("no request line", 400, "NONSENSE\r\n\r\n".to_owned()),
        (
            "an unknown version",
            400,
            format!("GET /livez HTTP/9.9\r\n{host}\r\n"),
        ),
        ("no version", 400, format!("GET /livez\r\n{host}\r\n")),
        (
            "two spaces",
            400,
            format!("GET  /livez HTTP/1.1\r\n{host}\r\n"),
        ),
        (
            "a control character in the path",
            400,
            format!("GET /li\u{1}vez HTTP/1.1\r\n{host}\r\n"),
        ),
        (
            "a method that is no token",
            400,
            format!("G@T /livez HTTP/1.1\r\n{host}\r\n"),
        ),
        (
            "a header without a colon",
            400,
            format!("GET /livez HTTP/1.1\r\n{host}nonsense\r\n\r\n"),
        ),
        (
            "a space in a header's name",
            400,
            format!("GET /livez HTTP/1.1\r\n{host}a b: c\r\n\r\n"),
        ),
        (
            "a space before the colon",
            400,
            format!("GET /livez HTTP/1.1\r\n{host}a : c\r\n\r\n"),
        ),
        (
            "a folded header",
            400,
            format!("GET /livez HTTP/1.1\r\n{host}a: b\r\n c\r\n\r\n"),
        ),
        (
            "a null in a header",
            400,
            format!("GET /livez HTTP/1.1\r\n{host}a: \0\r\n\r\n"),
        ),
        ("no host", 400, "GET /livez HTTP/1.1\r\n\r\n".to_owned()),
        (
            "two hosts",
            400,
            format!("GET /livez HTTP/1.1\r\n{host}Host: y\r\n\r\n"),
        ),
        (
            "a host that is none",
            400,
            "GET /livez HTTP/1.1\r\nHost: a b\r\n\r\n".to_owned(),
        ),
        (
            "a length that is no number",
            400,
            post("Content-Length: abc\r\n"),
        ),
        (
            "a coding below the chunks",
            400,
            post("Transfer-Encoding: gzip, chunked\r\n"),
        ),
        ("a negative length", 400, post("Content-Length: -1\r\n")),
        ("a length with a sign", 400, post("Content-Length: +5\r\n")),
        ("a list of lengths", 400, post("Content-Length: 5, 5\r\n")),
        (
            "a length beyond all bounds",
            400,
            post("Content-Length: 99999999999999999999\r\n"),
        ),
        (
            "two lengths",
            400,
            post("Content-Length: 5\r\nContent-Length: 6\r\n"),
        ),
        (
            "another coding than chunked",
            400,
            post("Transfer-Encoding: gzip\r\n"),
        ),
        (
            "chunked, but not last",
            400,
            post("Transfer-Encoding: chunked, gzip\r\n"),
        ),
        (
            "a coding that only looks like chunked",
            400,
            post("Transfer-Encoding: xchunked\r\n"),
        ),
        (
            "chunked in HTTP/1.0",
            400,
            "POST /api/v1/tasks HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
        ),
        (
            "101 headers",
            431,
            format!("GET /livez HTTP/1.1\r\n{many}\r\n"),
        ),
        (
            "40 KiB of headers",
            431,
            format!("GET /livez HTTP/1.1\r\n{host}{long}\r\n"),
        ),
        (
            "a path of 40 KiB",
            431,
            format!("GET /{} HTTP/1.1\r\n{host}\r\n", "x".repeat(40 * 1024)),
        ),
        (
            "a TLS greeting",
            400,
            "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\r\n\r\n".to_owned(),
        ),
    ];
    for (what, status, head) in heads {
        let answers = site.say(&format!("{head}{SMUGGLED}")).await?;
        ensure!(answers.len() == 1, "{what}: {} answers", answers.len());
        println!("{what:<40} {}", answers[0].status());
        ensure!(
            answers[0].status() == status,
            "{what}: {}",
            answers[0].text()
        );
        answers[0].expect_problem(status);
    }
    assert_eq!(site.count_tasks().await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_body_that_breaks_its_own_framing_is_400_and_writes_nothing() -> Result<()> {
    let site = start().await?;
    let chunked = post("Transfer-Encoding: chunked\r\n");
    let bodies = [
        ("a size that is no number", "zz\r\n{}\r\n0\r\n\r\n"),
        (
            "a size beyond all bounds",
            "fffffffffffffffff\r\n{}\r\n0\r\n\r\n",
        ),
        ("a negative size", "-1\r\n{}\r\n0\r\n\r\n"),
        (
            "a chunk that is longer than its size",
            "d\r\n{\"title\":\"x\"}more\r\n0\r\n\r\n",
        ),
        (
            "a size without an end of line",
            "d{\"title\":\"x\"}\r\n0\r\n\r\n",
        ),
    ];
    for (what, body) in bodies {
        let answers = site.say(&format!("{chunked}{body}{SMUGGLED}")).await?;
        ensure!(answers.len() == 1, "{what}: {} answers", answers.len());
        answers[0].expect_problem(400);
        println!("{what:<40} {}", answers[0].json()["type"]);
    }
    assert_eq!(site.count_tasks().await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_request_cannot_hide_in_another_ones_body() -> Result<()> {
    let site = start().await?;
    let task = "{\"title\":\"x\"}";
    let as_chunks = format!("{:x}\r\n{task}\r\n0\r\n\r\n", task.len());
    // A server in front that goes by the length takes what follows the last
    // chunk for part of the body. Whoever goes by the chunks must not go on.
    for lines in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
    ] {
        let answers = site
            .say(&format!("{}{as_chunks}{SMUGGLED}", post(lines)))
            .await?;
        ensure!(answers.len() == 1, "{lines}: {} answers", answers.len());
        answers[0].expect(201);
    }
    // The same length twice is one length, and the next request is the next.
    let twice = format!("Content-Length: {0}\r\nContent-Length: {0}\r\n", task.len());
    let last = SMUGGLED.replace("Host: x\r\n", "Host: x\r\nConnection: close\r\n");
    let answers = site.say(&format!("{}{task}{last}", post(&twice))).await?;
    let statuses: Vec<u16> = answers.iter().map(Answer::status).collect();
    assert_eq!(statuses, [201, 200]);
    Ok(())
}

#[tokio::test]
async fn requests_sent_together_are_answered_in_turn() -> Result<()> {
    let site = start().await?;
    let one = |path: &str, id: &str, lines: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: x\r\nX-Request-Id: {id}\r\n{lines}\r\n")
    };
    let all = [
        one("/livez", "1", ""),
        one("/nothing", "2", ""),
        one("/api/v1/tasks", "3", ""),
        one("/health", "4", "Connection: close\r\n"),
        one("/livez", "5", ""),
    ];
    let answers = site.say(&all.concat()).await?;
    let seen: Vec<(u16, &str)> = answers
        .iter()
        .map(|answer| (answer.status(), answer.expect_header("x-request-id")))
        .collect();
    assert_eq!(seen, [(200, "1"), (404, "2"), (401, "3"), (200, "4")]);
    // What can't be parsed ends the row, after those before it were answered.
    let answers = site.say(&format!("{}NONSENSE\r\n\r\n", all[0])).await?;
    let statuses: Vec<u16> = answers.iter().map(Answer::status).collect();
    assert_eq!(statuses, [200, 400]);
    answers[1].expect_problem(400);
    Ok(())
}

#[tokio::test]
async fn older_and_rarer_forms_of_http_work() -> Result<()> {
    let site = start().await?;
    let old = site.say("GET /livez HTTP/1.0\r\n\r\n").await?;
    assert_eq!(old.iter().map(Answer::status).collect::<Vec<_>>(), [200]);
    let absolute =
        "GET http://example.org/livez?a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert_eq!(site.say(absolute).await?[0].status(), 200);
    let bare = "GET http://example.org HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    site.say(bare).await?[0].expect_problem(404);
    let server = "OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert_eq!(site.say(server).await?[0].status(), 204);
    let tunnel = "CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    site.say(tunnel).await?[0].expect_problem(404);
    let lower = "get /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    site.say(lower).await?[0].expect_problem(405);
    let with_body =
        "GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
    assert_eq!(site.say(with_body).await?[0].status(), 200);
    // No HTTP/2, and no half of it either.
    let preface = site.say("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
    assert!(preface.iter().all(|answer| answer.status() == 400));
    Ok(())
}

#[tokio::test]
async fn a_body_is_asked_for_only_of_whoever_may_send_it() -> Result<()> {
    let site = start().await?;
    let task = "{\"title\":\"x\"}";
    let expecting = format!(
        "Expect: 100-continue\r\nConnection: close\r\nContent-Length: {}\r\n",
        task.len()
    );
    let answers = site.say(&format!("{}{task}", post(&expecting))).await?;
    let statuses: Vec<u16> = answers.iter().map(Answer::status).collect();
    assert_eq!(statuses, [100, 201]);
    let without_token = post(&expecting).replace("@AUTH", "");
    let answers = site.say(&without_token).await?;
    let statuses: Vec<u16> = answers.iter().map(Answer::status).collect();
    assert_eq!(statuses, [401]);
    let too_large = post("Expect: 100-continue\r\nConnection: close\r\nContent-Length: 65537\r\n");
    let answers = site.say(&too_large).await?;
    let statuses: Vec<u16> = answers.iter().map(Answer::status).collect();
    assert_eq!(statuses, [413]);
    Ok(())
}
