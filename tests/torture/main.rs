//! `make torture`: everything is hurt at once, for as long as one likes, and then
//! a checker reads every request and answer and says which promise was broken.
//!
//! Real programs, private PostgreSQL and Redis, two nodes with clocks that
//! disagree, and a schedule of faults. The same seed gives the same schedule and
//! the same scripts of the clients; what can't be fixed is how fast the answers
//! come, so a seed that has found something may need several runs to find it
//! again.
//!
//! Exit codes: 0 every promise was kept, 1 one was broken or a program didn't
//! come up.

mod aftermath;
mod check;
mod client;
mod history;
mod inject;
mod random;
mod recorder;
mod report;
mod schedule;
mod script;
mod users;
mod values;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::Parser;
use futures_util::future::join_all;
use holdfast_tests::StallWatch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::check::answers::LONG_STALL;
use crate::client::Client;
use crate::history::{History, Trouble};
use crate::inject::Tally;
use crate::random::Random;
use crate::report::Report;
use crate::schedule::Scope;
use crate::script::Script;
use crate::users::Users;
use crate::world::{Sabotage, World};

/// Clients, over the places of users: several of the same user's at a time.
const CLIENTS: usize = 14;
/// Users at a time.
const USERS: u32 = 5;
/// API processes on the first node's buffer.
const APIS: u8 = 2;
/// Retired users whose tasks are read again at the end.
const READ_AGAIN: usize = 10;
/// Clocks are ahead or behind by less than this.
const SKEW_MAX_SECONDS: u64 = 150;

/// Hurts everything at once, and checks that every promise was kept.
#[derive(Debug, Parser)]
#[command(name = "holdfast-torture")]
struct Arguments {
    /// How long faults are made.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// The seed of the schedule and the scripts [default: a fresh one].
    #[arg(long)]
    seed: Option<u64>,
    /// Where a failure's history is kept.
    #[arg(long, value_name = "DIRECTORY", default_value = ".")]
    keep: PathBuf,
    /// How far the second node's clock is ahead, in seconds [default: by the seed].
    #[arg(long, allow_negative_numbers = true)]
    skew: Option<i64>,
    /// Break a guarantee on purpose, to see that it is noticed: a buffer is
    /// removed whenever an API process on it is down.
    #[arg(long)]
    lose_buffer: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // On Ctrl-C the run is dropped where it is, and its processes with it.
    let outcome = tokio::select! {
        outcome = torture(&arguments) => outcome,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("holdfast-torture: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn torture(arguments: &Arguments) -> Result<bool> {
    let seed = arguments.seed.unwrap_or_else(fresh_seed);
    let length = Duration::from_secs(arguments.seconds);
    println!("torture: seed {seed}, {} s", length.as_secs());
    let skews = skews(seed, arguments.skew);
    let sabotage = if arguments.lose_buffer {
        Sabotage::LoseBuffer
    } else {
        Sabotage::Nothing
    };
    let world = Arc::new(World::start(&skews, APIS, sabotage).await?);
    let watch = StallWatch::start()?;
    let users = Arc::new(Users::new(USERS));
    let scope = Scope {
        nodes: u8::try_from(skews.len())?,
        apis: APIS,
        disk: world.places.iter().any(|place| place.disk.is_some()),
    };
    let tally = Tally::default();
    hurt(&world, &users, (seed, length, scope), &tally).await?;
    let drained = match aftermath::drain(&world).await {
        Ok(drained) => drained,
        Err(error) => {
            world.recorder.failed(format!("it doesn't heal: {error:#}"));
            Duration::ZERO
        }
    };
    for user in users.recent(READ_AGAIN) {
        client::read_all(&world, &user).await;
    }
    let outcome = aftermath::read(&world).await?;
    for stall in watch.stop()? {
        if stall.length() >= LONG_STALL {
            let (from, to) = (stall.from, stall.to);
            world.recorder.was(Trouble::Stalled, from, to);
        }
    }
    let (exchanges, troubles, failures) = world.recorder.finish();
    let history = History {
        exchanges,
        troubles,
        outcome,
    };
    let verdict = check::check(&history);
    let report = Report {
        seed,
        length,
        drained,
        skews: &skews,
        history: &history,
        faults: tally.counts(),
        failures: &failures,
        verdict: &verdict,
    };
    println!("{report}");
    if report.is_clean() {
        println!("torture: every promise was kept (seed {seed})");
        return Ok(true);
    }
    let path = report.keep(&arguments.keep)?;
    for program in logs(&world).await {
        println!("{program}");
    }
    println!(
        "torture: FAILED with seed {seed}; the evidence is in {}",
        path.display()
    );
    Ok(false)
}

/// Lets the clients work while the faults of the schedule are made.
async fn hurt(
    world: &Arc<World>,
    users: &Arc<Users>,
    (seed, length, scope): (u64, Duration, Scope),
    tally: &Tally,
) -> Result<()> {
    let stopping = Arc::new(AtomicBool::new(false));
    let began = Instant::now();
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let script = Script::new(seed, number as u64);
        let client = Client::new(world, users, number, script);
        clients.spawn(client.work(Arc::clone(&stopping)));
    }
    let tracks = schedule::plan(seed, length, scope);
    let tracks = tracks
        .into_iter()
        .map(|track| inject::run(world, track, began, tally));
    join_all(tracks).await;
    tokio::time::sleep_until(began + length).await;
    stopping.store(true, Ordering::Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended.context("a client has panicked")?;
    }
    Ok(())
}

/// The clocks of the nodes: the first is right, the second is not.
fn skews(seed: u64, wanted: Option<i64>) -> Vec<i64> {
    let mut random = Random::new(seed, u64::MAX);
    let far = i64::try_from(random.between(2, SKEW_MAX_SECONDS)).unwrap_or_default();
    let skew = if random.chance(50) { far } else { -far };
    if world::faketime().is_none() {
        eprintln!(
            "torture: NO SKEWED CLOCKS: libfaketime isn't installed \
             (tests/scripts/install.sh installs it where it can)"
        );
        return vec![0, 0];
    }
    vec![0, wanted.unwrap_or(skew)]
}

async fn logs(world: &World) -> Vec<String> {
    let mut logs = Vec::new();
    for server in &world.servers {
        let program = server.program.lock().await;
        logs.push(format!("--- {} ---\n{}", server.api, program.log()));
    }
    for (node, place) in world.places.iter().enumerate() {
        let program = place.syncd.lock().await;
        let skew = place.skew_seconds;
        logs.push(format!(
            "--- syncd {node} (clock {skew:+} s) ---\n{}",
            program.log()
        ));
    }
    logs
}

fn fresh_seed() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    // Short enough to be typed.
    since.map_or(1, |since| since.as_nanos() as u64 % 1_000_000_007)
}
