//! Does every acknowledged write survive a power cut? The buffer is on a file
//! system of its own whose power is really cut while clients write and syncd
//! drains, at random moments. As a control, the same programs with every fsync
//! turned into nothing: they must lose.
//!
//! Needs root and a loop device; where there is none, the tests say so and pass.
//! `HOLDFAST_POWER_CUTS` is how many cuts (8; `make power` makes 60),
//! `HOLDFAST_POWER_SEED` repeats the moments of an earlier run.

mod moments;
mod records;
mod writers;

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use holdfast_tests::loop_disk::library_without_syncs;
use holdfast_tests::{FaultProxy, Flow, LoopDisk, Node, Postgres, Program};

use crate::moments::Moments;
use crate::records::{Accepted, Found, LISTED_MAX, Records, Tally};
use crate::writers::{Writers, token_of};

const DATABASE: &str = "holdfast";
const DISK_MEBIBYTES: u64 = 256;
const CUTS: usize = 8;
const CONTROL_CUTS: usize = 2;
/// Most of them, where the first come before anything is acknowledged.
const CONTROL_CUTS_MAX: usize = 10;
const DRAIN_DEADLINE: Duration = Duration::from_secs(60);
/// What a drain begins with, and what slows it down, so that most cuts come in
/// the midst of one: many small batches, each some round trips.
const BACKLOG: u64 = 300;
const BATCH: &str = "10";
const BATCH_LIMITS: [&str; 2] = ["SYNC_BATCH_SIZE", "SYNC_BATCH_MAX"];
const DRAIN_DELAY: Duration = Duration::from_millis(4);

/// What syncd does when the power goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum While {
    /// PostgreSQL is away: every write is buffered.
    Accepting,
    /// PostgreSQL is back: the buffer is drained, and written to as well.
    Draining,
}

