//! Do answers keep their meaning however they are asked for: compressed, by
//! `HEAD`, counted against a limit, in a trace?

use std::collections::BTreeMap;
use std::io::Read;

use anyhow::{Context, Result, bail};
use holdfast_tests::{Answer, Client, Node, Program, raw_http, tokens};
use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

struct Site {
    api: Program,
    client: Client,
    node: Node,
}

/// An API in embedded mode, whose answers are made as any other's.
async fn start(settings: &[(&str, &str)]) -> Result<Site> {
    let mut node = Node::new()?;
    for (name, value) in settings {
        node.set(name, value);
    }
    let api = node.start_api().await?;
    let client = api.client(&tokens::valid("somebody"));
    Ok(Site { api, client, node })
}

/// A task of some kilobytes; its path.
async fn large_task(client: &Client) -> Result<String> {
    let description = "All work and no play makes Jack a dull boy. ".repeat(100);
    let task = json!({"title": "large", "description": description});
    let created = client.create_task(&task).await?;
    Ok(format!("/tasks/{}", created.expect(201).id()))
}

/// The headers, and the body as the encoding it names says.
async fn decoded(response: Response) -> Result<(HeaderMap, Vec<u8>)> {
    let headers = response.headers().clone();
    let sent = response.bytes().await.context("the answer was cut off")?;
    let encoding = headers.get("content-encoding").map(|value| value.to_str());
    let mut body = Vec::new();
    match encoding.transpose()? {
        None => body.extend_from_slice(&sent),
        Some("gzip") => drop(flate2::read::GzDecoder::new(&sent[..]).read_to_end(&mut body)?),
        Some("zstd") => body = zstd::decode_all(&sent[..])?,
        Some(other) => bail!("an encoding nobody asked for: {other}"),
    }
    Ok((headers, body))
}

