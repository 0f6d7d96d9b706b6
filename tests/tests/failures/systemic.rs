//! A store that refuses everything, or is away: nobody is to blame, so nobody is counted, and all goes on by itself.

use std::time::Duration;

use anyhow::Result;
use holdfast_tests::eventually;
use serde_json::json;

use crate::site::{SETTLE, Site, assert_untried, titles};

/// A counted try is a dead letter.
const NO_TRY: [(&str, &str); 1] = [("MAX_RETRY_ATTEMPTS", "1")];

const ITEMS: usize = 150;

/// Several cycles, each of which could count a try.
const A_WHILE: Duration = Duration::from_secs(4);

/// Something that makes PostgreSQL refuse everything.
struct Fault {
    /// In which database its statements are to be run.
    database: &'static str,
    breaks: &'static str,
    mends: &'static str,
    /// What is said of it.
    said: &'static str,
}

/// Breaks something in an outage, looks what is said of it afterwards, mends it, and expects everything to be there.
async fn stops_and_heals(fault: Fault) -> Result<()> {
    let mut site = Site::start(&NO_TRY).await?;
    site.cut().await?;
    site.create(&titles("task", ITEMS), 202).await?;
    site.sql_as_admin(fault.database, fault.breaks).await?;
    site.heal().await?;
    let look = async || {
        let log = site.syncd.log();
        let is_said = log.contains("lane stopped") && log.contains(fault.said);
        if is_said { Ok(()) } else { Err(log) }
    };
    eventually(SETTLE, "the journal to say why the lane stopped", look).await?;
    site.syncd_shows("holdfast_lane_stopped{lane=\"postgres\"} 1")
        .await?;
    // Whenever it isn't just trying again.
    site.node.wait_told(SETTLE, fault.said).await?;

    // What is written now can't go straight there either, and must not fail for it.
    for title in titles("meanwhile", 5) {
        let written = site.client().create_task(&json!({"title": title})).await?;
        written.expect_in(&[201, 202]);
    }
    tokio::time::sleep(A_WHILE).await;
    let items = site.items().await?;
    assert_untried(&items);
    assert!(items.len() >= ITEMS, "{} are left", items.len());
    assert_eq!(site.dead().await?, 0);

    site.sql_as_admin(fault.database, fault.mends).await?;
    site.drained(SETTLE).await?;
    site.syncd_shows("holdfast_lane_stopped{lane=\"postgres\"} 0")
        .await?;
    assert_eq!(site.dead().await?, 0);
    let rows = site.number("SELECT count(*) FROM tasks").await?;
    assert_eq!(rows, i64::try_from(ITEMS + 5)?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_column_stops_the_lane_until_it_is_there() -> Result<()> {
    stops_and_heals(Fault {
        database: "holdfast",
        breaks: "ALTER TABLE tasks RENAME COLUMN tags TO labels",
        mends: "ALTER TABLE tasks RENAME COLUMN labels TO tags",
        said: "the schema is missing or too old: run syncd migrate",
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_table_stops_the_lane_until_it_is_there() -> Result<()> {
    stops_and_heals(Fault {
        database: "holdfast",
        breaks: "ALTER TABLE applied_operations RENAME TO elsewhere",
        mends: "ALTER TABLE elsewhere RENAME TO applied_operations",
        said: "the schema is missing or too old: run syncd migrate",
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_right_stops_the_lane_until_it_is_given_back() -> Result<()> {
    stops_and_heals(Fault {
        database: "holdfast",
        breaks: "ALTER TABLE tasks OWNER TO postgres",
        mends: "ALTER TABLE tasks OWNER TO holdfast",
        said: "the database role lacks a right",
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_not_log_in_stops_the_lane_until_it_may() -> Result<()> {
    stops_and_heals(Fault {
        database: "postgres",
        breaks: "ALTER ROLE holdfast NOLOGIN",
        mends: "ALTER ROLE holdfast LOGIN",
        said: "postgres refuses the user or the password",
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_database_stops_the_lane_until_it_is_there() -> Result<()> {
    stops_and_heals(Fault {
        database: "postgres",
        breaks: "ALTER DATABASE holdfast RENAME TO elsewhere",
        mends: "ALTER DATABASE elsewhere RENAME TO holdfast",
        said: "the database does not exist",
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn very_many_different_items_failing_at_once_are_not_to_blame() -> Result<()> {
    stops_and_heals(Fault {
        database: "holdfast",
        breaks: "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN RAISE EXCEPTION 'a bad deployment'; END $$;
             CREATE TRIGGER refuse BEFORE INSERT ON tasks FOR EACH ROW EXECUTE FUNCTION refuse();",
        mends: "DROP TRIGGER refuse ON tasks",
        said: "everything it is given fails",
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn outages_in_the_middle_of_a_drain_use_no_try() -> Result<()> {
    let mut site = Site::start(&NO_TRY).await?;
    site.cut().await?;
    let count = 4_000;
    site.create(&titles("task", count), 202).await?;
    for _ in 0..10 {
        site.heal().await?;
        let before = site.api.health().await?["buffer"]["pending"].clone();
        let before = before.as_u64().unwrap_or_default();
        site.pending_is(SETTLE, |pending| pending == 0 || pending < before)
            .await?;
        site.cut().await?;
        let items = site.items().await?;
        assert_untried(&items);
    }
    site.heal().await?;
    site.drained(SETTLE).await?;
    assert_eq!(site.dead().await?, 0);
    for table in ["tasks", "applied_operations"] {
        let rows = site
            .number(&format!("SELECT count(*) FROM {table}"))
            .await?;
        assert_eq!(rows, i64::try_from(count)?, "{table}");
    }
    Ok(())
}
