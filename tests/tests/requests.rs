//! Is bad input refused as the contract says, each time with a whole problem
//! document, and never with anything of the inside showing?

use std::time::Duration;

use anyhow::Result;
use holdfast_tests::{Answer, Client, Node, Postgres, Program, raw_http, tokens};
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

const SETTLE: Duration = Duration::from_secs(20);
/// The largest body, in bytes.
const BODY_LIMIT: usize = 64 * 1024;

struct Site {
    api: Program,
    client: Client,
    node: Node,
}

/// An API in embedded mode, which checks its input as any other.
async fn start() -> Result<Site> {
    let node = Node::new()?;
    let api = node.start_api().await?;
    let client = api.client(&tokens::valid("somebody"));
    Ok(Site { api, client, node })
}

/// Posts a body to `/tasks` as it is.
async fn post_text(client: &Client, content_type: &str, body: &str) -> Result<Answer> {
    let request = client.request(Method::POST, "/tasks");
    let request = request
        .header("content-type", content_type)
        .body(body.to_owned());
    client.send(request).await
}

#[tokio::test]
async fn malformed_json_is_400() -> Result<()> {
    let site = start().await?;
    for body in [
        "",
        "{",
        "{\"title\":}",
        "nonsense",
        "{\"title\":\"a\"} more",
        "\u{feff}{}",
    ] {
        let answer = post_text(&site.client, "application/json", body).await?;
        answer.expect_problem(400);
    }
    let not_utf8 = site.client.request(Method::POST, "/tasks");
    let not_utf8 = not_utf8.header("content-type", "application/json");
    let not_utf8 = not_utf8.body(b"{\"title\":\"\xff\"}".to_vec());
    site.client.send(not_utf8).await?.expect_problem(400);
    Ok(())
}

#[tokio::test]
async fn wrong_types_are_422_and_pointed_at() -> Result<()> {
    let site = start().await?;
    let wrong = [
        ("title", json!(7)),
        ("title", Value::Null),
        ("description", json!(["no", "list"])),
        ("status", json!("sleeping")),
        ("status", json!(1)),
        ("priority", json!("high")),
        ("priority", json!(0)),
        ("priority", json!(6)),
        ("priority", json!(1.5)),
        ("due_at", json!("tomorrow")),
        ("due_at", json!(1_700_000_000)),
        ("tags", json!("work")),
    ];
    for (field, value) in wrong {
        let mut task = json!({"title": "fine"});
        task[field] = value;
        let answer = site.client.create_task(&task).await?;
        answer.expect_invalid(&[&format!("/{field}")]);
    }
    for body in [json!([]), json!("text"), json!(1), Value::Null] {
        site.client.create_task(&body).await?.expect_problem(422);
    }
    Ok(())
}

#[tokio::test]
async fn unknown_and_server_made_fields_are_422_and_pointed_at() -> Result<()> {
    let site = start().await?;
    let created = site.client.create_task(&json!({"title": "fine"})).await?;
    let path = format!("/tasks/{}", created.expect(201).id());
    for field in ["colour", "id", "created_at", "completed_at", "sync_state"] {
        let mut task = json!({"title": "fine"});
        task[field] = json!("2030-01-01T00:00:00Z");
        let pointer = format!("/{field}");
        site.client
            .create_task(&task)
            .await?
            .expect_invalid(&[&pointer]);
        site.client
            .put(&path, &task)
            .await?
            .expect_invalid(&[&pointer]);
        site.client
            .patch(&path, &task)
            .await?
            .expect_invalid(&[&pointer]);
    }
    Ok(())
}

#[tokio::test]
async fn a_missing_title_is_pointed_at_and_a_patch_may_leave_it_out() -> Result<()> {
    let site = start().await?;
    site.client
        .create_task(&json!({}))
        .await?
        .expect_invalid(&["/title"]);
    let created = site.client.create_task(&json!({"title": "fine"})).await?;
    let path = format!("/tasks/{}", created.expect(201).id());
    site.client
        .put(&path, &json!({"priority": 1}))
        .await?
        .expect_invalid(&["/title"]);
    site.client
        .patch(&path, &json!({"title": null}))
        .await?
        .expect_invalid(&["/title"]);
    let patched = site.client.patch(&path, &json!({"priority": 1})).await?;
    assert_eq!(patched.expect(200).json()["title"], "fine");
    Ok(())
}

