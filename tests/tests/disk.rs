//! Is "full" clean? A 64 MB file system filled by buffered writes and by a
//! foreign file, and the item cap: refusals are 503 with Retry-After, nothing
//! accepted is lost, draining still works, service resumes by itself.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use holdfast_tests::{Answer, Client, Node, Postgres, Program, SmallDisk, eventually, tokens};
use serde_json::{Value, json};

const DATABASE: &str = "holdfast";
const DISK_MIB: u64 = 64;
const SETTLE: Duration = Duration::from_secs(60);
/// Longest time until a small disk is full, however slow it is.
const FILLED: Duration = Duration::from_secs(300);
/// About what the largest task takes: the disk is full after some thousand.
const DESCRIPTION_CHARACTERS: usize = 9_000;
const WRITERS: usize = 8;

struct Site {
    // In the order in which they must end.
    api: Program,
    syncd: Program,
    postgres: Postgres,
    node: Node,
    disk: Option<SmallDisk>,
}

impl Site {
    async fn start(disk: Option<SmallDisk>, settings: &[(&str, &str)]) -> Result<Self> {
        let postgres = Postgres::start().await?;
        let url = postgres.create_database(DATABASE).await?;
        let mut node = Node::new()?.with("DATABASE_URL", &url);
        if let Some(disk) = &disk {
            node.set(
                "BUFFER_PATH",
                &disk.path().join("data/buffer.redb").to_string_lossy(),
            );
        }
        node.set("LOG_LEVEL", "warn");
        for (name, value) in settings {
            node.set(name, value);
        }
        node.syncd(&["migrate"]).await?.expect_code(0);
        let syncd = node.start_syncd().await?;
        let api = node.start_api().await?;
        api.wait_status(SETTLE, "online").await?;
        Ok(Self {
            api,
            syncd,
            postgres,
            node,
            disk,
        })
    }

    fn client(&self) -> Client {
        self.api.client(&tokens::valid("filler"))
    }

    fn ballast(&self) -> PathBuf {
        let mut path = self.node.buffer_path().into_os_string();
        path.push(".ballast");
        path.into()
    }

    async fn lose_postgres(&mut self) -> Result<()> {
        self.postgres.kill9().await?;
        self.api.wait_status(SETTLE, "offline").await.map(drop)
    }

    async fn wait_buffer_state(&self, state: &str) -> Result<Value> {
        let what = format!("the buffer to be {state}");
        self.api
            .wait_health(SETTLE, &what, |health| health["buffer"]["state"] == state)
            .await
    }

    async fn wait_drained(&self) -> Result<Value> {
        self.api
            .wait_health(SETTLE, "the buffer to be drained", |health| {
                health["status"] == "online" && health["buffer"]["pending"] == 0
            })
            .await
    }

    /// Ids of all tasks in PostgreSQL.
    async fn stored(&self) -> Result<BTreeSet<String>> {
        let mut connection = self.postgres.connect_admin(DATABASE).await?;
        let ids: Vec<String> = sqlx::query_scalar("SELECT id::text FROM tasks")
            .fetch_all(&mut connection)
            .await?;
        Ok(ids.into_iter().collect())
    }

    /// Waits until a write is taken into the buffer again; gives its id.
    async fn wait_resumed(&self) -> Result<String> {
        let client = self.client();
        eventually(
            SETTLE,
            "a buffered write to be taken again",
            async || match client.create_task(&json!({"title": "afterwards"})).await {
                Ok(answer) if answer.status() == 202 => Ok(answer.id().to_owned()),
                Ok(answer) => Err(answer.text().to_owned()),
                Err(error) => Err(format!("{error:#}")),
            },
        )
        .await
    }
}

/// What several clients were answered.
#[derive(Debug, Default)]
struct Told {
    accepted: BTreeSet<String>,
    refused: usize,
    slowest: Duration,
}

impl Told {
    fn note(&mut self, answer: &Answer) {
        self.slowest = self.slowest.max(answer.elapsed());
        if answer.status() == 202 {
            self.accepted.insert(answer.id().to_owned());
            return;
        }
        answer.expect_problem(503);
        let retry_after = answer.expect_header("retry-after");
        assert!(
            retry_after.parse::<u32>().is_ok(),
            "Retry-After: {retry_after}"
        );
        self.refused += 1;
    }

    fn add(&mut self, other: Told) {
        self.accepted.extend(other.accepted);
        self.refused += other.refused;
        self.slowest = self.slowest.max(other.slowest);
    }
}

/// Writes large tasks by several clients until each was refused so often.
async fn write_until_refused(client: &Client, refusals: usize) -> Result<Told> {
    let description = "d".repeat(DESCRIPTION_CHARACTERS);
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let (client, description) = (client.clone(), description.clone());
        writers.spawn(async move {
            let (mut told, until) = (Told::default(), Instant::now() + FILLED);
            while told.refused < refusals && Instant::now() < until {
                let title = format!("{writer}/{}", told.accepted.len());
                let task = json!({"title": title, "description": description});
                told.note(&client.create_task(&task).await?);
            }
            anyhow::Ok(told)
        });
    }
    let mut told = Told::default();
    while let Some(writer) = writers.join_next().await {
        told.add(writer??);
    }
    Ok(told)
}

