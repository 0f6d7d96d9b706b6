//! How much does a damaged, deleted or replaced buffer file cost? As little as
//! possible: the processes go on, everything that can still be read arrives,
//! and what can't is counted and told.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use holdfast_tests::{Client, Node, Postgres, Program, eventually, tokens};
use serde_json::{Value, json};

const DATABASE: &str = "holdfast";
const SETTLE: Duration = Duration::from_secs(60);
const UNAVAILABLE: i32 = 69;
const IO_ERROR: i32 = 74;
const CONFIGURATION: i32 = 78;
/// Some hundred KiB of items: many pages of every kind.
const TASKS: usize = 400;
const PAGE_BYTES: u64 = 4096;

struct Site {
    api: Program,
    syncd: Program,
    postgres: Postgres,
    node: Node,
}

impl Site {
    async fn start() -> Result<Self> {
        let postgres = Postgres::start().await?;
        let url = postgres.create_database(DATABASE).await?;
        let node = Node::new()?
            .with("DATABASE_URL", &url)
            .with("LOG_LEVEL", "warn");
        node.syncd(&["migrate"]).await?.expect_code(0);
        let syncd = node.start_syncd().await?;
        let api = node.start_api().await?;
        api.wait_status(SETTLE, "online").await?;
        Ok(Self {
            api,
            syncd,
            postgres,
            node,
        })
    }

    /// A site with PostgreSQL away and tasks in the buffer; gives their ids.
    async fn with_pending(tasks: usize) -> Result<(Self, BTreeSet<String>)> {
        let mut site = Self::start().await?;
        site.lose_postgres().await?;
        let ids = site.write(tasks, "before").await?;
        Ok((site, ids))
    }

    fn client(&self) -> Client {
        self.api.client(&tokens::valid("somebody"))
    }

    fn buffer(&self) -> PathBuf {
        self.node.buffer_path()
    }

    async fn lose_postgres(&mut self) -> Result<()> {
        self.postgres.kill9().await?;
        self.api.wait_status(SETTLE, "offline").await.map(drop)
    }

    /// Writes tasks, which must all be taken into the buffer.
    async fn write(&self, tasks: usize, words: &str) -> Result<BTreeSet<String>> {
        let client = self.client();
        let mut ids = BTreeSet::new();
        for number in 0..tasks {
            let task =
                json!({"title": format!("{words} {number}"), "description": "d".repeat(500)});
            let answer = client.create_task(&task).await?;
            ids.insert(answer.expect(202).id().to_owned());
        }
        Ok(ids)
    }

    /// Writes one task, for which a process that has just met the damage may
    /// need a second try.
    async fn write_again(&self) -> Result<String> {
        let client = self.client();
        eventually(SETTLE, "a write to be taken", async || {
            match client.create_task(&json!({"title": "after"})).await {
                Ok(answer) if answer.status() == 202 => Ok(answer.id().to_owned()),
                Ok(answer) => {
                    answer.expect_problem(503);
                    Err(answer.text().to_owned())
                }
                Err(error) => Err(format!("{error:#}")),
            }
        })
        .await
    }

    async fn heal(&mut self) -> Result<()> {
        self.postgres.start_again().await?;
        self.api
            .wait_health(SETTLE, "the buffer to be drained", |health| {
                health["status"] == "online" && health["buffer"]["pending"] == 0
            })
            .await
            .map(drop)
    }

    async fn stored(&self) -> Result<BTreeSet<String>> {
        let mut connection = self.postgres.connect_admin(DATABASE).await?;
        let ids: Vec<String> = sqlx::query_scalar("SELECT id::text FROM tasks")
            .fetch_all(&mut connection)
            .await?;
        Ok(ids.into_iter().collect())
    }

