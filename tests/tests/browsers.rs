//! Can a page of another origin use the API where `CORS_ORIGINS` names it, and
//! no other page anywhere?

use anyhow::Result;
use holdfast_tests::{Answer, Client, Node, Program, tokens};
use reqwest::{Method, RequestBuilder};
use serde_json::json;
use uuid::Uuid;

const ORIGIN: &str = "https://app.example.com";
const OTHER: &str = "https://other.example.com";

struct Site {
    api: Program,
    client: Client,
    _node: Node,
}

async fn start(settings: &[(&str, &str)]) -> Result<Site> {
    let mut node = Node::new()?;
    for (name, value) in settings {
        node.set(name, value);
    }
    let api = node.start_api().await?;
    let client = api.client(&tokens::valid("somebody"));
    Ok(Site {
        api,
        client,
        _node: node,
    })
}

/// What a browser asks before it sends what the page wants to.
fn preflight(client: &Client, path: &str, origin: &str) -> RequestBuilder {
    client
        .request(Method::OPTIONS, path)
        .header("origin", origin)
        .header("access-control-request-method", "PATCH")
        .header(
            "access-control-request-headers",
            "authorization,content-type,if-match",
        )
}

/// The words of a header that lists some, in lower case.
fn words(answer: &Answer, header: &str) -> Vec<String> {
    let value = answer.header_list(header).to_ascii_lowercase();
    value
        .split(',')
        .map(|word| word.trim().to_owned())
        .collect()
}

#[track_caller]
fn expect_words(answer: &Answer, header: &str, wanted: &[&str]) {
    let words = words(answer, header);
    for word in wanted {
        assert!(
            words.iter().any(|known| known == word),
            "{word} in {words:?}"
        );
    }
}

#[tokio::test]
async fn a_named_origin_is_answered_in_advance_and_without_a_token() -> Result<()> {
    let named = format!("https://a.example.com,{ORIGIN}");
    let site = start(&[("CORS_ORIGINS", &named)]).await?;
    let anonymous = site.api.anonymous();
    for path in ["/tasks", "/tasks/not-even-a-uuid", "/nothing"] {
        let answer = anonymous.send(preflight(&anonymous, path, ORIGIN)).await?;
        assert!(answer.is_success(), "{}", answer.status());
        assert_eq!(answer.expect_header("access-control-allow-origin"), ORIGIN);
        assert_eq!(answer.header("access-control-allow-credentials"), None);
        expect_words(
            &answer,
            "access-control-allow-methods",
            &["get", "head", "post", "put", "patch", "delete"],
        );
        let sent = [
            "authorization",
            "content-type",
            "if-match",
            "if-none-match",
            "idempotency-key",
            "sync-priority",
            "prefer",
            "x-request-id",
            "traceparent",
        ];
        expect_words(&answer, "access-control-allow-headers", &sent);
        expect_words(&answer, "vary", &["origin"]);
        let seconds: u64 = answer.expect_header("access-control-max-age").parse()?;
        assert!(seconds >= 600, "{seconds}");
    }
    Ok(())
}

#[tokio::test]
async fn another_origin_is_answered_but_may_not_read() -> Result<()> {
    let site = start(&[("CORS_ORIGINS", ORIGIN)]).await?;
    for origin in [OTHER, "null", "https://app.example.com.evil.example"] {
        let asked = site
            .client
            .send(preflight(&site.client, "/tasks", origin))
            .await?;
        assert_eq!(
            asked.header("access-control-allow-origin"),
            None,
            "{origin}"
        );
        let request = site.client.request(Method::GET, "/tasks");
        let answer = site.client.send(request.header("origin", origin)).await?;
        answer.expect(200);
        assert_eq!(
            answer.header("access-control-allow-origin"),
            None,
            "{origin}"
        );
        // Whoever stores the answer must not show it to the origin that may.
        expect_words(&answer, "vary", &["origin"]);
    }
    Ok(())
}

