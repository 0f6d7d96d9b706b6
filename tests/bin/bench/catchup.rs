//! Live requests while a backlog is drained beside them: how much slower the slowest hundredth of them gets.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use holdfast_shared::buffer::Reader;
use holdfast_tests::tokens;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use crate::backlog;
use crate::keep_alive::{KeepAlive, request};
use crate::plan::{CatchUp, Plan};
use crate::report::{Line, Report};
use crate::sample::Sample;
use crate::stage::{Served, Stage};
use crate::statistics::{Latency, Random, Ratio, median};

/// Clients that write, and as many that read.
const CLIENTS: usize = 8;

/// From one request of a client to its next: with all of them 400 requests a second, a tenth of what this API can do on
/// two cores, so that what is measured is the drain and not the clients among themselves.
const PERIOD: Duration = Duration::from_millis(40);

/// A timer's precision: within it a request counts as sent when it was to be sent.
const TIMER: Duration = Duration::from_millis(2);

/// Loaded but not counted, before a phase.
const WARM_UP: Duration = Duration::from_millis(500);

/// Between two looks at the backlog.
const LOOK_GAP: Duration = Duration::from_millis(10);

/// A drain that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// The least ratio that is good enough of the 99th percentile without a catch-up to the one with: twice as slow.
const TARGET: f64 = 0.5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Post,
    Get,
}

/// A client and what it sends in turn.
#[derive(Clone)]
struct Client {
    verb: Verb,
    address: String,
    requests: Vec<Vec<u8>>,
    /// Its place within the period, so that the clients take turns.
    offset: Duration,
}

/// Microseconds of every answer of one phase.
#[derive(Debug, Default)]
struct Phase {
    posts: Vec<u32>,
    gets: Vec<u32>,
}

impl Phase {
    fn of(&self, verb: Verb) -> &[u32] {
        match verb {
            Verb::Post => &self.posts,
            Verb::Get => &self.gets,
        }
    }

