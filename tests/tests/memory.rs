//! Does a process show again what it, or another on its buffer, has shown? Found
//! by torture: each of these was forgotten once.

use std::time::Duration;

use anyhow::Result;
use holdfast_tests::{Answer, Client, FaultProxy, Flow, Node, Postgres, Program, tokens};
use serde_json::{Value, json};

const SETTLE: Duration = Duration::from_secs(30);

/// Two API processes on one buffer, and a way to PostgreSQL that can be cut.
struct Pair {
    one: Program,
    other: Program,
    way: FaultProxy,
    node: Node,
    _beside: Node,
    _postgres: Postgres,
}

impl Pair {
    async fn start() -> Result<Self> {
        let postgres = Postgres::start().await?;
        postgres.create_database("holdfast").await?;
        let way = FaultProxy::start(postgres.port()).await?;
        let url = postgres.url_through(way.port(), "holdfast");
        let node = Node::new()?.with("DATABASE_URL", &url);
        node.syncd(&["migrate"]).await?.expect_code(0);
        let beside = node.beside()?;
        let pair = Self {
            one: node.start_api().await?,
            other: beside.start_api().await?,
            way,
            node,
            _beside: beside,
            _postgres: postgres,
        };
        pair.wait("up").await?;
        Ok(pair)
    }

    async fn cut(&mut self) -> Result<()> {
        self.way.set(Flow::Cut).await?;
        self.wait("down").await
    }

    async fn mend(&mut self) -> Result<()> {
        self.way.set(Flow::Pass).await?;
        self.wait("up").await
    }

    /// An end of the outage that everything drains in, and the next outage.
    async fn drain_and_cut(&mut self) -> Result<()> {
        self.mend().await?;
        let drained = self.node.syncd(&["drain", "--wait"]).await?;
        drained.expect_code(0);
        self.cut().await
    }

    async fn wait(&self, state: &str) -> Result<()> {
        for api in [&self.one, &self.other] {
            let what = format!("PostgreSQL to be {state}");
            api.wait_health(SETTLE, &what, |health| {
                health["stores"]["postgres"]["state"] == state
            })
            .await?;
        }
        Ok(())
    }

    /// Both as the same user.
    fn clients(&self) -> (Client, Client) {
        let token = tokens::valid("ann");
        (self.one.client(&token), self.other.client(&token))
    }
}

