//! Live requests beside a flood of bad ones: how much slower do good clients get because of somebody who isn't?

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use holdfast_tests::tokens;
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use crate::keep_alive::{KeepAlive, request};
use crate::live::{self, Phase, Requests, Verb, load};
use crate::plan::{Flood, Plan};
use crate::report::{Line, Report};
use crate::sample::Sample;
use crate::stage::{Served, Stage};
use crate::statistics::{Random, median};

/// Bad requests a second: five times as many as good ones. Clients, flood, API and PostgreSQL share two cores, so a
/// much larger one would measure the flood's own cost.
const RATE: u32 = 2_000;

/// Connections that send them.
const SOURCES: u32 = 16;

/// Loaded but not counted, before a phase.
const WARM_UP: Duration = Duration::from_millis(300);

/// The least ratio that is good enough of the 99th percentile without a flood to the one with: twice as slow.
const TARGET: f64 = 0.5;

/// A kind of bad request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bad {
    Token,
    Json,
    Path,
    Size,
    Spelling,
}

impl Bad {
    const ALL: [Bad; 5] = [Bad::Token, Bad::Json, Bad::Path, Bad::Size, Bad::Spelling];

    fn what(self) -> &'static str {
        match self {
            Bad::Token => "bad tokens (401)",
            Bad::Json => "malformed JSON (400)",
            Bad::Path => "unknown paths (404)",
            Bad::Size => "bodies too large (413, a connection each)",
            Bad::Spelling => "no HTTP (400, a connection each)",
        }
    }

    fn status(self) -> u16 {
        match self {
            Bad::Token => 401,
            Bad::Json | Bad::Spelling => 400,
            Bad::Path => 404,
            Bad::Size => 413,
        }
    }

    /// Whether the API ends the connection with its answer.
    fn ends_connection(self) -> bool {
        matches!(self, Bad::Size | Bad::Spelling)
    }

    fn request(self) -> Vec<u8> {
        let good = tokens::valid("flood");
        let task = Sample::new(0).json();
        match self {
            Bad::Token => request("POST", "/api/v1/tasks", &tokens::foreign("flood"), &task),
            Bad::Json => request("POST", "/api/v1/tasks", &good, &task[..task.len() - 1]),
            Bad::Path => request("GET", "/api/v1/nothing", &good, ""),
            // The size is announced; none of it is sent.
            Bad::Size => format!(
                "POST /api/v1/tasks HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {good}\r\n\
                 content-type: application/json\r\ncontent-length: 1000000\r\n\r\n"
            )
            .into_bytes(),
            Bad::Spelling => b"NONSENSE\r\n\r\n".to_vec(),
        }
    }
}

/// Measures live requests beside each kind of flood, and in phases before and after without.
///
/// # Errors
/// When a server doesn't start, or a request is answered otherwise than it should be.
pub async fn measure(
    stage: &Stage,
    plan: &Plan,
    random: &mut Random,
    report: &mut Report,
) -> Result<()> {
    stage.clean().await?;
    let served = Served::start_online(stage.node_online()?).await?;
    let clients = live::clients(&served.node.api_address()).await?;
    report.begin(
        "Floods",
        &format!(
            "{} live requests a second, half POST and half GET of one task, beside {RATE} bad ones a second of one kind \
             over {SOURCES} connections, and in phases between without. Compared round by round: 1 means that good \
             clients feel no difference, {TARGET} that it takes twice as long.",
            live::per_second(),
        ),
    );
    for bad in Bad::ALL {
        let measured = measure_kind(&served, &clients, bad, plan.flood).await?;
        let phases = (measured.alone.as_slice(), measured.beside.as_slice());
        for verb in [Verb::Post, Verb::Get] {
            let what = bad.what();
            live::report(
                phases,
                (Requests::Of(verb), 0.5),
                (what, None),
                random,
                report,
            );
            live::report(
                phases,
                (Requests::Of(verb), 0.99),
                (what, Some(TARGET)),
                random,
                report,
            );
        }
        let rate = median(&measured.refused_per_second).unwrap_or_default();
        report.add(Line::new(&format!("refused: {}", bad.what()), rate, "/s"));
        eprintln!("flood of {}", bad.what());
    }
    Ok(())
}

#[derive(Default)]
struct Rounds {
    alone: Vec<Phase>,
    beside: Vec<Phase>,
    refused_per_second: Vec<f64>,
}

async fn measure_kind(
    served: &Served,
    clients: &[live::Client],
    bad: Bad,
    Flood { rounds, phase }: Flood,
) -> Result<Rounds> {
    let address = served.node.api_address();
    let mut measured = Rounds::default();
    load(clients, WARM_UP).await?;
    for _ in 0..rounds {
        measured.alone.push(load(clients, phase).await?);
        let flood = Source::open_all(&address, bad).await?;
        load(clients, WARM_UP).await?;
        let (before, began) = (flood.refused(), Instant::now());
        measured.beside.push(load(clients, phase).await?);
        #[expect(clippy::cast_precision_loss, reason = "fewer than 2^52 requests")]
        let refused = (flood.refused() - before) as f64;
        measured
            .refused_per_second
            .push(refused / began.elapsed().as_secs_f64());
        flood.end().await?;
    }
    Ok(measured)
}

/// All connections of one flood.
struct Running {
    stop: Arc<AtomicBool>,
    refused: Arc<AtomicU64>,
    sources: JoinSet<Result<()>>,
}

impl Running {
    fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    async fn end(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.sources.join_next().await {
            ended.context("a source has panicked")??;
        }
        Ok(())
    }
}

/// One connection of a flood.
struct Source {
    address: String,
    bad: Bad,
    request: Vec<u8>,
    stop: Arc<AtomicBool>,
    refused: Arc<AtomicU64>,
}

impl Source {
    async fn open_all(address: &str, bad: Bad) -> Result<Running> {
        let (stop, refused) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let period = Duration::from_secs(1) * SOURCES / RATE;
        let mut sources = JoinSet::new();
        for number in 0..SOURCES {
            let source = Source {
                address: address.to_owned(),
                bad,
                request: bad.request(),
                stop: Arc::clone(&stop),
                refused: Arc::clone(&refused),
            };
            let first = Instant::now() + period * number / SOURCES;
            sources.spawn(source.work(first, period));
        }
        Ok(Running {
            stop,
            refused,
            sources,
        })
    }

    /// Sends a request each period; what it was late with it doesn't make up for.
    async fn work(self, first: Instant, period: Duration) -> Result<()> {
        let mut connection = KeepAlive::open(&self.address).await?;
        let mut due = first;
        while !self.stop.load(Ordering::Relaxed) {
            sleep_until(due.into()).await;
            let status = connection.exchange(&self.request).await?;
            let expected = self.bad.status();
            ensure!(status == expected, "status {status} instead of {expected}");
            self.refused.fetch_add(1, Ordering::Relaxed);
            if self.bad.ends_connection() {
                connection = KeepAlive::open(&self.address).await?;
            }
            due = (due + period).max(Instant::now());
        }
        Ok(())
    }
}