    /// Files beside the buffer whose names go on like this.
    fn beside(&self, ending: &str) -> Result<Vec<PathBuf>> {
        let buffer = self.buffer();
        let prefix = format!("{}{ending}", buffer.to_string_lossy());
        let directory = buffer.parent().context("the buffer is in no directory")?;
        let mut found = Vec::new();
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.to_string_lossy().starts_with(&prefix) {
                found.push(path);
            }
        }
        Ok(found)
    }

    async fn wait_salvaged(&self) -> Result<()> {
        eventually(SETTLE, "what was set aside to be salvaged", async || {
            let (waiting, done) = (self.beside(".set-aside-"), self.beside(".salvaged-"));
            match (waiting, done) {
                (Ok(waiting), Ok(done)) if waiting.is_empty() && !done.is_empty() => Ok(()),
                seen => Err(format!("{seen:?}")),
            }
        })
        .await
    }

    /// Has the one damaged item shown, refused and discarded by the id that
    /// the list gives it.
    async fn look_at_damaged_item(&self) -> Result<()> {
        let listed = self.node.syncd(&["dead", "list", "--json"]).await?;
        let listed = listed.expect_code(0).json()?;
        let id = listed[0]["id"].as_str().context("no damaged item")?;
        let looks: [&[&str]; 2] = [&["dead", "show", id, "--json"], &["dead", "export", id]];
        for arguments in looks {
            let shown = self.node.syncd(arguments).await?;
            let text = &shown.expect_code(0).stdout;
            assert!(text.contains("cefore 17"), "{text}");
        }
        let refused = self.node.syncd(&["dead", "retry", id]).await?;
        let text = &refused.expect_code(IO_ERROR).stderr;
        assert!(text.contains("can't be retried"), "{text}");
        let discarded = self.node.syncd(&["dead", "discard", id]).await?;
        assert_eq!(discarded.expect_code(0).stdout.trim(), "discarded: 1");
        let gone = self.node.syncd(&["dead", "show", id]).await?;
        gone.expect_code(UNAVAILABLE);
        Ok(())
    }

    async fn verify(&self) -> Result<(Option<i32>, Value)> {
        let verified = self.node.syncd(&["verify", "--json"]).await?;
        Ok((verified.code, verified.json()?))
    }
}

/// Overwrites a part of a file where it is.
fn overwrite(path: &Path, offset: u64, bytes: &[u8]) -> Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.write_all_at(bytes, offset)?;
    Ok(())
}

