//! `make demo`: the outage told in a terminal, with real PostgreSQL and Redis.
//!
//! Ends with a table, and with exit code 1 when any promise was broken.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use holdfast_tests::story::{self, Plan};
use holdfast_tests::summary::{DRAIN_ALLOWED, SLOWEST_ALLOWED};

#[tokio::main]
async fn main() -> ExitCode {
    // On Ctrl-C the story is dropped where it is, and its processes with it.
    let outcome = tokio::select! {
        outcome = demo() => outcome,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("holdfast-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn demo() -> Result<()> {
    let started = Instant::now();
    let summary = story::tell(Plan::demo(), |event| {
        println!("[{:6.2} s] {event}", started.elapsed().as_secs_f64());
    })
    .await?;
    println!("\n{summary}");
    let broken = summary.broken_promises();
    if broken.is_empty() {
        let stalled = match summary.stalled {
            Duration::ZERO => String::new(),
            stalled => format!(
                " (not counting {} ms in which the machine stood still)",
                stalled.as_millis()
            ),
        };
        println!(
            "Every write was answered 2xx within {SLOWEST_ALLOWED:?}, the buffer drained within \
             {DRAIN_ALLOWED:?}{stalled}, and each acknowledged task is there once."
        );
        return Ok(());
    }
    bail!("broken promises:\n  {}", broken.join("\n  "))
}