struct Stage {
    postgres: Postgres,
    proxy: FaultProxy,
    disk: LoopDisk,
    node: Node,
    records: Arc<Records>,
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_writes_survive_power_cuts() -> Result<()> {
    if let Some(reason) = LoopDisk::impediment() {
        return announce(&format!("SKIPPED, no power cut was made: {reason}"));
    }
    let moments = Moments::from_environment()?;
    let cuts = cuts()?;
    let mut stage = Stage::set_up("cut").await?;
    let (mut rows, mut findings) = (Vec::new(), Vec::new());
    for number in 0..cuts {
        let during = if number % 2 == 0 {
            While::Accepting
        } else {
            While::Draining
        };
        let row = stage.cut(during, moments.of_cut(number)).await;
        let row = row.with_context(|| format!("cut {number}, {}", moments.seed_words()))?;
        if row.tally.waiting > LISTED_MAX / 2 {
            findings.extend(stage.drain_and_compare().await?);
        }
        rows.push(row);
    }
    findings.extend(stage.drain_and_compare().await?);
    announce(&table(&rows, &moments))?;
    assert_eq!(findings, Vec::<String>::new(), "{}", moments.seed_words());
    for (number, row) in rows.iter().enumerate() {
        assert_eq!(
            (row.tally.lost, row.tally.doubled),
            (0, 0),
            "cut {number}, {}",
            moments.seed_words()
        );
    }
    let acknowledged: usize = rows.iter().map(|row| row.acknowledged).sum();
    assert!(acknowledged > 10 * cuts, "hardly anything was written");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_durability_the_same_cuts_lose_writes() -> Result<()> {
    if let Some(reason) = LoopDisk::impediment() {
        return announce(&format!("SKIPPED, no power cut was made: {reason}"));
    }
    let Some(library) = library_without_syncs() else {
        return announce("SKIPPED, the control of the power cuts: there is no libeatmydata.so");
    };
    let moments = Moments::from_environment()?;
    let mut stage = Stage::set_up("control").await?;
    stage.node.set("LD_PRELOAD", &library.to_string_lossy());
    let (mut cuts, mut acknowledged, mut lost) = (0, 0, 0);
    // Where nothing was acknowledged yet, nothing can be lost.
    while cuts < CONTROL_CUTS || (acknowledged == 0 && cuts < CONTROL_CUTS_MAX) {
        let before = stage.records.count();
        stage
            .write_until_cut(While::Accepting, moments.of_cut(cuts))
            .await?;
        cuts += 1;
        let accepted = stage.records.since(before);
        // A buffer that can't even be read has lost everything.
        let found = Found::in_buffer(&stage.node).await.unwrap_or_default();
        acknowledged += accepted.len();
        lost += found.tally(&accepted).lost;
    }
    announce(&format!(
        "control without fsync: {cuts} cuts, {acknowledged} acknowledged, {lost} lost"
    ))?;
    assert!(lost > 0, "nothing was lost, so these cuts prove nothing");
    Ok(())
}

/// What one cut came to.
#[derive(Debug)]
struct Row {
    during: While,
    acknowledged: usize,
    tally: Tally,
}

impl Stage {
    async fn set_up(run: &str) -> Result<Self> {
        let postgres = Postgres::start().await?;
        postgres.create_database(DATABASE).await?;
        let proxy = FaultProxy::start(postgres.port()).await?;
        let disk = LoopDisk::make(DISK_MEBIBYTES)?;
        let buffer = disk.path().join("data/buffer.redb");
        let node = Node::new()?
            .with(
                "DATABASE_URL",
                &postgres.url_through(proxy.port(), DATABASE),
            )
            .with("BUFFER_PATH", &buffer.to_string_lossy());
        node.syncd(&["migrate"]).await?.expect_code(0);
        Ok(Self {
            postgres,
            proxy,
            disk,
            node,
            records: Arc::new(Records::new(run)),
        })
    }

    /// One cut and what is found after it: of its own writes and of all before.
    async fn cut(&mut self, during: While, after: Duration) -> Result<Row> {
        let before = self.records.count();
        self.write_until_cut(during, after).await?;
        let mut connection = self.postgres.connect(DATABASE).await?;
        let found = Found::in_buffer(&self.node).await?;
        let found = found.and_in_postgres(&mut connection).await?;
        let accepted = self.records.since(before);
        self.ask_the_api(&accepted).await?;
        Ok(Row {
            during,
            acknowledged: accepted.len(),
            tally: found.tally(&self.records.since(0)),
        })
    }

    /// Both programs at work, clients writing; then no more power, no more
    /// processes, and power again.
    async fn write_until_cut(&mut self, during: While, after: Duration) -> Result<()> {
        self.proxy.set(Flow::Cut).await?;
        for limit in BATCH_LIMITS {
            self.node.set(limit, BATCH);
        }
        let mut api = self.node.start_api().await?;
        let mut syncd = self.node.start_syncd().await?;
        let writers = Writers::start(&api.base_url(), &self.records);
        if during == While::Draining {
            self.wait_for_backlog(&api).await?;
            self.proxy.set(Flow::Delay(DRAIN_DELAY)).await?;
        }
        tokio::time::sleep(after).await;
        self.disk.cut_power()?;
        api.kill9().await?;
        syncd.kill9().await?;
        writers.stop().await?;
        self.proxy.set(Flow::Cut).await?;
        self.disk.restore_power().await
    }

    async fn wait_for_backlog(&self, api: &Program) -> Result<()> {
        let what = "something to drain";
        api.wait_health(DRAIN_DEADLINE, what, |health| {
            health["buffer"]["pending"].as_u64() >= Some(BACKLOG)
        })
        .await
        .map(drop)
    }

    /// The restarted API knows each operation that was just acknowledged.
    async fn ask_the_api(&self, accepted: &[Accepted]) -> Result<()> {
        let mut api = self.node.start_api().await?;
        for write in accepted {
            let Accepted::Buffered { writer, operation } = write else {
                continue;
            };
            let client = api.client(&token_of(*writer));
            let answer = client.operation(operation, 0).await?;
            ensure!(
                answer.status() == 200,
                "operation {operation} is unknown to the API: {}",
                answer.text()
            );
        }
        api.kill9().await
    }

    /// Lets everything be drained; gives what PostgreSQL then lacks or has twice.
    async fn drain_and_compare(&mut self) -> Result<Vec<String>> {
        self.proxy.set(Flow::Pass).await?;
        for limit in BATCH_LIMITS {
            self.node.unset(limit);
        }
        let _syncd = self.node.start_syncd().await?;
        let api = self.node.start_api().await?;
        api.wait_status(DRAIN_DEADLINE, "online").await?;
        let mut connection = self.postgres.connect(DATABASE).await?;
        let findings = self.records.ledger.compare(&mut connection).await?;
        let mut broken = findings.broken_promises();
        let metrics = api.anonymous().get_outside("/metrics").await?;
        let balanced = |line: &str| line.trim() == "holdfast_conservation_imbalance 0";
        if !metrics.text().lines().any(balanced) {
            broken.push(String::from("accepted items are not accounted for"));
        }
        Ok(broken)
    }
}

fn table(rows: &[Row], moments: &Moments) -> String {
    let of = |during: While| rows.iter().filter(|row| row.during == during).count();
    let sum = |count: fn(&Row) -> usize| rows.iter().map(count).sum::<usize>();
    let amid = rows
        .iter()
        .filter(|row| row.during == While::Draining && row.tally.waiting > 0)
        .count();
    let last = rows.last().map(|row| row.tally).unwrap_or_default();
    format!(
        "power cuts: {} ({} while accepting, {} while draining, {amid} of them in the midst), {}\n\
         acknowledged {}: after the last cut {} waiting, {} applied; lost {}, doubled {}",
        rows.len(),
        of(While::Accepting),
        of(While::Draining),
        moments.seed_words(),
        sum(|row| row.acknowledged),
        last.waiting,
        last.applied,
        sum(|row| row.tally.lost),
        sum(|row| row.tally.doubled),
    )
}

fn cuts() -> Result<usize> {
    match std::env::var("HOLDFAST_POWER_CUTS") {
        Ok(number) => number.parse().context("HOLDFAST_POWER_CUTS is no number"),
        Err(_) => Ok(CUTS),
    }
}

/// Past the capture of a passing test's output: whether and what was cut is to
/// be seen in every run.
fn announce(text: &str) -> Result<()> {
    let lines: String = text.lines().map(|line| format!("  {line}\n")).collect();
    std::io::stderr()
        .write_all(format!("\n{lines}").as_bytes())
        .context("cannot write to standard error")
}