fn pages_with(path: &Path, words: &str) -> Result<Vec<u64>> {
    let content = fs::read(path)?;
    let page = usize::try_from(PAGE_BYTES)?;
    let numbered = content.chunks(page).enumerate();
    let found = numbered.filter(|(_, page)| {
        page.windows(words.len())
            .any(|part| part == words.as_bytes())
    });
    found
        .map(|(number, _)| Ok(u64::try_from(number)?))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_deleted_under_running_processes_loses_nothing() -> Result<()> {
    let (mut site, mut accepted) = Site::with_pending(TASKS).await?;
    fs::remove_file(site.buffer())?;
    accepted.extend(site.write(50, "after").await?);
    site.wait_salvaged().await?;
    let health = site.api.health().await?;
    assert_eq!(health["buffer"]["pending"], accepted.len(), "{health}");
    site.heal().await?;
    let missing: Vec<_> = accepted
        .difference(&site.stored().await?)
        .cloned()
        .collect();
    assert_eq!(missing, [""; 0]);
    let log = site.api.log() + &site.syncd.log();
    assert!(log.contains("removed or replaced"), "nobody said so: {log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_replaced_by_an_older_copy_loses_nothing() -> Result<()> {
    let (mut site, mut accepted) = Site::with_pending(20).await?;
    let copy = site.node.directory().join("copy");
    fs::copy(site.buffer(), &copy)?;
    accepted.extend(site.write(TASKS, "later").await?);
    fs::rename(&copy, site.buffer())?;
    accepted.extend(site.write(20, "after").await?);
    site.wait_salvaged().await?;
    site.heal().await?;
    let missing: Vec<_> = accepted
        .difference(&site.stored().await?)
        .cloned()
        .collect();
    assert_eq!(missing, [""; 0]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_all_over_the_file_in_use_is_set_aside_and_service_goes_on() -> Result<()> {
    let (mut site, accepted) = Site::with_pending(TASKS).await?;
    let length = fs::metadata(site.buffer())?.len();
    let garbage: Vec<u8> = (0..length)
        .map(|number| (number * 37 % 253) as u8)
        .collect();
    overwrite(&site.buffer(), 0, &garbage)?;
    let after = site.write_again().await?;
    site.wait_salvaged().await?;
    let health = site.api.health().await?;
    assert!(
        health["buffer"]["damaged_files"].as_u64() >= Some(1),
        "{health}"
    );
    site.heal().await?;
    let stored = site.stored().await?;
    let survived = accepted.intersection(&stored).count();
    eprintln!("garbage: {survived} of {} survived", accepted.len());
    assert!(stored.contains(&after));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn zeroed_pages_cost_only_what_was_in_them() -> Result<()> {
    let (mut site, accepted) = Site::with_pending(TASKS).await?;
    site.api.kill9().await?;
    site.syncd.kill9().await?;
    let zeros = vec![0; usize::try_from(PAGE_BYTES)?];
    // All pages that ever held that item: the newest is among them.
    for page in pages_with(&site.buffer(), "before 200")? {
        overwrite(&site.buffer(), page * PAGE_BYTES, &zeros)?;
    }
    let (code, found) = site.verify().await?;
    assert_eq!(code, Some(IO_ERROR), "{found}");
    site.syncd.restart().await?;
    site.api.restart().await?;
    let after = site.write_again().await?;
    site.wait_salvaged().await?;
    site.heal().await?;
    let stored = site.stored().await?;
    let survived = accepted.intersection(&stored).count();
    eprintln!("zeroed pages: {survived} of {} survived", accepted.len());
    assert!(stored.contains(&after));
    assert!(
        (TASKS * 2 / 3..TASKS).contains(&survived),
        "{survived} survived"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_file_is_carved() -> Result<()> {
    let (mut site, accepted) = Site::with_pending(TASKS).await?;
    site.api.kill9().await?;
    site.syncd.kill9().await?;
    let length = fs::metadata(site.buffer())?.len();
    File::options()
        .write(true)
        .open(site.buffer())?
        .set_len(length * 3 / 4)?;
    let (code, _) = site.verify().await?;
    assert_eq!(code, Some(IO_ERROR));
    let exported = site
        .node
        .syncd(&["salvage", "--export", &site.buffer().to_string_lossy()])
        .await?;
    let lines = exported.stdout.lines().count();
    site.syncd.restart().await?;
    site.api.restart().await?;
    site.wait_salvaged().await?;
    site.heal().await?;
    let stored = site.stored().await?;
    let survived = accepted.intersection(&stored).count();
    eprintln!(
        "truncated to 3/4: {survived} of {} survived, {lines} exported",
        accepted.len()
    );
    assert!(survived >= TASKS / 4, "only {survived} survived");
    assert_eq!(lines, survived);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_an_item_sets_that_item_aside_and_no_other() -> Result<()> {
    let (mut site, accepted) = Site::with_pending(40).await?;
    site.api.kill9().await?;
    site.syncd.kill9().await?;
    let content = fs::read(site.buffer())?;
    let words = b"before 17";
    for (at, _) in content
        .windows(words.len())
        .enumerate()
        .filter(|(_, part)| part == words)
    {
        overwrite(&site.buffer(), at as u64, b"c")?;
    }
    let (code, found) = site.verify().await?;
    assert_eq!(code, Some(IO_ERROR), "{found}");
    site.syncd.restart().await?;
    site.api.restart().await?;
    site.heal().await?;
    let survived = accepted.intersection(&site.stored().await?).count();
    assert_eq!(survived, accepted.len() - 1);
    let health = site.api.health().await?;
    assert_eq!(health["buffer"]["damaged_items"], 1, "{health}");
    let dead = site.node.syncd(&["dead", "export", "--all"]).await?;
    assert!(
        dead.expect_code(0).stdout.contains("cefore 17"),
        "{}",
        dead.stdout
    );
    site.look_at_damaged_item().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_buffer_put_under_running_processes_is_not_drained() -> Result<()> {
    let (foreign, _) = Site::with_pending(5).await?;
    let mut site = Site::start().await?;
    let copy = site.node.directory().join("copy");
    fs::copy(foreign.buffer(), &copy)?;
    fs::rename(&copy, site.buffer())?;
    let ended = site.syncd.wait_exit(SETTLE).await?;
    assert_eq!(ended.code(), Some(CONFIGURATION), "{}", site.syncd.log());
    assert_eq!(site.stored().await?, BTreeSet::new());
    assert!(site.syncd.log().contains("another database"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_file_is_whole_beside_running_processes_and_gives_its_space_back() -> Result<()> {
    let (mut site, accepted) = Site::with_pending(TASKS).await?;
    let (code, found) = site.verify().await?;
    assert_eq!(code, Some(0), "{found}");
    assert_eq!(found["items"], accepted.len(), "{found}");
    site.heal().await?;
    let (code, found) = site.verify().await?;
    assert_eq!(code, Some(0), "{found}");
    Ok(())
}