#[tokio::test]
async fn limits_count_characters_and_hold_exactly() -> Result<()> {
    let site = start().await?;
    let fits = [
        json!({"title": "x"}),
        json!({"title": "ü".repeat(200)}),
        json!({"title": format!("  {}  ", "x".repeat(200))}),
        json!({"title": "x", "description": "ü".repeat(10_000)}),
        json!({"title": "x", "tags": vec!["ü".repeat(50); 1]}),
        json!({"title": "x", "tags": (0..20).map(|n| format!("tag {n}")).collect::<Vec<_>>()}),
        json!({"title": "x", "due_at": "2030-01-01T12:00:00+02:00"}),
    ];
    for task in fits {
        site.client.create_task(&task).await?.expect(201);
    }
    let too_much = [
        ("/title", json!({"title": ""})),
        ("/title", json!({"title": "   "})),
        ("/title", json!({"title": "ü".repeat(201)})),
        (
            "/description",
            json!({"title": "x", "description": "x".repeat(10_001)}),
        ),
        (
            "/tags",
            json!({"title": "x", "tags": (0..21).map(|n| format!("{n}")).collect::<Vec<_>>()}),
        ),
        (
            "/tags/1",
            json!({"title": "x", "tags": ["a", "x".repeat(51)]}),
        ),
        ("/tags/0", json!({"title": "x", "tags": [""]})),
    ];
    for (pointer, task) in too_much {
        site.client
            .create_task(&task)
            .await?
            .expect_invalid(&[pointer]);
    }
    let several = json!({"title": "", "priority": 9});
    site.client
        .create_task(&several)
        .await?
        .expect_invalid(&["/title", "/priority"]);
    Ok(())
}

