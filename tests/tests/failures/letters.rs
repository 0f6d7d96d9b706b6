//! Dead letters that have left the buffer: kept in the archive, and retried from there.

use std::fs::OpenOptions;
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result};
use holdfast_shared::buffer::{Buffer, archive_directory};
use holdfast_shared::config::BufferConfig;
use serde_json::json;

use crate::site::{SETTLE, Site, titles};

/// Every accepted operation is in a known state.
const BALANCED: &str = "holdfast_conservation_imbalance 0";

const IO_ERROR: i32 = 74;

/// Has the buffer's own retention run as if the letters were past their age.
async fn archive(site: &Site) -> Result<String> {
    let path = site.node.buffer_path();
    let config = BufferConfig {
        path: path.clone(),
        max_items: 1,
        retention: Duration::ZERO,
    };
    let buffer = tokio::task::spawn_blocking(move || Buffer::open(&config)).await??;
    while buffer.retain(true).await?.more {}
    buffer.close();
    let file = std::fs::read_dir(archive_directory(&path))?.next();
    let file = file.context("nothing was archived")??;
    Ok(file.path().display().to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_of_the_archive_are_retried_in_order_and_counted() -> Result<()> {
    let mut site = Site::start(&[("MAX_RETRY_ATTEMPTS", "1")]).await?;
    site.sql("ALTER TABLE tasks ADD CONSTRAINT no_poison CHECK (title NOT LIKE 'poison%')")
        .await?;
    site.cut().await?;
    site.create(&titles("sound", 20), 202).await?;
    let created = site.create_one("poison", 202).await?;
    let path = format!("/tasks/{created}");
    let client = site.client();
    let follower = client
        .patch(&path, &json!({"description": "of it"}))
        .await?;
    follower.expect(202);
    site.heal().await?;
    site.drained(SETTLE).await?;
    assert_eq!(site.dead().await?, 2);
    for (limit, is_cut_off) in [("1", true), ("2", false)] {
        let limited = ["dead", "list", "--json", "--limit", limit];
        let limited = site.node.syncd(&limited).await?;
        let shown = limited.expect_code(0).json()?;
        assert_eq!(
            shown.as_array().map(|letters| letters.len().to_string()),
            Some(limit.to_owned())
        );
        assert_eq!(limited.stderr.contains("there are more"), is_cut_off);
    }

    let file = archive(&site).await?;
    let emptied = |health: &serde_json::Value| health["buffer"]["dead"] == 0;
    site.api
        .wait_health(SETTLE, "no dead letter", emptied)
        .await?;
    site.syncd_shows(BALANCED).await?;
    let listed = site
        .node
        .syncd(&["dead", "list", "--json", "--from", &file])
        .await?;
    assert_eq!(
        listed.expect_code(0).json()?.as_array().map(Vec::len),
        Some(2)
    );

    let mut torn = OpenOptions::new().append(true).open(&file)?;
    torn.write_all(b"{\"operation_id\": \"\xff")?;
    let listed = site
        .node
        .syncd(&["dead", "list", "--json", "--from", &file])
        .await?;
    let known = listed.expect_code(IO_ERROR).json()?;
    assert_eq!(known.as_array().map(Vec::len), Some(2));
    assert!(listed.stderr.contains("line 3"), "{}", listed.stderr);

    site.sql("ALTER TABLE tasks DROP CONSTRAINT no_poison")
        .await?;
    let retried = site.node.syncd(&["dead", "retry", "--from", &file]).await?;
    assert_eq!(
        retried.expect_code(IO_ERROR).stdout.trim(),
        "queued again: 2"
    );
    assert!(retried.stderr.contains("line 3"), "{}", retried.stderr);
    site.drained(SETTLE).await?;
    let read = client.get(&path).await?;
    assert_eq!(read.expect(200).json()["description"], "of it");
    let again = site.node.syncd(&["dead", "retry", "--from", &file]).await?;
    assert_eq!(again.expect_code(IO_ERROR).stdout.trim(), "queued again: 0");
    site.syncd_shows(BALANCED).await?;
    Ok(())
}