    fn add(&mut self, other: Phase) {
        self.posts.extend(other.posts);
        self.gets.extend(other.gets);
    }
}

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
            2 * CLIENTS * 1_000 / usize::try_from(PERIOD.as_millis())?,
        ),
    );
    let mut measured = Rounds::default();
    for round in 0..rounds {
        measure_round(stage, (items, phase), &mut measured).await?;
        eprintln!("catch-up of {items}: round {} of {rounds}", round + 1);
    }
    for verb in [Verb::Post, Verb::Get] {
        report_verb(&measured, verb, random, report);
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
    let clients = clients(&served.node.api_address()).await?;
    let path = served.node.buffer_path();
    backlog::fill(&path, items).await?;
    let reader = tokio::task::spawn_blocking(move || backlog::open_to_read(&path)).await??;

    load(&clients, WARM_UP).await?;
    let mut alone = load(&clients, length).await?;
    let began = Instant::now();
    let syncd = served.node.start_syncd().await?;
    let mut beside = Phase::default();
    while pending(&reader)? > 0 {
        ensure!(
            began.elapsed() < PATIENCE,
            "the drain doesn't end:\n{}",
            syncd.log()
        );
        beside.add(
            load_until(&clients, length, || {
                pending(&reader).is_ok_and(|left| left == 0)
            })
            .await?,
        );
    }
    let took = began.elapsed();
    drop(syncd);
    load(&clients, WARM_UP).await?;
    // As long without as with: what else goes on on the machine has the same time to disturb either.
    alone.add(load(&clients, took.saturating_sub(length)).await?);
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

/// Writers, and readers of tasks that they create first; each of a user of its own.
async fn clients(address: &str) -> Result<Vec<Client>> {
    let mut clients = Vec::new();
    let step = PERIOD / u32::try_from(2 * CLIENTS)?;
    for number in 0..CLIENTS {
        let token = tokens::valid(&format!("live-{number}"));
        let post = request(
            "POST",
            "/api/v1/tasks",
            &token,
            &Sample::new(number as u64).json(),
        );
        let mut connection = KeepAlive::open(address).await?;
        let status = connection.exchange(&post).await?;
        ensure!(status == 201, "status {status} instead of 201");
        let body: Value =
            serde_json::from_slice(connection.body()).context("an answer that is no JSON")?;
        let id = body["id"].as_str().context("a task without an id")?;
        let get = request("GET", &format!("/api/v1/tasks/{id}"), &token, "");
        for (verb, request) in [(Verb::Post, post), (Verb::Get, get)] {
            let place = u32::try_from(clients.len())?;
            clients.push(Client {
                verb,
                address: address.to_owned(),
                requests: vec![request],
                offset: step * place,
            });
        }
    }
    Ok(clients)
}

async fn load(clients: &[Client], length: Duration) -> Result<Phase> {
    load_until(clients, length, || false).await
}

/// Keeps all clients at it for so long, or until `is_over`.
async fn load_until(
    clients: &[Client],
    length: Duration,
    is_over: impl Fn() -> bool,
) -> Result<Phase> {
    let began = Instant::now();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut working = JoinSet::new();
    for client in clients {
        working.spawn(client.clone().work(began, stopped.clone()));
    }
    while began.elapsed() < length && !is_over() {
        tokio::time::sleep(LOOK_GAP).await;
    }
    stop.send_replace(true);
    let mut phase = Phase::default();
    while let Some(worked) = working.join_next().await {
        let (verb, times) = worked.context("a client has panicked")??;
        match verb {
            Verb::Post => phase.posts.extend(times),
            Verb::Get => phase.gets.extend(times),
        }
    }
    Ok(phase)
}

impl Client {
    /// Sends a request each period, whether or not the answers keep up: one that is late because the one before was
    /// slow counts from when it was to be sent.
    async fn work(
        self,
        began: Instant,
        stopped: tokio::sync::watch::Receiver<bool>,
    ) -> Result<(Verb, Vec<u32>)> {
        let mut connection = KeepAlive::open(&self.address).await?;
        let (mut due, mut times) = (began + self.offset, Vec::new());
        for request in self.requests.iter().cycle() {
            sleep_until(due.into()).await;
            if *stopped.borrow() {
                break;
            }
            let now = Instant::now();
            let sent = if now - due < TIMER { now } else { due };
            let status = connection.exchange(request).await?;
            let is_good = (200..300).contains(&status);
            ensure!(is_good, "status {status} to a live request");
            times.push(u32::try_from(sent.elapsed().as_micros()).unwrap_or(u32::MAX));
            due += PERIOD;
        }
        Ok((self.verb, times))
    }
}

fn report_verb(measured: &Rounds, verb: Verb, random: &mut Random, report: &mut Report) {
    let name = match verb {
        Verb::Post => "POST",
        Verb::Get => "GET",
    };
    let p99 = |phases: &[Phase]| -> Vec<f64> {
        let latencies = phases
            .iter()
            .filter_map(|phase| Latency::of(phase.of(verb)));
        latencies.map(|latency| latency.p99_ms).collect()
    };
    let all = |phases: &[Phase]| -> Option<Latency> {
        let times: Vec<u32> = phases
            .iter()
            .flat_map(|phase| phase.of(verb))
            .copied()
            .collect();
        Latency::of(&times)
    };
    let (alone, beside) = (p99(&measured.alone), p99(&measured.beside));
    let against = format!("{name} without a catch-up, p99");
    report.add(Line {
        latency: all(&measured.alone),
        ..Line::new(&against, median(&alone).unwrap_or_default(), " ms")
    });
    report.add(Line {
        latency: all(&measured.beside),
        ratio: Ratio::of(&alone, &beside, random),
        against: Some("the same with one, inverted".to_owned()),
        target: Some(TARGET),
        ..Line::new(
            &format!("{name} during a catch-up, p99"),
            median(&beside).unwrap_or_default(),
            " ms",
        )
    });
}
