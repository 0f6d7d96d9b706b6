//! Items that PostgreSQL refuses for what is in them: they alone end, after their tries, and say why.

use std::time::{Duration, Instant};

use anyhow::Result;
use holdfast_tests::{Flow, tokens};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::site::{SETTLE, Site, node_on, operation_of, titles};

/// The tries of one item are spread over at least this.
const LEAST_SPREAD: Duration = Duration::from_secs(30);

/// And over no more than this, jitter included.
const MOST_SPREAD: Duration = Duration::from_secs(60);

/// Refuses two titles: one by a check (23514), one by a trigger (P0001).
const POISON: &str = "
    ALTER TABLE tasks ADD CONSTRAINT no_poison CHECK (title <> 'checked');
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.title LIKE 'raised%' THEN RAISE EXCEPTION 'not this one'; END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON tasks FOR EACH ROW EXECUTE FUNCTION refuse();";

const ANTIDOTE: &str = "ALTER TABLE tasks DROP CONSTRAINT no_poison; DROP TRIGGER refuse ON tasks; DROP FUNCTION refuse();";

/// Longer than nodes on one machine differ about the time.
const AGREEMENT: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn poisoned_items_die_of_their_own_fault_and_are_revived_with_what_waited_for_them()
-> Result<()> {
    let mut site = Site::start(&[]).await?;
    site.sql(POISON).await?;
    site.cut().await?;
    let mut wanted = titles("sound", 120);
    wanted.insert(30, "checked".to_owned());
    wanted.insert(80, "raised".to_owned());
    let answers = site.create(&wanted, 202).await?;
    let (checked, raised) = (&answers[30], &answers[80]);
    let path = format!("/tasks/{}", checked.id());
    let client = site.client();
    // Not its title: together with a later, sound one the create would be applied after all.
    let follower = client
        .patch(&path, &json!({"description": "first"}))
        .await?;
    follower.expect(202);
    let last = client
        .patch(&path, &json!({"description": "second"}))
        .await?;
    last.expect(202);

    let began = Instant::now();
    site.heal().await?;
    site.pending_is(SETTLE, |pending| pending == 4).await?;
    let tried = site.operation(checked).await?;
    assert_eq!(
        (&tried["state"], &tried["retries"]),
        (&json!("pending"), &json!(1))
    );
    assert!(tried["last_error"].is_string(), "{tried}");
    site.drained(MOST_SPREAD).await?;
    let spread = began.elapsed();
    assert!(
        spread >= LEAST_SPREAD - Duration::from_secs(1),
        "{spread:?}"
    );

    for poisoned in [checked, raised] {
        let ended = site.operation(poisoned).await?;
        assert_eq!(ended["state"], "dead", "{ended}");
        let reason = ended["last_error"].as_str().unwrap_or_default();
        assert!(reason.starts_with("postgres refuses the data"), "{ended}");
        assert_eq!(ended["retries"], 2, "{ended}");
    }
    let blocked = format!("blocked_by {}", operation_of(checked)?);
    for following in [&follower, &last] {
        assert_eq!(
            site.operation(following).await?["last_error"],
            json!(blocked)
        );
    }
    assert_eq!(site.number("SELECT count(*) FROM tasks").await?, 120);
    client.get(&path).await?.expect_problem(404);

    site.sql(ANTIDOTE).await?;
    let create = operation_of(checked)?;
    let retried = site.node.syncd(&["dead", "retry", &create]).await?;
    assert_eq!(retried.expect_code(0).stdout.trim(), "queued again: 3");
    site.drained(SETTLE).await?;
    let read = client.get(&path).await?;
    assert_eq!(read.expect(200).json()["description"], "second");
    assert_eq!(site.dead().await?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poisoned_item_in_a_batch_of_2000_is_found_and_nothing_is_applied_twice() -> Result<()> {
    let settings = [("MAX_RETRY_ATTEMPTS", "1"), ("SYNC_BATCH_SIZE", "2000")];
    let mut site = Site::start(&settings).await?;
    site.sql(POISON).await?;
    site.sql(
        "CREATE TABLE inserted (id uuid);
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN INSERT INTO inserted VALUES (NEW.id); RETURN NULL; END $$;
         CREATE TRIGGER note AFTER INSERT OR UPDATE ON tasks FOR EACH ROW EXECUTE FUNCTION note();",
    )
    .await?;
    site.cut().await?;
    let mut wanted = titles("sound", 2_000);
    wanted[1_234] = "raised".to_owned();
    site.create(&wanted, 202).await?;
    site.heal().await?;
    site.drained(SETTLE).await?;
    assert_eq!(site.dead().await?, 1);
    for query in [
        "SELECT count(*) FROM tasks",
        "SELECT count(*) FROM inserted",
        "SELECT count(DISTINCT id) FROM inserted",
        "SELECT count(*) FROM applied_operations WHERE state = 'applied'",
    ] {
        assert_eq!(site.number(query).await?, 1_999, "{query}");
    }
    let letters = site.letters().await?;
    assert_eq!(letters[0]["fields"]["title"], "raised", "{letters:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_of_what_is_not_there_waits_for_its_create_and_dies_without_it() -> Result<()> {
    let mut site = Site::start(&[]).await?;
    let (mut other_way, other_node) = node_on(&site.postgres, &[]).await?;
    let other_api = other_node.start_api().await?;
    let _other_syncd = other_node.start_syncd().await?;
    other_api.wait_status(SETTLE, "online").await?;
    other_way.set(Flow::Cut).await?;
    other_api.wait_status(SETTLE, "offline").await?;
    site.cut().await?;

    let (comes, never) = (Uuid::new_v4(), Uuid::new_v4());
    let client = site.client();
    let other = other_api.client(&tokens::valid("somebody"));
    let path = format!("/tasks/{comes}");
    let created = other
        .put(&path, &json!({"title": "made elsewhere"}))
        .await?;
    created.expect(202);
    // Two nodes agree on the time to within the round trip of a probe: what comes later by more is surely newer.
    tokio::time::sleep(AGREEMENT).await;
    let early = client.patch(&path, &json!({"title": "patched"})).await?;
    let orphan = client
        .patch(&format!("/tasks/{never}"), &json!({"title": "patched"}))
        .await?;
    for accepted in [&early, &orphan] {
        let body = accepted.expect(202).json();
        assert_eq!(
            body["operation"], "update",
            "the operation is the body: {body}"
        );
        assert!(accepted.header("etag").is_none());
    }

    let began = Instant::now();
    site.heal().await?;
    let waits = |operation: &Value| operation["retries"] == 1 && operation["state"] == "pending";
    holdfast_tests::eventually(SETTLE, "the first try", async || {
        let operation = site.operation(&early).await;
        match operation {
            Ok(operation) if waits(&operation) => Ok(()),
            Ok(operation) => Err(operation.to_string()),
            Err(error) => Err(format!("{error:#}")),
        }
    })
    .await?;
    other_way.set(Flow::Pass).await?;
    assert_eq!(site.fate(&early).await?["state"], "applied");
    let title = site.text("SELECT title FROM tasks").await?;
    assert_eq!(title, "patched", "the patch is the newer write");

    site.drained(MOST_SPREAD).await?;
    assert!(began.elapsed() >= LEAST_SPREAD - Duration::from_secs(1));
    let ended = site.operation(&orphan).await?;
    assert_eq!(
        (&ended["state"], &ended["last_error"]),
        (&json!("dead"), &json!("not_found"))
    );
    Ok(())
}
