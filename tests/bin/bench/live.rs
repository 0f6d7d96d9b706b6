//! Clients of a service in use: each sends a request at a fixed pace, whether or not the answers keep up.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use holdfast_tests::tokens;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use crate::keep_alive::{KeepAlive, request};
use crate::report::{Line, Report};
use crate::sample::Sample;
use crate::statistics::{Latency, Random, Ratio, median};

/// Clients that write, and as many that read.
const CLIENTS: usize = 8;

/// From one request of a client to its next: with all of them 400 requests a second, a tenth of what this API can do on
/// two cores, so that what is measured is what goes on beside them and not the clients among themselves.
const PERIOD: Duration = Duration::from_millis(40);

/// Between two looks whether it is over.
const LOOK_GAP: Duration = Duration::from_millis(10);

/// What a live request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// A task to be made.
    Post,
    /// A task to be read.
    Get,
}

/// A client and what it sends in turn.
#[derive(Clone)]
pub struct Client {
    verb: Verb,
    address: String,
    requests: Vec<Vec<u8>>,
    /// Its place within the period, so that the clients take turns.
    offset: Duration,
}

/// Microseconds of every answer of one phase.
#[derive(Debug, Default)]
pub struct Phase {
    posts: Vec<u32>,
    gets: Vec<u32>,
}

/// Which live requests are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requests {
    /// All of them.
    All,
    /// Those of this verb.
    Of(Verb),
}

impl Requests {
    fn name(self) -> &'static str {
        match self {
            Requests::All => "all requests'",
            Requests::Of(verb) => verb.name(),
        }
    }
}

impl Phase {
    fn times(&self, requests: Requests) -> Vec<u32> {
        match requests {
            Requests::All => [self.posts.as_slice(), &self.gets].concat(),
            Requests::Of(Verb::Post) => self.posts.clone(),
            Requests::Of(Verb::Get) => self.gets.clone(),
        }
    }

    /// Adds another phase's.
    pub fn add(&mut self, other: Phase) {
        self.posts.extend(other.posts);
        self.gets.extend(other.gets);
    }
}

impl Verb {
    fn name(self) -> &'static str {
        match self {
            Verb::Post => "POST",
            Verb::Get => "GET",
        }
    }
}

/// Requests per second of all clients together.
pub fn per_second() -> u128 {
    2 * CLIENTS as u128 * 1_000 / PERIOD.as_millis()
}

/// Writers, and readers of tasks that they create first; each of a user of its own.
///
/// # Errors
/// When the API doesn't answer as it should.
pub async fn clients(address: &str) -> Result<Vec<Client>> {
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

/// Keeps all clients at it for so long.
///
/// # Errors
/// When a request fails.
pub async fn load(clients: &[Client], length: Duration) -> Result<Phase> {
    load_until(clients, length, || false).await
}

/// The same, or until `is_over`.
///
/// # Errors
/// As [`load`].
pub async fn load_until(
    clients: &[Client],
    length: Duration,
    is_over: impl Fn() -> bool,
) -> Result<Phase> {
    let began = Instant::now();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut working = JoinSet::new();
    for client in clients {
        working.spawn(client.clone().work(stopped.clone()));
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
    /// Sends a request each period, whether or not the answers keep up: one that is late because the answer before it
    /// was, counts from when it was to be sent. One that only this client's own timer is late for counts from when it
    /// was sent.
    async fn work(self, stopped: tokio::sync::watch::Receiver<bool>) -> Result<(Verb, Vec<u32>)> {
        let mut connection = KeepAlive::open(&self.address).await?;
        let (mut due, mut times) = (Instant::now() + self.offset, Vec::new());
        let mut free_since = due;
        for request in self.requests.iter().cycle() {
            sleep_until(due.into()).await;
            let is_overdue = free_since > due;
            if *stopped.borrow() && !is_overdue {
                break;
            }
            let sent = if is_overdue { due } else { Instant::now() };
            let status = connection.exchange(request).await?;
            let is_good = (200..300).contains(&status);
            ensure!(is_good, "status {status} to a live request");
            free_since = Instant::now();
            let took = free_since - sent;
            times.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
            due += PERIOD;
        }
        Ok((self.verb, times))
    }
}

/// Reports one percentile (0 to 1) of the answers to these requests, in phases without something and beside it; `target` is the least
/// ratio of the first to the second that is good enough.
pub fn report(
    (alone, beside): (&[Phase], &[Phase]),
    (requests, share): (Requests, f64),
    (what, target): (&str, Option<f64>),
    random: &mut Random,
    report: &mut Report,
) {
    let percentiles = |phases: &[Phase]| -> Vec<f64> {
        let latencies = phases
            .iter()
            .filter_map(|phase| Latency::at(&phase.times(requests), share));
        latencies.collect()
    };
    let all = |phases: &[Phase]| -> Option<Latency> {
        let times: Vec<u32> = phases
            .iter()
            .flat_map(|phase| phase.times(requests))
            .collect();
        Latency::of(&times)
    };
    let (before, meanwhile) = (percentiles(alone), percentiles(beside));
    let name = format!("{} p{:.0}", requests.name(), share * 100.0);
    report.add(Line {
        latency: all(alone),
        ..Line::new(
            &format!("{name} without {what}"),
            median(&before).unwrap_or_default(),
            " ms",
        )
    });
    report.add(Line {
        latency: all(beside),
        ratio: Ratio::of(&before, &meanwhile, random),
        against: Some("the same with it, inverted".to_owned()),
        target,
        ..Line::new(
            &format!("{name} with {what}"),
            median(&meanwhile).unwrap_or_default(),
            " ms",
        )
    });
}