/// The operation of a buffered write, as it stands now.
async fn end_of(client: &Client, answer: &Answer) -> Result<Value> {
    let location = answer.expect_header("operation-location");
    let id = location.rsplit('/').next().unwrap_or_default();
    Ok(client.operation(id, 0).await?.json().clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_task_that_a_list_has_shown_is_there_in_the_next_outage() -> Result<()> {
    let mut pair = Pair::start().await?;
    let (one, other) = pair.clients();
    pair.cut().await?;
    let task = one.create_task(&json!({"title": "waits"})).await?;
    task.expect(202);
    pair.mend().await?;
    let listed = other.get("/tasks").await?;
    assert_eq!(listed.json()["items"][0]["sync_state"], "pending");
    let drained = pair.node.syncd(&["drain", "--wait"]).await?;
    drained.expect_code(0);
    pair.cut().await?;
    let listed = other.get("/tasks").await?;
    assert_eq!(
        listed.json()["items"][0]["id"],
        task.id(),
        "{}",
        listed.text()
    );
    other
        .get(&format!("/tasks/{}", task.id()))
        .await?
        .expect(200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_process_knows_makes_whole_what_another_has_buffered_without() -> Result<()> {
    let mut pair = Pair::start().await?;
    let (one, other) = pair.clients();
    let task = one.create_task(&json!({"title": "known to one"})).await?;
    let path = format!("/tasks/{}", task.id());
    pair.cut().await?;
    let blind = other.patch(&path, &json!({"priority": 1})).await?;
    blind.expect(202);
    assert_eq!(blind.json()["entity"], "task", "it doesn't know the task");
    one.patch(&path, &json!({"description": "more"}))
        .await?
        .expect(202);
    let read = other.get(&path).await?;
    read.expect(200);
    let shown = ["title", "description", "priority"].map(|field| read.json()[field].clone());
    assert_eq!(shown, [json!("known to one"), json!("more"), json!(1)]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_that_any_process_knew_shows_beside_what_another_has_buffered() -> Result<()> {
    let mut pair = Pair::start().await?;
    let (one, other) = pair.clients();
    let task = one.create_task(&json!({"title": "old"})).await?;
    let path = format!("/tasks/{}", task.id());
    other.get(&path).await?.expect(200);
    one.patch(&path, &json!({"title": "new"}))
        .await?
        .expect(200);
    pair.cut().await?;
    other
        .patch(&path, &json!({"priority": 1}))
        .await?
        .expect(202);
    one.patch(&path, &json!({"description": "more"}))
        .await?
        .expect(202);
    for client in [&one, &other] {
        let read = client.get(&path).await?;
        let shown = ["title", "description", "priority"].map(|field| read.json()[field].clone());
        assert_eq!(shown, [json!("new"), json!("more"), json!(1)]);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_an_outage_gave_holds_afterwards_also_of_a_task_that_was_unknown() -> Result<()>
{
    let mut pair = Pair::start().await?;
    let (one, other) = pair.clients();
    let task = one.create_task(&json!({"title": "made by one"})).await?;
    let path = format!("/tasks/{}", task.id());
    pair.cut().await?;
    let replaced = other.put(&path, &json!({"title": "by the other"})).await?;
    let tag = replaced.expect(202).expect_header("etag").to_owned();
    let patch = other.request(reqwest::Method::PATCH, &path);
    let patch = patch.header("if-match", &tag).json(&json!({"priority": 1}));
    let patched = other.send(patch).await?;
    patched.expect(202);
    pair.drain_and_cut().await?;
    let end = end_of(&other, &patched).await?;
    assert_eq!(end["state"], "applied", "{end}");
    pair.mend().await?;
    let read = one.get(&path).await?;
    assert_eq!(read.expect(200).json()["title"], "by the other");
    assert_eq!(
        Some(read.expect_header("etag")),
        patched.header("etag"),
        "{}",
        read.text()
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_of_a_profile_which_any_write_makes() -> Result<()> {
    let mut pair = Pair::start().await?;
    let (one, other) = pair.clients();
    one.get("/profile").await?.expect(200);
    pair.cut().await?;
    let blind = other
        .patch("/profile", &json!({"bio": "of the other"}))
        .await?;
    blind.expect(202);
    one.patch("/profile", &json!({"locale": "de"}))
        .await?
        .expect(202);
    let read = other.get("/profile").await?;
    read.expect(200);
    let shown = ["bio", "locale"].map(|field| read.json()[field].clone());
    assert_eq!(shown, [json!("of the other"), json!("de")]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_shows_what_its_process_knows_besides_what_waits() -> Result<()> {
    let mut pair = Pair::start().await?;
    let (one, other) = pair.clients();
    let task = one.create_task(&json!({"title": "first"})).await?;
    let path = format!("/tasks/{}", task.id());
    other
        .patch(&path, &json!({"title": "newer"}))
        .await?
        .expect(200);
    pair.cut().await?;
    let keyed = |client: &Client| {
        let request = client.request(reqwest::Method::PATCH, &path);
        request
            .header("content-type", "application/merge-patch+json")
            .header("idempotency-key", "once")
            .body(r#"{"priority":1}"#)
    };
    one.send(keyed(&one)).await?.expect(202);
    let repeat = other.send(keyed(&other)).await?;
    repeat.expect(202);
    assert_eq!(repeat.expect_header("idempotency-replayed"), "true");
    assert_eq!(repeat.json()["title"], "newer", "{}", repeat.text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_write_takes_nothing_else_of_its_resource_with_it() -> Result<()> {
    let mut pair = Pair::start().await?;
    let (one, other) = pair.clients();
    let task = one.create_task(&json!({"title": "known to one"})).await?;
    let path = format!("/tasks/{}", task.id());
    pair.cut().await?;
    let waiting = one.patch(&path, &json!({"priority": 4})).await?;
    waiting.expect(202);
    let conditional = other
        .request(reqwest::Method::PATCH, &path)
        .header("content-type", "application/merge-patch+json")
        .header("if-match", "\"of nothing\"")
        .body(r#"{"title":"refused"}"#);
    let refused = other.send(conditional).await?;
    refused.expect(202);
    assert_eq!(one.get(&path).await?.json()["title"], "refused");
    pair.drain_and_cut().await?;
    assert_eq!(end_of(&one, &refused).await?["state"], "dead");
    let read = one.get(&path).await?;
    read.expect(200);
    let shown = ["title", "priority", "sync_state"].map(|field| read.json()[field].clone());
    assert_eq!(shown, [json!("known to one"), json!(4), json!("stale")]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_is_known_for_good_whatever_is_refused_after_it() -> Result<()> {
    let mut pair = Pair::start().await?;
    let (one, other) = pair.clients();
    pair.cut().await?;
    let keyed = || {
        let request = one.request(reqwest::Method::POST, "/tasks");
        request
            .header("idempotency-key", "once")
            .json(&json!({"title": "made once"}))
    };
    let task = one.send(keyed()).await?;
    task.expect(202);
    let path = format!("/tasks/{}", task.id());
    one.delete(&path).await?.expect(202);
    pair.drain_and_cut().await?;
    let late = other.patch(&path, &json!({"priority": 1})).await?;
    late.expect(202);
    pair.drain_and_cut().await?;
    assert_eq!(end_of(&one, &late).await?["last_error"], "deleted");
    one.get(&path).await?.expect(404);
    let repeat = one.send(keyed()).await?;
    repeat.expect(202);
    assert_eq!(repeat.json()["entity"], "task", "{}", repeat.text());
    let listed = one.get("/tasks").await?;
    assert_eq!(listed.json()["items"], json!([]), "{}", listed.text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_that_was_recognised_late_is_no_newer_than_the_first() -> Result<()> {
    let mut pair = Pair::start().await?;
    let (one, _) = pair.clients();
    let keyed = || {
        let request = one.request(reqwest::Method::POST, "/tasks");
        request
            .header("idempotency-key", "once")
            .json(&json!({"title": "at first"}))
    };
    let task = one.send(keyed()).await?;
    task.expect(201);
    let path = format!("/tasks/{}", task.id());
    one.patch(&path, &json!({"title": "newer"}))
        .await?
        .expect(200);
    pair.cut().await?;
    let repeat = one.send(keyed()).await?;
    repeat.expect(202);
    pair.drain_and_cut().await?;
    assert_eq!(end_of(&one, &repeat).await?["state"], "applied");
    assert_eq!(one.get(&path).await?.json()["title"], "newer");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_is_known_where_the_first_is_not() -> Result<()> {
    let mut pair = Pair::start().await?;
    let (one, other) = pair.clients();
    let keyed = |client: &Client| {
        let request = client.request(reqwest::Method::POST, "/tasks");
        request
            .header("idempotency-key", "once")
            .json(&json!({"title": "at first"}))
    };
    let task = one.send(keyed(&one)).await?;
    task.expect(201);
    let path = format!("/tasks/{}", task.id());
    pair.cut().await?;
    let repeat = other.send(keyed(&other)).await?;
    repeat.expect(202);
    other.get(&path).await?.expect(200);
    pair.drain_and_cut().await?;
    let read = other.get(&path).await?;
    read.expect(200);
    assert_eq!(read.json()["title"], "at first");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_write_stays_refused_when_its_dead_letter_has_gone() -> Result<()> {
    let mut pair = Pair::start().await?;
    let (one, _) = pair.clients();
    let task = one.create_task(&json!({"title": "stands"})).await?;
    let path = format!("/tasks/{}", task.id());
    pair.cut().await?;
    let conditional = one
        .request(reqwest::Method::DELETE, &path)
        .header("if-match", "\"of nothing\"");
    one.send(conditional).await?.expect(202);
    pair.mend().await?;
    let drained = pair.node.syncd(&["drain", "--wait"]).await?;
    drained.expect_code(0);
    one.get(&path).await?.expect(200);
    let discarded = pair.node.syncd(&["dead", "discard", "--all"]).await?;
    discarded.expect_code(0);
    pair.cut().await?;
    let read = one.get(&path).await?;
    read.expect(200);
    assert_eq!(read.json()["title"], "stands");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_set_before_very_many_other_changes_is_shown_in_the_next_outage() -> Result<()> {
    let mut pair = Pair::start().await?;
    let (one, _) = pair.clients();
    let task = one.create_task(&json!({"title": "long edited"})).await?;
    let path = format!("/tasks/{}", task.id());
    pair.cut().await?;
    one.patch(&path, &json!({"status": "done"}))
        .await?
        .expect(202);
    for edit in 0..100 {
        let change = json!({"description": format!("edit {edit}")});
        one.patch(&path, &change).await?.expect(202);
    }
    pair.drain_and_cut().await?;
    let read = one.get(&path).await?;
    let shown = ["status", "description", "sync_state"].map(|field| read.json()[field].clone());
    assert_eq!(shown, [json!("done"), json!("edit 99"), json!("stale")]);
    Ok(())
}
