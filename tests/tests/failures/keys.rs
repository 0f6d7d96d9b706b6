//! An `Idempotency-Key` while writes wait: it stands for one request, whatever it is about, and its repeats are told so.

use std::time::Duration;

use anyhow::Result;
use holdfast_tests::Answer;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::Connection;

use crate::locks::hold;
use crate::site::{SETTLE, Site};

async fn keyed(site: &Site, method: Method, path: &str, body: &Value) -> Result<Answer> {
    let client = site.client();
    let request = client.request(method, path).header("idempotency-key", "k");
    client.send(request.json(body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn in_an_outage_a_key_taken_for_something_else_is_refused_and_its_first_applied() -> Result<()>
{
    let mut site = Site::start(&[]).await?;
    let task = format!("/tasks/{}", site.create_one("before", 201).await?);
    let title = json!({"title": "after"});
    site.cut().await?;
    let first = keyed(&site, Method::PATCH, &task, &title).await?;
    first.expect(202);
    let profile = json!({"display_name": "Ann"});
    let other = keyed(&site, Method::PATCH, "/profile", &profile).await?;
    other.expect_problem(422);
    let again = keyed(&site, Method::PATCH, &task, &title).await?;
    assert_eq!(
        again.expect(202).header("idempotency-replayed"),
        Some("true")
    );
    assert_eq!(
        again.expect_header("operation-location"),
        first.expect_header("operation-location")
    );
    assert_eq!(site.items().await?.len(), 1);
    site.heal().await?;
    site.drained(SETTLE).await?;
    assert_eq!(site.fate(&first).await?["state"], "applied");
    assert_eq!(site.dead().await?, 0);
    keyed(&site, Method::PATCH, "/profile", &profile)
        .await?
        .expect_problem(422);
    let again = keyed(&site, Method::PATCH, &task, &title).await?;
    assert_eq!(
        again.expect(200).header("idempotency-replayed"),
        Some("true")
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_whose_first_waits_is_refused_to_others_also_where_nothing_else_waits() -> Result<()>
{
    let mut site = Site::start(&[]).await?;
    let locked = format!("/tasks/{}", site.create_one("locked", 201).await?);
    let other = format!("/tasks/{}", site.create_one("other", 201).await?);
    let title = json!({"title": "after"});
    site.cut().await?;
    let first = keyed(&site, Method::PATCH, &locked, &title).await?;
    first.expect(202);
    let holder = hold(&site, "SELECT FROM tasks WHERE title = 'locked' FOR UPDATE").await?;
    site.heal().await?;
    // Whoever asks PostgreSQL is answered.
    site.reaches_postgres().await?;
    keyed(&site, Method::PATCH, &other, &title)
        .await?
        .expect_problem(422);
    holder.close().await?;
    site.drained(SETTLE).await?;
    assert_eq!(site.fate(&first).await?["state"], "applied");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_behind_a_write_that_waits_is_answered_as_its_first() -> Result<()> {
    let mut site = Site::start(&[]).await?;
    let (first, else_) = (json!({"title": "a"}), json!({"title": "else"}));
    let created = keyed(&site, Method::POST, "/tasks", &first).await?;
    let task = format!("/tasks/{}", created.expect(201).id());
    site.cut().await?;
    let client = site.client();
    client
        .patch(&task, &json!({"title": "b"}))
        .await?
        .expect(202);
    let holder = hold(&site, "SELECT FROM tasks FOR UPDATE").await?;
    site.heal().await?;
    site.reaches_postgres().await?;
    let again = keyed(&site, Method::POST, "/tasks", &first).await?;
    assert_eq!(
        again.expect(201).header("idempotency-replayed"),
        Some("true")
    );
    assert_eq!(again.json()["title"], "b", "{}", again.text());
    keyed(&site, Method::POST, "/tasks", &else_)
        .await?
        .expect_problem(422);
    assert_eq!(client.get(&task).await?.json()["title"], "b");
    assert_eq!(site.items().await?.len(), 1);
    holder.close().await?;
    site.drained(Duration::from_secs(60)).await?;
    assert_eq!(client.get(&task).await?.json()["title"], "b");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_needs_no_lock_on_what_its_first_has_long_since_done() -> Result<()> {
    let site = Site::start(&[]).await?;
    let task = format!("/tasks/{}", site.create_one("before", 201).await?);
    let (a, b) = (json!({"title": "a"}), json!({"title": "b"}));
    keyed(&site, Method::PATCH, &task, &a).await?.expect(200);
    site.client().patch(&task, &b).await?.expect(200);
    let holder = hold(&site, "SELECT FROM tasks FOR UPDATE").await?;
    let again = keyed(&site, Method::PATCH, &task, &a).await?;
    assert_eq!(
        again.expect(200).header("idempotency-replayed"),
        Some("true")
    );
    keyed(&site, Method::PATCH, &task, &b)
        .await?
        .expect_problem(422);
    assert!(site.items().await?.is_empty());
    holder.close().await?;
    assert_eq!(site.client().get(&task).await?.json()["title"], "b");
    Ok(())
}
