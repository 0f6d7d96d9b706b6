//! Rows and tables that others keep locked, and transactions in each other's way: nobody's fault, and nobody else's
//! trouble.

use std::time::{Duration, Instant};

use anyhow::Result;
use holdfast_tests::stall_watch::{OUTAGE, Stall, StallWatch};
use serde_json::json;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Executor};

use crate::site::{SETTLE, Site, assert_untried, titles};

/// A counted try is a dead letter.
const NO_TRY: [(&str, &str); 1] = [("MAX_RETRY_ATTEMPTS", "1")];

/// Rather more than it takes syncd to look at a locked row again.
const SOON: Duration = Duration::from_secs(15);

/// Three thousand items take a second or two; waiting for each locked row would take more.
const GOOD: Duration = Duration::from_secs(5);

/// Locks what a statement locks until the connection is closed.
pub async fn hold(site: &Site, statement: &str) -> Result<PgConnection> {
    let mut connection = site.connect().await?;
    connection.execute("BEGIN").await?;
    connection
        .execute(AssertSqlSafe(statement.to_owned()))
        .await?;
    Ok(connection)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_locked_for_a_minute_delays_nobody_else_and_is_applied_once_released() -> Result<()> {
    let mut site = Site::start(&NO_TRY).await?;
    let task = format!("/tasks/{}", site.create_one("before", 201).await?);
    let client = site.client();
    site.cut().await?;
    let patched = client.patch(&task, &json!({"title": "after"})).await?;
    patched.expect(202);
    site.create(&titles("other", 300), 202).await?;

    let holder = hold(&site, "SELECT FROM tasks WHERE title = 'before' FOR UPDATE").await?;
    let locked_at = Instant::now();
    site.heal().await?;
    site.pending_is(SOON, |pending| pending == 1).await?;
    eprintln!("300 others applied after {:?}", locked_at.elapsed());

    let follower = client.patch(&task, &json!({"description": "too"})).await?;
    follower.expect(202);
    let (mut slowest, mut buffered) = (Duration::ZERO, 0);
    let watch = StallWatch::start()?;
    while locked_at.elapsed() < Duration::from_secs(61) {
        let written = client.create_task(&json!({"title": "meanwhile"})).await?;
        slowest = slowest.max(written.expect_in(&[201, 202]).elapsed());
        buffered += u32::from(written.status() == 202);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    eprintln!("slowest write while the row was locked: {slowest:?}, {buffered} buffered");
    let longest = watch.stop()?.iter().map(Stall::length).max();
    assert!(
        buffered == 0 || longest > Some(OUTAGE),
        "{buffered} writes were buffered though PostgreSQL was up; the machine stood still for {longest:?}"
    );
    assert_eq!(site.operation(&patched).await?["state"], "pending");
    site.pending_is(SOON, |pending| pending == 2).await?;
    let items = site.items().await?;
    assert_eq!(items.len(), 2, "{items:?}");
    assert_untried(&items);

    holder.close().await?;
    let released_at = Instant::now();
    site.drained(SOON).await?;
    eprintln!("applied {:?} after the release", released_at.elapsed());
    assert_eq!(site.fate(&patched).await?["state"], "applied");
    assert_eq!(site.fate(&follower).await?["state"], "applied");
    assert_eq!(site.dead().await?, 0);
    let title = site.text("SELECT title || ', ' || description FROM tasks WHERE description <> ''");
    assert_eq!(title.await?, "after, too");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn with_many_rows_locked_the_rest_goes_on_at_a_good_rate() -> Result<()> {
    const LOCKED: usize = 25;
    const REST: usize = 3_000;
    let mut site = Site::start(&NO_TRY).await?;
    let tasks = site.create(&titles("locked", LOCKED), 201).await?;
    site.cut().await?;
    for task in &tasks {
        let path = format!("/tasks/{}", task.id());
        let patch = json!({"description": "written"});
        site.client().patch(&path, &patch).await?.expect(202);
    }
    site.create(&titles("free", REST), 202).await?;

    let holder = hold(&site, "SELECT FROM tasks FOR UPDATE").await?;
    site.heal().await?;
    site.pending_is(SETTLE, |pending| pending < (LOCKED + REST) as u64)
        .await?;
    let (began, watch) = (Instant::now(), StallWatch::start()?);
    site.pending_is(SETTLE, |pending| pending == LOCKED as u64)
        .await?;
    let took = began.elapsed();
    eprintln!("{REST} beside {LOCKED} locked ones took {took:?}");
    let good = GOOD + watch.total()?;
    assert!(took < good, "the rest waited: {took:?}");
    assert_untried(&site.items().await?);

    holder.close().await?;
    site.drained(SOON).await?;
    assert_eq!(site.dead().await?, 0);
    let written = "SELECT count(*) FROM tasks WHERE description = 'written'";
    assert_eq!(site.number(written).await?, LOCKED as i64);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_table_pauses_the_lane_which_goes_on_when_it_is_free() -> Result<()> {
    let mut site = Site::start(&NO_TRY).await?;
    site.cut().await?;
    site.create(&titles("task", 200), 202).await?;
    let holder = hold(&site, "LOCK TABLE tasks IN SHARE MODE").await?;
    site.heal().await?;
    let look = async || {
        let log = site.syncd.log();
        if log.contains("lane paused") {
            Ok(())
        } else {
            Err(log)
        }
    };
    holdfast_tests::eventually(SETTLE, "the journal to say so", look).await?;
    assert_untried(&site.items().await?);
    holder.close().await?;
    site.drained(SOON).await?;
    assert_eq!(site.dead().await?, 0);
    assert_eq!(site.number("SELECT count(*) FROM tasks").await?, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_races_between_transactions_use_no_try() -> Result<()> {
    let mut site = Site::start(&NO_TRY).await?;
    // A sequence counts attempts: what a transaction takes from it isn't rolled back.
    site.sql(
        "CREATE SEQUENCE attempts;
         CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS $$
         DECLARE attempt bigint;
         BEGIN
             IF NEW.title NOT LIKE 'unlucky%' THEN RETURN NEW; END IF;
             attempt := nextval('attempts');
             IF attempt <= 4 THEN RAISE EXCEPTION 'serialization' USING ERRCODE = '40001'; END IF;
             IF attempt <= 8 THEN RAISE EXCEPTION 'deadlock' USING ERRCODE = '40P01'; END IF;
             IF attempt <= 12 THEN RAISE EXCEPTION 'canceled' USING ERRCODE = '57014'; END IF;
             RETURN NEW;
         END $$;
         CREATE TRIGGER lose BEFORE INSERT ON tasks FOR EACH ROW EXECUTE FUNCTION lose();",
    )
    .await?;
    site.cut().await?;
    let mut wanted = titles("lucky", 100);
    wanted.splice(40..40, titles("unlucky", 3));
    site.create(&wanted, 202).await?;
    site.heal().await?;
    site.drained(SETTLE).await?;
    assert_eq!(site.dead().await?, 0);
    assert_eq!(site.number("SELECT count(*) FROM tasks").await?, 103);
    assert!(site.number("SELECT last_value FROM attempts").await? > 12);
    Ok(())
}