#[tokio::test]
async fn the_null_character_is_422_everywhere() -> Result<()> {
    let site = start().await?;
    let with_null = [
        ("/title", json!({"title": "a\u{0}b"})),
        (
            "/description",
            json!({"title": "x", "description": "\u{0}"}),
        ),
        ("/tags/0", json!({"title": "x", "tags": ["a\u{0}"]})),
    ];
    for (pointer, task) in with_null {
        site.client
            .create_task(&task)
            .await?
            .expect_invalid(&[pointer]);
    }
    let escaped = post_text(&site.client, "application/json", r#"{"title":"a\u0000b"}"#).await?;
    escaped.expect_invalid(&["/title"]);
    let preferences = json!({"preferences": {"theme": "a\u{0}"}});
    site.client
        .patch("/profile", &preferences)
        .await?
        .expect_problem(422);
    let as_a_key = json!({"preferences": {"a\u{0}": 1}});
    site.client
        .patch("/profile", &as_a_key)
        .await?
        .expect_problem(422);
    Ok(())
}

#[tokio::test]
async fn no_name_in_a_document_has_a_meaning_but_those_of_its_fields() -> Result<()> {
    let site = start().await?;
    let name = "$serde_json::private::RawValue";
    let title = json!({"title": {name: "\"from within\""}});
    let refused = site.client.create_task(&title).await?;
    refused.expect_invalid(&["/title"]);
    let kept = json!({"preferences": {"theme": "dark"}});
    site.client.put("/profile", &kept).await?.expect(200);
    for value in ["1", "{", "[1]"] {
        let patch = json!({"preferences": {"deep": [{name: value}]}});
        let refused = site.client.patch("/profile", &patch).await?;
        refused.expect_invalid(&["/preferences"]);
    }
    let profile = site.client.get("/profile").await?;
    assert_eq!(profile.json()["preferences"], kept["preferences"]);
    Ok(())
}

#[tokio::test]
async fn a_body_over_64_kib_is_413_by_length() -> Result<()> {
    let site = start().await?;
    let padded = |bytes: usize| {
        let task = "{\"title\":\"x\"}";
        format!("{task}{}", " ".repeat(bytes - task.len()))
    };
    let fits = post_text(&site.client, "application/json", &padded(BODY_LIMIT)).await?;
    fits.expect(201);
    let too_long = post_text(&site.client, "application/json", &padded(BODY_LIMIT + 1)).await?;
    too_long.expect_problem(413);
    Ok(())
}

/// The head of a POST to `/tasks` and these further header lines.
fn raw_head(site: &Site, lines: &str) -> String {
    let host = site.node.api_address();
    let token = tokens::valid("somebody");
    format!(
        "POST /api/v1/tasks HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\nConnection: close\r\n{lines}\r\n"
    )
}

#[tokio::test]
async fn a_body_over_64_kib_is_413_in_chunks() -> Result<()> {
    let site = start().await?;
    let mut request = raw_head(&site, "Transfer-Encoding: chunked\r\n").into_bytes();
    request.extend(b"d\r\n{\"title\":\"x\"}\r\n");
    let spaces = " ".repeat(4096);
    for _ in 0..17 {
        request.extend(format!("1000\r\n{spaces}\r\n").as_bytes());
    }
    request.extend(b"0\r\n\r\n");
    let answer = raw_http::exchange(&site.node.api_address(), &request, SETTLE).await?;
    answer.expect_problem(413);
    Ok(())
}

#[tokio::test]
async fn a_chunked_body_that_fits_is_taken() -> Result<()> {
    let site = start().await?;
    let mut request = raw_head(&site, "Transfer-Encoding: chunked\r\n").into_bytes();
    request.extend(b"5\r\n{\"tit\r\n8\r\nle\":\"x\"}\r\n0\r\n\r\n");
    let answer = raw_http::exchange(&site.node.api_address(), &request, SETTLE).await?;
    answer.expect(201);
    Ok(())
}

#[tokio::test]
async fn a_wrong_content_type_is_415() -> Result<()> {
    let site = start().await?;
    let body = r#"{"title":"x"}"#;
    for wrong in [
        "text/plain",
        "application/xml",
        "application/x-www-form-urlencoded",
        "nonsense",
    ] {
        post_text(&site.client, wrong, body)
            .await?
            .expect_problem(415);
    }
    for right in [
        "application/json",
        "application/json; charset=utf-8",
        "Application/JSON",
    ] {
        post_text(&site.client, right, body).await?.expect(201);
    }
    let untyped = site.client.request(Method::POST, "/tasks").body(body);
    site.client.send(untyped).await?.expect_problem(415);
    Ok(())
}

#[tokio::test]
async fn a_patch_may_say_that_it_is_a_merge_patch() -> Result<()> {
    let site = start().await?;
    let created = site.client.create_task(&json!({"title": "x"})).await?;
    let path = format!("/tasks/{}", created.expect(201).id());
    for content_type in ["application/merge-patch+json", "application/json"] {
        let request = site.client.request(Method::PATCH, &path);
        let request = request
            .header("content-type", content_type)
            .body("{\"priority\":1}");
        site.client.send(request).await?.expect(200);
    }
    Ok(())
}

#[tokio::test]
async fn what_isnt_there_is_404() -> Result<()> {
    let site = start().await?;
    let nowhere = format!("/tasks/{}", Uuid::new_v4());
    site.client.get(&nowhere).await?.expect_problem(404);
    site.client
        .patch(&nowhere, &json!({"title": "x"}))
        .await?
        .expect_problem(404);
    site.client
        .get("/tasks/not-a-uuid")
        .await?
        .expect_problem(404);
    let operation = format!("/operations/{}", Uuid::new_v4());
    site.client.get(&operation).await?.expect_problem(404);
    for unknown in ["", "/", "/nothing", "/tasks/a/b", "/task"] {
        site.client.get(unknown).await?.expect_problem(404);
    }
    site.api
        .anonymous()
        .get_outside("/nothing")
        .await?
        .expect_problem(404);
    site.api
        .anonymous()
        .get_outside("/")
        .await?
        .expect_problem(404);
    Ok(())
}

#[tokio::test]
async fn a_wrong_method_is_405_with_what_is_allowed() -> Result<()> {
    let site = start().await?;
    let task = format!("/tasks/{}", Uuid::new_v4());
    let wrong = [
        (Method::DELETE, "/tasks", vec!["GET", "POST"]),
        (
            Method::POST,
            task.as_str(),
            vec!["GET", "PUT", "PATCH", "DELETE"],
        ),
        (Method::DELETE, "/profile", vec!["GET", "PUT", "PATCH"]),
        (Method::POST, "/sessions", vec!["GET"]),
    ];
    for (method, path, expected) in wrong {
        let request = site.client.request(method.clone(), path);
        let answer = site.client.send(request).await?;
        answer.expect_problem(405);
        let allow = answer.expect_header("allow");
        let allowed: Vec<&str> = allow.split(',').map(str::trim).collect();
        for needed in &expected {
            assert!(allowed.contains(needed), "{method} {path}: Allow: {allow}");
        }
        assert!(
            !allowed.contains(&method.as_str()),
            "{method} {path}: Allow: {allow}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn bad_query_parameters_are_400_and_named() -> Result<()> {
    let site = start().await?;
    let bad = [
        ("status=sleeping", "status"),
        ("priority=9", "priority"),
        ("priority=high", "priority"),
        ("due_before=tomorrow", "due_before"),
        ("due_after=1", "due_after"),
        ("sort=colour", "sort"),
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=all", "limit"),
        ("cursor=nonsense", "cursor"),
        ("colour=red", "colour"),
    ];
    for (query, name) in bad {
        let answer = site.client.get(&format!("/tasks?{query}")).await?;
        answer.expect_problem(400);
        let detail = answer.json()["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(name), "{query}: {}", answer.text());
    }
    let operation = format!("/operations/{}?wait=61", Uuid::new_v4());
    site.client.get(&operation).await?.expect_problem(400);
    Ok(())
}

#[tokio::test]
async fn conditions_on_tags_hold() -> Result<()> {
    let site = start().await?;
    let created = site.client.create_task(&json!({"title": "first"})).await?;
    let path = format!("/tasks/{}", created.expect(201).id());
    let old_tag = created.expect_header("etag").to_owned();
    let unchanged = site
        .client
        .request(Method::GET, &path)
        .header("if-none-match", &old_tag);
    site.client.send(unchanged).await?.expect(304);
    let patch = |tag: &str| {
        let request = site
            .client
            .request(Method::PATCH, &path)
            .header("if-match", tag);
        request.json(&json!({"title": "second"}))
    };
    site.client
        .send(patch("\"something-else\""))
        .await?
        .expect_problem(412);
    site.client.send(patch(&old_tag)).await?.expect(200);
    site.client.send(patch(&old_tag)).await?.expect_problem(412);
    let create_only = site
        .client
        .request(Method::PUT, &path)
        .header("if-none-match", "*");
    let create_only = create_only.json(&json!({"title": "third"}));
    site.client.send(create_only).await?.expect_problem(412);
    Ok(())
}

#[tokio::test]
async fn an_idempotency_key_makes_one_task_of_two_requests() -> Result<()> {
    let site = start().await?;
    let post = |key: &str, title: &str| {
        let request = site
            .client
            .request(Method::POST, "/tasks")
            .header("idempotency-key", key);
        request.json(&json!({"title": title}))
    };
    let first = site.client.send(post("key-1", "once")).await?;
    first.expect(201);
    assert_eq!(first.header("idempotency-replayed"), None);
    let again = site.client.send(post("key-1", "once")).await?;
    again.expect(201);
    assert_eq!(again.expect_header("idempotency-replayed"), "true");
    assert_eq!(again.id(), first.id());
    site.client
        .send(post("key-1", "something else"))
        .await?
        .expect_problem(422);
    site.client.send(post("key-2", "once")).await?.expect(201);
    for bad in ["", &"k".repeat(256)] {
        let refused = site.client.send(post(bad, "once")).await?;
        let status = refused.expect_in(&[400, 422]).status();
        refused.expect_problem(status);
    }
    let list = site.client.get("/tasks").await?;
    assert_eq!(
        list.json()["items"].as_array().map(Vec::len),
        Some(2),
        "{}",
        list.text()
    );
    Ok(())
}

#[tokio::test]
async fn the_request_id_is_echoed_or_made() -> Result<()> {
    let site = start().await?;
    let request = site
        .client
        .request(Method::GET, "/nothing")
        .header("x-request-id", "my-own-id");
    let answer = site.client.send(request).await?;
    assert_eq!(answer.expect_header("x-request-id"), "my-own-id");
    answer.expect_problem(404);
    let made = site.client.get("/tasks").await?;
    assert!(!made.expect_header("x-request-id").is_empty());
    Ok(())
}

#[tokio::test]
async fn a_full_buffer_refuses_cleanly_and_recovers_by_itself() -> Result<()> {
    const MOST: usize = 20;
    let mut postgres = Postgres::start().await?;
    let url = postgres.create_database("holdfast").await?;
    let node = Node::new()?
        .with("DATABASE_URL", &url)
        .with("BUFFER_MAX_SIZE", &MOST.to_string());
    node.syncd(&["migrate"]).await?.expect_code(0);
    let api = node.start_api().await?;
    api.wait_status(SETTLE, "online").await?;
    let client = api.client(&tokens::valid("somebody"));
    client
        .create_task(&json!({"title": "with all well"}))
        .await?
        .expect(201);
    postgres.kill9().await?;
    // Known to be down, so that no write's outcome is unknown, for which there
    // are slots beyond the limit.
    api.wait_status(SETTLE, "offline").await?;

    let mut accepted = Vec::new();
    for number in 0..MOST {
        let created = client
            .create_task(&json!({"title": format!("buffered {number}")}))
            .await?;
        created.expect(202);
        accepted.push(created.id().to_owned());
    }
    let refused = client
        .create_task(&json!({"title": "one too many"}))
        .await?;
    refused.expect_problem(503);
    let retry_after = refused.expect_header("retry-after");
    assert!(
        retry_after.parse::<u32>().is_ok(),
        "Retry-After: {retry_after}"
    );
    let health = api.health().await?;
    assert_eq!(health["buffer"]["state"], "full", "{health}");
    assert_eq!(health["buffer"]["pending"], MOST, "{health}");
    assert_eq!(health["buffer"]["max_items"], MOST, "{health}");
    api.anonymous().get_outside("/readyz").await?.expect(200);
    for id in &accepted {
        client.get(&format!("/tasks/{id}")).await?.expect(200);
    }

    let _syncd = node.start_syncd().await?;
    postgres.start_again().await?;
    api.wait_status(SETTLE, "online").await?;
    client
        .create_task(&json!({"title": "all is well again"}))
        .await?
        .expect(201);
    for id in &accepted {
        let read = client.get(&format!("/tasks/{id}")).await?;
        assert_eq!(read.expect(200).json()["sync_state"], "synced");
    }
    Ok(())
}
