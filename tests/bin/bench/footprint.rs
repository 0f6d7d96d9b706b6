//! What a backlog costs: memory of the processes, bytes in the file, time to start.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use holdfast_tests::Node;

use crate::report::{Line, Report};
use crate::sample::{Sample, user_of_backlog};
use crate::stage::{Served, Stage};
use crate::{backlog, plan::Plan};

const MEBIBYTE: f64 = 1024.0 * 1024.0;

/// What syncd is given to look at its backlog before its memory is read.
const SETTLE: Duration = Duration::from_secs(2);

/// Memory of one process.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// Resident now.
    pub resident_bytes: u64,
    /// The most it ever was.
    pub peak_bytes: u64,
}

/// The memory of the program of this name that this process started with this address; `None` when it has ended.
pub fn of(name: &str, address: &str) -> Option<Memory> {
    let processes = fs::read_dir("/proc")
        .ok()?
        .filter_map(Result::ok)
        .map(|entry| entry.path());
    let mut ours = processes.filter(|process| {
        let read = |file: &str| fs::read(process.join(file)).unwrap_or_default();
        let variable = if name == "syncd" {
            "SYNCD_ADDR"
        } else {
            "API_ADDR"
        };
        let wanted = format!("{variable}={address}");
        read("comm").trim_ascii() == name.as_bytes()
            && read("environ")
                .split(|byte| *byte == 0)
                .any(|pair| pair == wanted.as_bytes())
    });
    let status = fs::read_to_string(ours.next()?.join("status")).ok()?;
    Some(Memory {
        resident_bytes: kibibytes(&status, "VmRSS:")? * 1024,
        peak_bytes: kibibytes(&status, "VmHWM:")? * 1024,
    })
}

fn kibibytes(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Bytes as mebibytes.
pub fn mebibytes(bytes: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "fewer than 2^52 bytes")]
    let bytes = bytes as f64;
    bytes / MEBIBYTE
}

/// Fills a buffer whose PostgreSQL is away, reports what it costs, and gives back the API process on it.
///
/// # Errors
/// When a process doesn't start or the API doesn't accept a write.
pub async fn measure(stage: &Stage, plan: &Plan, report: &mut Report) -> Result<Served> {
    let node = stage.node_away()?;
    backlog::fill(&node.buffer_path(), plan.pending).await?;
    report.begin(
        &format!("A backlog of {}", plan.pending),
        "What it costs to have it, with PostgreSQL away. The first write waits for the index of what is pending, which \
         is made by one scan.",
    );
    let file_bytes = backlog::file_bytes(&node.buffer_path())?;
    #[expect(clippy::cast_precision_loss, reason = "fewer than 2^52 bytes")]
    let per_item = file_bytes as f64 / plan.pending.max(1) as f64;
    report.add(Line::new(
        "buffer file, per item of about 500 bytes",
        per_item,
        " bytes",
    ));
    report_syncd(&node, report).await?;
    let served = Served::start(node).await?;
    report_api(&served, report).await?;
    Ok(served)
}

async fn report_syncd(node: &Node, report: &mut Report) -> Result<()> {
    let began = Instant::now();
    let _syncd = node.start_syncd().await?;
    report.add(Line::new(
        "start of syncd to its first answer",
        milliseconds(began.elapsed()),
        " ms",
    ));
    tokio::time::sleep(SETTLE).await;
    let memory = of("syncd", &node.syncd_address()).context("syncd has ended")?;
    report.add(Line::new(
        "memory of syncd",
        mebibytes(memory.resident_bytes),
        " MiB",
    ));
    Ok(())
}

async fn report_api(served: &Served, report: &mut Report) -> Result<()> {
    let at_start = resident_api(served)?;
    let client = served.client(&user_of_backlog(0));
    let task = serde_json::from_str(&Sample::new(0).json()).context("a sample is JSON")?;
    let began = Instant::now();
    client.create_task(&task).await?.expect(202);
    let first_write = began.elapsed();
    let began = Instant::now();
    client.get("/tasks?limit=50").await?.expect(200);
    let first_list = began.elapsed();
    let after = resident_api(served)?;
    report.add(Line::new(
        "start of holdfast-api to its first answer",
        milliseconds(served.started_in),
        " ms",
    ));
    report.add(Line::new(
        "its first buffered write",
        milliseconds(first_write),
        " ms",
    ));
    report.add(Line::new(
        "its first list of a user's tasks",
        milliseconds(first_list),
        " ms",
    ));
    report.add(Line::new(
        "memory of holdfast-api at its first answer",
        mebibytes(at_start),
        " MiB",
    ));
    report.add(Line::new(
        "memory of holdfast-api after these",
        mebibytes(after),
        " MiB",
    ));
    Ok(())
}

fn resident_api(served: &Served) -> Result<u64> {
    let memory = of("holdfast-api", &served.node.api_address()).context("the API has ended")?;
    Ok(memory.resident_bytes)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