fn accepting(request: RequestBuilder, encodings: &str) -> RequestBuilder {
    request.header("accept-encoding", encodings)
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

#[tokio::test]
async fn large_answers_come_compressed_to_whoever_takes_that() -> Result<()> {
    let site = start(&[]).await?;
    let path = large_task(&site.client).await?;
    let get = || site.client.request(Method::GET, &path);
    let (plain_headers, plain) = decoded(get().send().await?).await?;
    assert_eq!(text(&plain_headers, "content-encoding"), None);
    for (accepted, expected) in [
        ("gzip", Some("gzip")),
        ("zstd", Some("zstd")),
        ("gzip, deflate, br, zstd", Some("zstd")),
        ("zstd;q=0, gzip;q=0.5", Some("gzip")),
        ("br", None),
        ("identity", None),
        ("gzip;q=0", None),
    ] {
        let response = accepting(get(), accepted).send().await?;
        assert_eq!(response.status(), 200, "{accepted}");
        let (headers, body) = decoded(response).await?;
        assert_eq!(text(&headers, "content-encoding"), expected, "{accepted}");
        assert_eq!(body, plain, "{accepted}");
        let vary = text(&headers, "vary").unwrap_or_default();
        assert!(vary.contains("accept-encoding"), "{accepted}: {vary}");
        // The state is the same, so its tag is: a condition must hold after it.
        assert_eq!(text(&headers, "etag"), text(&plain_headers, "etag"));
    }
    let metrics = format!("{}/metrics", site.api.base_url());
    let metrics = accepting(reqwest::Client::new().get(metrics), "gzip");
    let (headers, body) = decoded(metrics.send().await?).await?;
    assert_eq!(text(&headers, "content-encoding"), Some("gzip"));
    let body = String::from_utf8(body)?;
    assert!(body.contains("holdfast_http_request_seconds"), "{body}");
    Ok(())
}

#[tokio::test]
async fn small_answers_are_not_compressed() -> Result<()> {
    let site = start(&[]).await?;
    let created = site.client.create_task(&json!({"title": "small"})).await?;
    let path = format!("/tasks/{}", created.expect(201).id());
    for path in [path.as_str(), "/tasks/nowhere", "/profile"] {
        let request = accepting(site.client.request(Method::GET, path), "gzip, zstd");
        let (headers, _) = decoded(request.send().await?).await?;
        assert_eq!(text(&headers, "content-encoding"), None, "{path}");
        assert!(headers.contains_key("content-length"), "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn a_tag_of_a_compressed_answer_can_be_named_in_conditions() -> Result<()> {
    let site = start(&[]).await?;
    let path = large_task(&site.client).await?;
    let get = accepting(site.client.request(Method::GET, &path), "gzip");
    let (headers, _) = decoded(get.send().await?).await?;
    let tag = text(&headers, "etag").context("a tag")?.to_owned();
    let again = accepting(site.client.request(Method::GET, &path), "gzip");
    let again = site
        .client
        .send(again.header("if-none-match", &tag))
        .await?;
    again.expect(304);
    assert_eq!(again.header("content-encoding"), None);
    assert_eq!(again.expect_header("etag"), tag);
    assert!(again.expect_header("vary").contains("accept-encoding"));
    let patch = accepting(site.client.request(Method::PATCH, &path), "gzip")
        .header("if-match", &tag)
        .json(&json!({"priority": 1}));
    site.client.send(patch).await?.expect(200);
    Ok(())
}

#[tokio::test]
async fn a_client_that_takes_no_encoding_at_all_still_learns_what_it_did() -> Result<()> {
    let site = start(&[]).await?;
    for nothing in ["identity;q=0", "*;q=0", "identity;q=0, br"] {
        let post = site
            .client
            .request(Method::POST, "/tasks")
            .json(&json!({"title": "x"}));
        site.client
            .send(accepting(post, nothing))
            .await?
            .expect(201);
        let wrong = site.client.request(Method::POST, "/tasks").json(&json!({}));
        site.client
            .send(accepting(wrong, nothing))
            .await?
            .expect_invalid(&["/title"]);
    }
    Ok(())
}

/// The headers that don't differ from one answer to the next.
fn steady(answer: &Answer) -> BTreeMap<&'static str, Option<&str>> {
    let names = [
        "content-type",
        "content-length",
        "content-encoding",
        "etag",
        "sync-state",
        "cache-control",
        "vary",
        "retry-after",
        "www-authenticate",
        "allow",
        "x-content-type-options",
    ];
    let header = |name: &'static str| (name, answer.header(name));
    names.into_iter().map(header).collect()
}

#[tokio::test]
async fn head_is_answered_as_get_without_the_body() -> Result<()> {
    let site = start(&[]).await?;
    let task = large_task(&site.client).await?;
    let token = tokens::valid("somebody");
    let api = |path: &str| format!("/api/v1{path}");
    let paths = [
        api(&task),
        api("/tasks"),
        api("/tasks?limit=x"),
        api("/tasks/nowhere"),
        api("/profile"),
        api("/operations"),
        api("/sessions"),
        api("/sessions/current"),
        "/livez".to_owned(),
        "/readyz".to_owned(),
        "/nothing".to_owned(),
    ];
    for path in &paths {
        for encodings in ["identity", "gzip"] {
            let ask = async |method: &str| {
                let request = format!(
                    "{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\
                     Accept-Encoding: {encodings}\r\nConnection: close\r\n\r\n"
                );
                raw_http::head_and_rest(&site.node.api_address(), request.as_bytes(), PATIENCE)
                    .await
            };
            let (get, got) = ask("GET").await?;
            let (head, nothing) = ask("HEAD").await?;
            assert_eq!(head.status(), get.status(), "{path}");
            assert_eq!(steady(&head), steady(&get), "{path} {encodings}");
            assert!(
                nothing.is_empty(),
                "{path}: HEAD had a body of {}",
                nothing.len()
            );
            assert!(!got.is_empty(), "{path}");
            if encodings == "identity" {
                let length: usize = get.expect_header("content-length").parse()?;
                assert_eq!(length, got.len(), "{path}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn every_answer_to_a_user_says_what_is_left_of_the_limit() -> Result<()> {
    let site = start(&[("RATE_LIMIT_PER_MINUTE", "5")]).await?;
    let requests = [
        (200, site.client.request(Method::GET, "/tasks")),
        (404, site.client.request(Method::GET, "/tasks/nowhere")),
        (
            422,
            site.client.request(Method::POST, "/tasks").json(&json!({})),
        ),
        (
            201,
            site.client
                .request(Method::POST, "/tasks")
                .json(&json!({"title": "x"})),
        ),
        (200, site.client.request(Method::HEAD, "/tasks")),
        (429, site.client.request(Method::GET, "/tasks")),
    ];
    for (number, (status, request)) in requests.into_iter().enumerate() {
        let answer = site.client.send(request).await?;
        answer.expect(status);
        assert_eq!(
            answer.expect_header("ratelimit-policy"),
            "\"user\";q=5;w=60"
        );
        let standing = answer.expect_header("ratelimit");
        let left = 4_usize.saturating_sub(number);
        assert!(
            standing.starts_with(&format!("\"user\";r={left};t=")),
            "{standing}"
        );
        if status == 429 {
            answer.expect_problem(429);
            let (_, more_in) = standing.split_once(";t=").context("a time")?;
            assert_eq!(answer.expect_header("retry-after"), more_in);
        }
    }
    let stranger = site.api.anonymous().get("/tasks").await?;
    assert_eq!(stranger.expect(401).header("ratelimit"), None);
    Ok(())
}

#[tokio::test]
async fn logs_carry_the_clients_trace_and_request_id() -> Result<()> {
    let site = start(&[("LOG_LEVEL", "debug"), ("LOG_FORMAT", "json")]).await?;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let request = site
        .client
        .request(Method::GET, "/tasks")
        .header("x-request-id", "my-own-id")
        .header("traceparent", format!("00-{trace}-00f067aa0ba902b7-01"));
    let answer = site.client.send(request).await?;
    assert_eq!(
        answer.expect(200).expect_header("x-request-id"),
        "my-own-id"
    );
    let malformed = site
        .client
        .request(Method::GET, "/tasks")
        .header("x-request-id", "another-id")
        .header("traceparent", "00-nonsense-01");
    site.client.send(malformed).await?.expect(200);
    let lines = holdfast_tests::eventually(PATIENCE, "both lines in the log", async || {
        let log = site.api.log();
        let lines: Vec<Value> = log
            .lines()
            .filter(|line| line.contains("answered a request"))
            .filter_map(|line| serde_json::from_str(line).ok())
            .filter(|line: &Value| line.to_string().contains("-id"))
            .collect();
        if lines.len() >= 2 {
            Ok(lines)
        } else {
            Err(log)
        }
    })
    .await?;
    let of = |id: &str| lines.iter().find(|line| line.to_string().contains(id));
    let first = of("my-own-id").context("no line")?.to_string();
    assert!(first.contains(trace), "{first}");
    let second = of("another-id").context("no line")?.to_string();
    assert!(!second.contains("nonsense"), "{second}");
    Ok(())
}
