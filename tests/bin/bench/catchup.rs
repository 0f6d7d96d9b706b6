//! Live requests while a backlog is drained beside them: how much slower the slowest hundredth of them gets.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use holdfast_shared::buffer::Reader;

use crate::backlog;
use crate::live::{self, Phase, Requests, Verb, load, load_until};
use crate::plan::{CatchUp, Plan};
use crate::report::{Line, Report};
use crate::stage::{Served, Stage};
use crate::statistics::{Random, median};

/// Loaded but not counted, before a phase.
const WARM_UP: Duration = Duration::from_millis(500);

/// A drain that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(300);

/// The least ratio that is good enough of the 99th percentile without a catch-up to the one with: twice as slow.
const TARGET: f64 = 0.5;

/// All rounds.
#[derive(Default)]
struct Rounds {
    alone: Vec<Phase>,
    beside: Vec<Phase>,
    drained_per_second: Vec<f64>,
}

/// Measures live requests with and without a catch-up beside them.
///
/// # Errors
/// When a server doesn't start, a request fails, or a drain doesn't end.
pub async fn measure(
    stage: &Stage,
    plan: &Plan,
    random: &mut Random,
    report: &mut Report,
) -> Result<()> {
    let CatchUp {
        items,
        rounds,
        phase,
    } = plan.catch_up;
    report.begin(
        "Catch-up",
        &format!(
            "{} live requests a second, half POST and half GET of one task, while `syncd run` drains {items} items into \
             the same PostgreSQL, and in phases before and after without. Compared are the 99th percentiles, round \
             by round: 1 means that clients feel no difference, {TARGET} that the slowest hundredth takes twice as long.",
            live::per_second(),
        ),
    );
    let mut measured = Rounds::default();
    for round in 0..rounds {
        measure_round(stage, (items, phase), &mut measured).await?;
        eprintln!("catch-up of {items}: round {} of {rounds}", round + 1);
    }
    for (requests, target) in [
        (Requests::All, Some(TARGET)),
        (Requests::Of(Verb::Post), None),
        (Requests::Of(Verb::Get), None),
    ] {
        let phases = (measured.alone.as_slice(), measured.beside.as_slice());
        let what = ("a catch-up", target);
        live::report(phases, (requests, 0.99), what, random, report);
    }
    report.add(Line::new(
        "drained beside live requests",
        median(&measured.drained_per_second).unwrap_or_default(),
        " items/s",
    ));
    Ok(())
}

async fn measure_round(
    stage: &Stage,
    (items, length): (u64, Duration),
    measured: &mut Rounds,
) -> Result<()> {
    stage.clean().await?;
    let served = Served::start_online(stage.node_online()?).await?;
    let clients = live::clients(&served.node.api_address()).await?;
    let path = served.node.buffer_path();
    backlog::fill(&path, items).await?;
    let reader = tokio::task::spawn_blocking(move || backlog::open_to_read(&path)).await??;

    // A look at the buffer costs the clients something: all phases are watched alike.
    let is_drained = || pending(&reader).is_ok_and(|left| left == 0);
    load(&clients, WARM_UP).await?;
    let mut alone = load_until(&clients, length, is_drained).await?;
    let began = Instant::now();
    let syncd = served.node.start_syncd().await?;
    let mut beside = Phase::default();
    while pending(&reader)? > 0 {
        ensure!(
            began.elapsed() < PATIENCE,
            "the drain doesn't end:\n{}",
            syncd.log()
        );
        beside.add(load_until(&clients, length, is_drained).await?);
    }
    let took = began.elapsed();
    drop(syncd);
    load(&clients, WARM_UP).await?;
    // As long without as with: what else goes on on the machine has the same time to disturb either.
    let rest = took.saturating_sub(length);
    alone.add(load_until(&clients, rest, || !is_drained()).await?);
    measured.alone.push(alone);
    measured.beside.push(beside);
    #[expect(clippy::cast_precision_loss, reason = "fewer than 2^52 items")]
    measured
        .drained_per_second
        .push(items as f64 / took.as_secs_f64());
    Ok(())
}

fn pending(reader: &Reader) -> Result<u64> {
    let counters = reader.counters().context("cannot read the buffer")?;
    Ok(counters.pending)
}
