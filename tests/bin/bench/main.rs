//! `make bench`: how fast Holdfast is, as ratios to something measured in the same run.
//!
//! Absolute figures of a shared machine say nothing about another one. So every line is compared with what stands
//! beside it: writes over HTTP with a bare warp handler that does one INSERT (`bare.rs`), buffered writes with online
//! ones, a drain with COPY. What is compared is measured in short slices in turn (`slices.rs`), and each ratio has an
//! interval (`statistics.rs`).
//!
//! PostgreSQL, the API and syncd are the real programs, built for release, with all syncs on, on a disk.

mod backlog;
mod bare;
mod catchup;
mod drain;
mod flood;
mod footprint;
mod keep_alive;
mod live;
mod machine;
mod plan;
mod report;
mod sample;
mod slices;
mod stage;
mod statistics;
mod web;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::plan::Plan;
use crate::report::Report;
use crate::stage::Stage;
use crate::statistics::Random;

/// Items of the large backlog when only trying out.
const QUICK_PENDING: u64 = 20_000;

/// Measures Holdfast against a bare handler and against COPY.
#[derive(Debug, Parser)]
#[command(name = "holdfast-bench")]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Try everything out in seconds; the figures mean nothing.
    #[arg(long)]
    quick: bool,
    /// Items of the large backlog [default: 1000000, with --quick 20000].
    #[arg(long, value_name = "ITEMS")]
    pending: Option<u64>,
    /// Also write what was measured to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Seed of the order of slices, to have the same order again.
    #[arg(long)]
    seed: Option<u64>,
    /// Only this part.
    #[arg(long, value_enum)]
    only: Option<Part>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves the handler that Holdfast is compared with.
    #[command(hide = true)]
    Bare {
        #[arg(long)]
        address: SocketAddr,
        #[arg(long)]
        database_url: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Requests over HTTP, and what a backlog costs.
    Web,
    /// Draining.
    Drain,
    /// Live requests while a backlog is drained.
    Catchup,
    /// Live requests beside a flood of bad ones.
    Flood,
}

#[tokio::main]
async fn main() -> ExitCode {
    // On Ctrl-C the measurement is dropped where it is, and its processes with it.
    let outcome = tokio::select! {
        outcome = run(Arguments::parse()) => outcome,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("holdfast-bench: {error:#}");
        ExitCode::FAILURE
    })
}

async fn run(arguments: Arguments) -> Result<ExitCode> {
    if let Some(Command::Bare {
        address,
        database_url,
    }) = &arguments.command
    {
        bare::serve(*address, database_url).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let seed = arguments.seed.map_or_else(seed_from_time, Ok)?;
    let report = measure(&arguments, seed).await?;
    println!("{report}");
    if let Some(path) = &arguments.json {
        let text =
            serde_json::to_string_pretty(&report).context("cannot write the report as JSON")?;
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let missed = report.missed();
    if missed.is_empty() || arguments.quick {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("below target: {}", missed.join("; "));
    Ok(ExitCode::FAILURE)
}

async fn measure(arguments: &Arguments, seed: u64) -> Result<Report> {
    let plan = match (arguments.quick, arguments.pending) {
        (true, pending) => Plan::quick(pending.unwrap_or(QUICK_PENDING)),
        (false, pending) => Plan::whole(pending.unwrap_or(1_000_000)),
    };
    let mut random = Random::new(seed);
    let mut report = Report::new(machine::look(seed)?);
    let stage = Stage::set_up().await?;
    let wants = |part: Part| arguments.only.is_none_or(|only| only == part);
    if wants(Part::Web) {
        let full = footprint::measure(&stage, &plan, &mut report).await?;
        web::measure(&stage, full, &plan, &mut random, &mut report).await?;
    }
    if wants(Part::Drain) {
        drain::measure(&stage, &plan, &mut random, &mut report).await?;
    }
    if wants(Part::Catchup) {
        catchup::measure(&stage, &plan, &mut random, &mut report).await?;
    }
    if wants(Part::Flood) {
        flood::measure(&stage, &plan, &mut random, &mut report).await?;
    }
    report.machine.sync_after_ms = machine::sync_ms()?;
    Ok(report)
}

fn seed_from_time() -> Result<u64> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("the clock is before 1970")?;
    Ok(now.as_secs())
}
