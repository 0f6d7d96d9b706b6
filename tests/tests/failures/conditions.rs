//! Conditions on buffered writes: judged when they are applied, and once.

use std::fs;

use anyhow::Result;
use holdfast_tests::{Answer, Client};
use reqwest::Method;
use serde_json::{Value, json};

use crate::site::{SETTLE, Site, titles};

async fn patch_if(client: &Client, path: &str, patch: &Value, etag: &str) -> Result<Answer> {
    let request = client
        .request(Method::PATCH, path)
        .header("content-type", "application/merge-patch+json")
        .header("if-match", etag)
        .body(patch.to_string());
    client.send(request).await
}

/// A task, three writes of it in a row each of which demands what the one before left, and one whose demand is met no
/// more by then. Gives the four operations' answers.
async fn chain(client: &Client, path: &str, etag: &str) -> Result<[Answer; 4]> {
    let first = patch_if(client, path, &json!({"title": "one"}), etag).await?;
    let tag = first.expect(202).expect_header("etag").to_owned();
    let second = patch_if(client, path, &json!({"title": "two"}), &tag).await?;
    let tag = second.expect(202).expect_header("etag").to_owned();
    let third = patch_if(client, path, &json!({"description": "three"}), &tag).await?;
    third.expect(202);
    let late = patch_if(client, path, &json!({"title": "late"}), etag).await?;
    Ok([first, second, third, late])
}

async fn expect_fates(site: &Site, chain: &[Answer; 4]) -> Result<()> {
    let [first, second, third, late] = chain;
    for met in [first, second, third] {
        assert_eq!(site.fate(met).await?["state"], "applied");
    }
    // The node may know that it can't be met, or leave that to PostgreSQL.
    if late.status() == 202 {
        let fate = site.fate(late).await?;
        assert_eq!(fate["last_error"], "precondition_failed", "{fate}");
    } else {
        late.expect_problem(412);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_conditional_writes_is_judged_in_order_when_it_is_applied() -> Result<()> {
    let mut site = Site::start(&[("MAX_RETRY_ATTEMPTS", "1")]).await?;
    let client = site.client();
    let seen = client.create_task(&json!({"title": "seen"})).await?;
    let seen_path = format!("/tasks/{}", seen.expect(201).id());
    site.cut().await?;
    let made = client.create_task(&json!({"title": "made"})).await?;
    let made_path = format!("/tasks/{}", made.expect(202).id());
    let on_seen = chain(&client, &seen_path, seen.expect_header("etag")).await?;
    let on_made = chain(&client, &made_path, made.expect_header("etag")).await?;
    site.create(&titles("beside", 50), 202).await?;
    site.heal().await?;
    site.drained(SETTLE).await?;
    for (path, chain) in [(&seen_path, &on_seen), (&made_path, &on_made)] {
        expect_fates(&site, chain).await?;
        let read = client.get(path).await?;
        let task = read.expect(200).json();
        assert_eq!(
            (&task["title"], &task["description"]),
            (&json!("two"), &json!("three"))
        );
        assert_eq!(read.expect_header("etag"), chain[2].expect_header("etag"));
    }
    Ok(())
}

/// Who replaces a task that was made a moment ago names an id as young as that of a task that is being made.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_however_young_is_replaced_as_it_was_seen() -> Result<()> {
    let mut site = Site::start(&[("MAX_RETRY_ATTEMPTS", "1")]).await?;
    let client = site.client();
    let put = async |path: &str, condition: (&str, &str), title: &str| {
        let request = client.request(Method::PUT, path);
        let request = request.header(condition.0, condition.1);
        client.send(request.json(&json!({"title": title}))).await
    };
    let first = client.create_task(&json!({"title": "first"})).await?;
    let path = format!("/tasks/{}", first.expect(201).id());
    let tag = first.expect_header("etag");
    put(&path, ("if-match", "\"another\""), "wrong")
        .await?
        .expect_problem(412);
    put(&path, ("if-none-match", "*"), "wrong")
        .await?
        .expect_problem(412);
    let second = put(&path, ("if-match", tag), "second").await?;
    let tag = second.expect(200).expect_header("etag");
    put(&path, ("if-match", first.expect_header("etag")), "late")
        .await?
        .expect_problem(412);
    put(&path, ("if-match", "*"), "third").await?.expect(200);
    put(&path, ("if-match", tag), "late")
        .await?
        .expect_problem(412);

    let fresh = client.create_task(&json!({"title": "fresh"})).await?;
    let path = format!("/tasks/{}", fresh.expect(201).id());
    site.cut().await?;
    let met = put(&path, ("if-match", fresh.expect_header("etag")), "replaced").await?;
    met.expect(202);
    site.heal().await?;
    site.drained(SETTLE).await?;
    assert_eq!(site.fate(&met).await?["state"], "applied");
    let read = client.get(&path).await?;
    assert_eq!(read.expect(200).json()["title"], "replaced");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_after_a_crash_before_settling_answers_the_same() -> Result<()> {
    let mut site = Site::start(&[("MAX_RETRY_ATTEMPTS", "1")]).await?;
    let client = site.client();
    let seen = client.create_task(&json!({"title": "seen"})).await?;
    let path = format!("/tasks/{}", seen.expect(201).id());
    site.cut().await?;
    let chain = chain(&client, &path, seen.expect_header("etag")).await?;
    site.create(&titles("beside", 50), 202).await?;

    // What the file is after a crash between apply and settle: as before the drain.
    let buffer = site.node.buffer_path();
    site.api.kill9().await?;
    site.syncd.kill9().await?;
    let before = fs::read(&buffer)?;
    site.heal().await?;
    site.node.syncd(&["drain", "--wait"]).await?.expect_code(0);
    fs::write(&buffer, before)?;
    let moved = "UPDATE tasks SET title = 'three', title_stamp = title_stamp + (1 << 22) WHERE description <> ''";
    site.sql(moved).await?;

    site.syncd.restart().await?;
    site.api.restart().await?;
    site.drained(SETTLE).await?;
    expect_fates(&site, &chain).await?;
    assert_eq!(
        site.number("SELECT count(*) FROM applied_operations WHERE state = 'applied'")
            .await?,
        53
    );
    let read = client.get(&path).await?;
    assert_eq!(
        read.expect(200).json()["title"],
        "three",
        "a newer write stays"
    );
    Ok(())
}
