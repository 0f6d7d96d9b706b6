//! Closed-loop clients, and the slices of time in which contenders are measured in turn.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::task::JoinSet;

use crate::keep_alive::KeepAlive;
use crate::statistics::{Latency, Random, Ratio, median};

/// Loaded but not counted at the beginning of each slice, while caches and sockets get warm and what the contender
/// before has left behind (a checkpoint, a write-back) is on its way.
const WARM_UP: Duration = Duration::from_millis(60);

/// One client: the requests it sends in turn, and the status they should get.
#[derive(Debug, Clone)]
pub struct LoopClient {
    address: Arc<str>,
    requests: Arc<[Vec<u8>]>,
    expected: u16,
}

/// What is measured: a server as a number of clients sees it.
#[derive(Debug)]
pub struct Contender {
    /// Names it among the others of its rounds.
    pub name: &'static str,
    clients: Vec<LoopClient>,
}

/// What was measured of one contender with one number of clients, over all rounds.
#[derive(Debug, Clone, Default)]
pub struct Series {
    /// Answers per second, one a round.
    pub rates: Vec<f64>,
    /// Microseconds of every answer.
    pub latencies_us: Vec<u32>,
    /// Answers with another status than expected, by status.
    pub unexpected: BTreeMap<u16, u64>,
}

/// All series of some rounds, by contender and number of clients.
#[derive(Debug, Default)]
pub struct Measured(BTreeMap<(&'static str, usize), Series>);

#[derive(Debug, Default)]
struct Seen {
    latencies_us: Vec<u32>,
    unexpected: BTreeMap<u16, u64>,
}

impl LoopClient {
    /// A client of the server at `address`, with at least one request.
    ///
    /// # Errors
    /// When nobody listens there, or the first request isn't answered with `expected`.
    pub async fn new(address: &str, requests: Vec<Vec<u8>>, expected: u16) -> Result<Self> {
        let mut connection = KeepAlive::open(address).await?;
        let first = requests.first().context("a client without requests")?;
        let status = connection.exchange(first).await?;
        let body = String::from_utf8_lossy(connection.body());
        ensure!(
            status == expected,
            "status {status} instead of {expected}: {body}"
        );
        Ok(Self {
            address: address.into(),
            requests: requests.into(),
            expected,
        })
    }

    /// On a connection of this slice's own, since servers close one that was idle between slices.
    async fn work(self, counted_from: Instant, until: Instant) -> Result<Seen> {
        let mut connection = KeepAlive::open(&self.address).await?;
        let mut seen = Seen::default();
        for request in self.requests.iter().cycle() {
            let began = Instant::now();
            if began >= until {
                break;
            }
            let status = connection.exchange(request).await?;
            let ended = Instant::now();
            if status != self.expected {
                *seen.unexpected.entry(status).or_default() += 1;
            } else if ended >= counted_from && ended < until {
                seen.latencies_us
                    .push(u32::try_from((ended - began).as_micros()).unwrap_or(u32::MAX));
            }
        }
        Ok(seen)
    }
}

impl Contender {
    /// A contender seen by these clients; a slice uses the first few of them.
    pub fn new(name: &'static str, clients: Vec<LoopClient>) -> Self {
        Self { name, clients }
    }

    /// Keeps `count` clients busy for the length of a slice.
    async fn slice(&self, count: usize, length: Duration) -> Result<Seen> {
        let counted_from = Instant::now() + WARM_UP;
        let until = counted_from + length;
        let mut working = JoinSet::new();
        for client in self.clients.iter().take(count) {
            working.spawn(client.clone().work(counted_from, until));
        }
        let mut all = Seen::default();
        while let Some(worked) = working.join_next().await {
            let seen = worked
                .context("a client has panicked")?
                .context(self.name)?;
            all.latencies_us.extend(seen.latencies_us);
            for (status, times) in seen.unexpected {
                *all.unexpected.entry(status).or_default() += times;
            }
        }
        Ok(all)
    }
}

impl Measured {
    /// One round: each contender with each number of clients once, in a random order, a slice of `length` each.
    ///
    /// # Errors
    /// When a connection breaks.
    pub async fn round(
        &mut self,
        contenders: &[Contender],
        counts: &[usize],
        length: Duration,
        random: &mut Random,
    ) -> Result<()> {
        let mut order: Vec<(usize, usize)> = (0..contenders.len())
            .flat_map(|at| counts.iter().map(move |count| (at, *count)))
            .collect();
        random.shuffle(&mut order);
        for (at, count) in order {
            let contender = &contenders[at];
            let seen = contender.slice(count, length).await?;
            let series = self.0.entry((contender.name, count)).or_default();
            #[expect(
                clippy::cast_precision_loss,
                reason = "a slice has fewer than 2^52 answers"
            )]
            series
                .rates
                .push(seen.latencies_us.len() as f64 / length.as_secs_f64());
            series.latencies_us.extend(seen.latencies_us);
            for (status, times) in seen.unexpected {
                *series.unexpected.entry(status).or_default() += times;
            }
        }
        Ok(())
    }

    /// The median rate of a contender, in answers per second.
    pub fn rate(&self, name: &'static str, count: usize) -> Option<f64> {
        median(&self.0.get(&(name, count))?.rates)
    }

    /// The ratio of two contenders' rates with the same number of clients, round by round.
    pub fn ratio(
        &self,
        name: &'static str,
        against: &'static str,
        count: usize,
        random: &mut Random,
    ) -> Option<Ratio> {
        Ratio::of(
            &self.0.get(&(name, count))?.rates,
            &self.0.get(&(against, count))?.rates,
            random,
        )
    }

    /// How long its answers took.
    pub fn latency(&self, name: &'static str, count: usize) -> Option<Latency> {
        Latency::of(&self.0.get(&(name, count))?.latencies_us)
    }

    /// Answers with unexpected statuses, a sentence each.
    pub fn surprises(&self) -> Vec<String> {
        let surprises = self.0.iter().flat_map(|((name, count), series)| {
            let answers = series.unexpected.iter();
            answers.map(move |(status, times)| {
                format!("{name}, {count} clients: {times} answers with status {status}")
            })
        });
        surprises.collect()
    }
}