#[tokio::test]
async fn errors_can_be_read_like_successes() -> Result<()> {
    let settings = [("CORS_ORIGINS", ORIGIN), ("RATE_LIMIT_PER_MINUTE", "4")];
    let site = start(&settings).await?;
    let anonymous = site.api.anonymous();
    let somewhere = format!("/tasks/{}", Uuid::new_v4());
    let get = |client: &Client, path: &str| client.request(Method::GET, path);
    let large = json!({"title": "x".repeat(70_000)});
    let large = site.client.request(Method::POST, "/tasks").json(&large);
    let ann = &site.client;
    let requests = [
        (200, get(ann, "/tasks"), ann),
        (401, get(&anonymous, "/tasks"), &anonymous),
        (404, get(ann, &somewhere), ann),
        (404, get(ann, "/nothing"), ann),
        (405, ann.request(Method::PUT, "/tasks"), ann),
        (413, large, ann),
        (
            422,
            ann.request(Method::POST, "/tasks").json(&json!({})),
            ann,
        ),
        (429, get(ann, "/tasks"), ann),
    ];
    for (status, request, client) in requests {
        let answer = client.send(request.header("origin", ORIGIN)).await?;
        answer.expect(status);
        assert_eq!(
            answer.expect_header("access-control-allow-origin"),
            ORIGIN,
            "{status}"
        );
        let shown = [
            "etag",
            "location",
            "operation-location",
            "sync-state",
            "age",
            "retry-after",
            "idempotency-replayed",
            "preference-applied",
            "ratelimit",
            "ratelimit-policy",
            "x-request-id",
            "allow",
            "www-authenticate",
        ];
        expect_words(&answer, "access-control-expose-headers", &shown);
        expect_words(&answer, "vary", &["origin"]);
    }
    Ok(())
}

#[tokio::test]
async fn a_star_lets_every_page_in() -> Result<()> {
    let site = start(&[("CORS_ORIGINS", "*")]).await?;
    let asked = site
        .client
        .send(preflight(&site.client, "/tasks", OTHER))
        .await?;
    assert_eq!(asked.expect_header("access-control-allow-origin"), "*");
    let request = site.client.request(Method::GET, "/tasks");
    let answer = site.client.send(request.header("origin", OTHER)).await?;
    assert_eq!(
        answer
            .expect(200)
            .expect_header("access-control-allow-origin"),
        "*"
    );
    assert_eq!(answer.header("access-control-allow-credentials"), None);
    Ok(())
}

#[tokio::test]
async fn without_origins_there_is_no_word_of_it() -> Result<()> {
    let site = start(&[]).await?;
    let asked = site
        .client
        .send(preflight(&site.client, "/tasks", ORIGIN))
        .await?;
    let request = site.client.request(Method::GET, "/tasks");
    let answer = site.client.send(request.header("origin", ORIGIN)).await?;
    for answer in [asked.expect(204), answer.expect(200)] {
        for header in [
            "access-control-allow-origin",
            "access-control-allow-methods",
            "access-control-expose-headers",
        ] {
            assert_eq!(answer.header(header), None, "{header}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn options_says_what_a_path_takes_with_and_without_other_origins() -> Result<()> {
    for settings in [&[][..], &[("CORS_ORIGINS", ORIGIN)]] {
        let site = start(settings).await?;
        let anonymous = site.api.anonymous();
        let options = |path: &str| anonymous.request(Method::OPTIONS, path);
        let answer = anonymous.send(options("/tasks")).await?;
        answer.expect(204);
        assert_eq!(answer.expect_header("allow"), "GET, HEAD, OPTIONS, POST");
        let one = anonymous.send(options("/tasks/some-id")).await?;
        assert_eq!(
            one.expect(204).expect_header("allow"),
            "DELETE, GET, HEAD, OPTIONS, PATCH, PUT"
        );
        anonymous
            .send(options("/nothing"))
            .await?
            .expect_problem(404);
    }
    Ok(())
}
