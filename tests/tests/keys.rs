//! Does an `Idempotency-Key` stand for one request of one user, whatever the
//! request is, whatever others do, and whether PostgreSQL is there or not?

use std::time::Duration;

use anyhow::{Context, Result};
use holdfast_shared::domain::{IdempotencyKey, TaskId, UserId};
use holdfast_tests::{Answer, Client, Node, Postgres, Program, tokens};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::Executor;

const DATABASE: &str = "holdfast";
const SETTLE: Duration = Duration::from_secs(30);

struct Site {
    api: Program,
    client: Client,
    postgres: Option<Postgres>,
    _node: Node,
}

/// An API in embedded mode.
async fn embedded() -> Result<Site> {
    let node = Node::new()?;
    let api = node.start_api().await?;
    let client = api.client(&tokens::valid("somebody"));
    Ok(Site {
        api,
        client,
        postgres: None,
        _node: node,
    })
}

/// An API with PostgreSQL.
async fn online() -> Result<Site> {
    let postgres = Postgres::start().await?;
    let url = postgres.create_database(DATABASE).await?;
    let node = Node::new()?.with("DATABASE_URL", &url);
    node.syncd(&["migrate"]).await?.expect_code(0);
    let api = node.start_api().await?;
    api.wait_status(SETTLE, "online").await?;
    let client = api.client(&tokens::valid("somebody"));
    Ok(Site {
        api,
        client,
        postgres: Some(postgres),
        _node: node,
    })
}

impl Site {
    async fn keyed(&self, method: Method, path: &str, key: &str, body: &Value) -> Result<Answer> {
        let request = self.client.request(method, path);
        let request = request.header("idempotency-key", key).json(body);
        self.client.send(request).await
    }

    async fn post(&self, key: &str, title: &str) -> Result<Answer> {
        let body = json!({"title": title});
        self.keyed(Method::POST, "/tasks", key, &body).await
    }

    async fn new_task(&self) -> Result<String> {
        let created = self.client.create_task(&json!({"title": "a"})).await?;
        Ok(format!("/tasks/{}", created.expect(201).id()))
    }
}

/// Where the task of this user's key is.
fn path_of(user: &str, key: &str) -> Result<String> {
    let id = TaskId::derived(&UserId::parse(user)?, &IdempotencyKey::parse(key)?);
    Ok(format!("/tasks/{id}"))
}

#[tokio::test]
async fn nobody_takes_the_id_of_another_ones_key() -> Result<()> {
    for site in [embedded().await?, online().await?] {
        let path = path_of("somebody", "order-17")?;
        let stranger = site.api.client(&tokens::valid("stranger"));
        let body = json!({"title": "taken"});
        let refused = stranger.put(&path, &body).await?;
        refused.expect_problem(404);
        assert!(refused.text().contains("version 8"), "{}", refused.text());
        let absent = stranger.request(Method::PUT, &path);
        let absent = absent.header("if-none-match", "*").json(&body);
        stranger.send(absent).await?.expect_problem(404);
        let first = site.post("order-17", "mine").await?;
        assert!(path.ends_with(first.expect(201).id()), "{}", first.text());
        // It is its owner's like any other.
        site.client.put(&path, &body).await?.expect(200);
        stranger.put(&path, &body).await?.expect_problem(404);
    }
    Ok(())
}

#[tokio::test]
async fn a_patch_that_mentions_nothing_is_a_request_as_any() -> Result<()> {
    for mut site in [embedded().await?, online().await?] {
        let path = site.new_task().await?;
        let (nothing, title) = (json!({}), json!({"title": "b"}));
        let before = site.client.get(&path).await?;
        let plain = site.client.patch(&path, &nothing).await?;
        assert_eq!(plain.expect(200).json(), before.json());
        let first = site.keyed(Method::PATCH, &path, "k", &nothing).await?;
        assert_eq!(first.expect(200).json(), before.json());
        let again = site.keyed(Method::PATCH, &path, "k", &nothing).await?;
        assert_eq!(
            again.expect(200).expect_header("idempotency-replayed"),
            "true"
        );
        let other = site.keyed(Method::PATCH, &path, "k", &title).await?;
        other.expect_problem(422);
        site.keyed(Method::PATCH, &path, "l", &title)
            .await?
            .expect(200);
        let other = site.keyed(Method::PATCH, &path, "l", &nothing).await?;
        other.expect_problem(422);
        let missing = site
            .client
            .request(Method::PATCH, &format!("/tasks/{}", TaskId::generate()));
        let missing = missing.header("if-match", "*").json(&nothing);
        site.client.send(missing).await?.expect_problem(412);
        if let Some(postgres) = &mut site.postgres {
            postgres.kill9().await?;
            site.api.wait_status(SETTLE, "offline").await?;
            let unseen = format!("/tasks/{}", TaskId::generate());
            site.client.patch(&unseen, &nothing).await?.expect(202);
            let newcomer = site.api.client(&tokens::valid("newcomer"));
            newcomer.patch("/profile", &nothing).await?.expect(202);
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_refused_condition_leaves_its_key_free() -> Result<()> {
    for site in [embedded().await?, online().await?] {
        let path = site.new_task().await?;
        let etag = site.client.get(&path).await?;
        let etag = etag.expect(200).expect_header("etag");
        let conditional = |tag: &str| {
            let request = site.client.request(Method::PATCH, &path);
            let request = request.header("idempotency-key", "k");
            request.header("if-match", tag).json(&json!({"title": "b"}))
        };
        site.client
            .send(conditional("\"another\""))
            .await?
            .expect_problem(412);
        site.client.send(conditional(etag)).await?.expect(200);
        let again = site.client.send(conditional(etag)).await?;
        assert_eq!(
            again.expect(200).expect_header("idempotency-replayed"),
            "true"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_key_that_is_forgotten_makes_no_second_task_of_one_that_was_deleted() -> Result<()> {
    let site = online().await?;
    let path = path_of("somebody", "key-1")?;
    site.post("key-1", "once").await?.expect(201);
    site.client.delete(&path).await?.expect(204);
    let postgres = site.postgres.as_ref().context("it has one")?;
    let mut admin = postgres.connect_admin(DATABASE).await?;
    admin.execute("DELETE FROM applied_operations").await?;
    site.post("key-1", "once").await?.expect_problem(410);
    Ok(())
}