fn missing(accepted: &BTreeSet<String>, stored: &BTreeSet<String>) -> Vec<String> {
    accepted.difference(stored).cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_filled_by_buffered_writes_drains_and_takes_writes_again() -> Result<()> {
    let Some(disk) = SmallDisk::mount(DISK_MIB)? else {
        return Ok(());
    };
    let mut site = Site::start(Some(disk), &[]).await?;
    assert!(site.ballast().exists(), "there is no ballast");
    site.lose_postgres().await?;
    let told = write_until_refused(&site.client(), 25).await?;
    let health = site.wait_buffer_state("full").await?;
    eprintln!(
        "full: {} accepted, {} refused, slowest answer {:?}, {}",
        told.accepted.len(),
        told.refused,
        told.slowest,
        health["buffer"]
    );
    assert!(told.accepted.len() > 1_000 && told.refused >= 25 * WRITERS);
    assert_eq!(health["buffer"]["pending"], told.accepted.len());
    site.api
        .anonymous()
        .get_outside("/readyz")
        .await?
        .expect(200);

    site.postgres.start_again().await?;
    let began = Instant::now();
    site.wait_drained().await?;
    eprintln!("drained in {:?}", began.elapsed());
    assert_eq!(missing(&told.accepted, &site.stored().await?), [""; 0]);

    site.wait_buffer_state("ok").await?;
    assert!(site.ballast().exists(), "the ballast was not made again");
    site.lose_postgres().await?;
    let resumed = site.wait_resumed().await?;
    site.postgres.start_again().await?;
    site.wait_drained().await?;
    assert!(site.stored().await?.contains(&resumed));
    Ok(())
}

/// A site with PostgreSQL away, some writes in the buffer, and no room left on
/// its disk.
async fn filled_by_somebody_else() -> Result<Option<(Site, Told, PathBuf)>> {
    let Some(disk) = SmallDisk::mount(DISK_MIB)? else {
        return Ok(None);
    };
    let mut site = Site::start(Some(disk), &[]).await?;
    site.lose_postgres().await?;
    let client = site.client();
    let mut told = Told::default();
    for number in 0..300 {
        let task = json!({"title": number.to_string(), "description": "x".repeat(900)});
        told.note(&client.create_task(&task).await?);
    }
    assert_eq!(told.refused, 0);
    let foreign = site.disk.as_ref().context("no disk")?.fill("foreign")?;
    told.add(write_until_refused(&client, 5).await?);
    site.wait_buffer_state("full").await?;
    Ok(Some((site, told, foreign)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_filled_by_somebody_else_drains_and_direct_writes_go_on() -> Result<()> {
    let Some((mut site, told, foreign)) = filled_by_somebody_else().await? else {
        return Ok(());
    };
    eprintln!(
        "full: {} accepted, {} refused",
        told.accepted.len(),
        told.refused
    );
    site.postgres.start_again().await?;
    site.wait_drained().await?;
    assert!(
        site.syncd.log().contains("ballast is given up"),
        "it drained without its ballast"
    );
    assert_eq!(missing(&told.accepted, &site.stored().await?), [""; 0]);

    // The disk is as good as full: what needs no buffer works, both processes
    // can be started anew, and what needs the buffer is soon refused.
    site.client()
        .create_task(&json!({"title": "direct"}))
        .await?
        .expect(201);
    site.api.kill9().await?;
    site.syncd.kill9().await?;
    site.syncd.restart().await?;
    site.api.restart().await?;
    site.api.wait_status(SETTLE, "online").await?;
    site.client()
        .create_task(&json!({"title": "direct"}))
        .await?
        .expect(201);
    site.lose_postgres().await?;
    let more = site.disk.as_ref().context("no disk")?.fill("more")?;
    let again = write_until_refused(&site.client(), 1).await?;
    assert!(again.refused > 0, "nothing was refused on a full disk");

    for file in [foreign, more] {
        fs::remove_file(file)?;
    }
    let resumed = site.wait_resumed().await?;
    site.wait_buffer_state("ok").await?;
    site.postgres.start_again().await?;
    site.wait_drained().await?;
    let stored = site.stored().await?;
    assert_eq!(missing(&again.accepted, &stored), [""; 0]);
    assert!(stored.contains(&resumed));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn control_without_the_ballasts_room_nothing_drains() -> Result<()> {
    let Some((mut site, told, foreign)) = filled_by_somebody_else().await? else {
        return Ok(());
    };
    fs::remove_file(site.ballast())?;
    site.disk.as_ref().context("no disk")?.fill("foreign")?;
    site.postgres.start_again().await?;
    eventually(SETTLE, "the lane to give up", async || {
        let log = site.syncd.log();
        let gave_up = log.contains("lane can't use the buffer");
        if gave_up { Ok(()) } else { Err(log) }
    })
    .await?;
    let stuck = site.api.health().await?;
    eprintln!("without a ballast: {}", stuck["buffer"]);
    assert!(!site.stored().await?.is_empty(), "nothing was even tried");
    assert_eq!(stuck["buffer"]["pending"], told.accepted.len());
    fs::remove_file(foreign)?;
    site.wait_drained().await?;
    assert_eq!(missing(&told.accepted, &site.stored().await?), [""; 0]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn at_its_item_cap_the_buffer_refuses_takes_revocations_drains_and_resumes() -> Result<()> {
    let mut site = Site::start(None, &[("BUFFER_MAX_SIZE", "40")]).await?;
    let leaving = site.api.client(&tokens::valid("leaving"));
    leaving.get("/tasks").await?.expect(200);
    site.lose_postgres().await?;
    let told = write_until_refused(&site.client(), 5).await?;
    assert_eq!(told.accepted.len(), 40);
    site.wait_buffer_state("full").await?;
    site.api
        .anonymous()
        .get_outside("/readyz")
        .await?
        .expect(200);
    leaving
        .delete("/sessions/current")
        .await?
        .expect_in(&[202, 204]);
    leaving.get("/tasks").await?.expect_problem(401);

    site.postgres.start_again().await?;
    site.wait_drained().await?;
    assert_eq!(missing(&told.accepted, &site.stored().await?), [""; 0]);
    site.wait_buffer_state("ok").await?;
    site.lose_postgres().await?;
    site.wait_resumed().await?;
    Ok(())
}
