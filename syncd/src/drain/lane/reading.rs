//! Which items come next: past what is parked, suspected, being settled or put off, and ahead of time where nothing of
//! that is in the way.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use holdfast_shared::buffer::{Batch, BufferError, Passed, Place, Queued, Skip};
use holdfast_shared::domain::ResourceKey;
use tokio::task::JoinHandle;

use super::super::sink::Sink;
use super::super::time::{earliest, timestamp_of};
use super::Drain;
use crate::metrics;

/// How long a pass behind very many put-off items goes on before more urgent ones, and those that have come due, are
/// looked for at the front.
const PASS_LIMIT: Duration = Duration::from_secs(1);

/// A pass over the queue, where very many items are put off: batches go on behind them instead of passing over them
/// again each time.
#[derive(Debug, Default)]
pub(super) struct Pass {
    passed: Option<Passed>,
    /// When it first found something behind them, and how long it took to get there.
    found: Option<(Instant, Duration)>,
}

impl Pass {
    /// Whether it is time to look at the front again: after [`PASS_LIMIT`], or as long as it takes to come back here.
    fn is_over(&self) -> bool {
        let limit = |took: Duration| took.max(PASS_LIMIT);
        self.found
            .is_some_and(|(since, took)| since.elapsed() >= limit(took))
    }
}

impl<S: Sink> Drain<S> {
    /// Begins to read what comes after `items`, unless resources are put off or suspected: which, these decide.
    pub(super) fn read_ahead(
        &self,
        items: &[Queued],
    ) -> Option<JoinHandle<Result<Batch, BufferError>>> {
        if !self.parking.is_empty() || !self.suspicion.is_calm() {
            return None;
        }
        let mut skip = self.settling_now();
        skip.places.extend(items.iter().map(|queued| queued.place));
        skip.passed = self.pass.passed.clone();
        let (lane, limit, now) = (self.lane, self.size.get(), self.buffer.clock().now());
        let buffer = self.buffer.clone();
        let reading = async move {
            buffer
                .read(move |reader| reader.next_batch(lane, limit, &skip, now))
                .await
        };
        Some(tokio::spawn(reading))
    }

    fn settling_now(&self) -> Skip {
        let settling = self.settling.as_ref();
        settling.map_or_else(Skip::default, |settling| settling.skip.clone())
    }

    /// Reads until something is found, or a whole pass from the front has found nothing.
    pub(super) async fn next_batch(&mut self) -> Result<Batch, BufferError> {
        if self.pass.is_over() {
            self.pass = Pass::default();
            self.ahead = None;
        }
        if let Some(ahead) = self.ahead.take() {
            let mut batch = ahead.await.unwrap_or(Err(BufferError::Closed))?;
            if !batch.items.is_empty() {
                self.pass.passed = batch.passed.take();
                return self.sort_out(batch).await;
            }
        }
        let began = Instant::now();
        while self.pass.passed.is_some() {
            let batch = self.read_batch().await?;
            if !batch.items.is_empty() {
                return Ok(batch);
            }
        }
        self.pass = Pass::default();
        let mut batch = self.read_batch().await?;
        while batch.items.is_empty() && self.pass.passed.is_some() {
            let next = self.read_batch().await?;
            batch = batch.followed_by(next);
        }
        if self.pass.passed.is_some() {
            self.pass.found = Some((Instant::now(), began.elapsed()));
        }
        Ok(batch)
    }

    async fn read_batch(&mut self) -> Result<Batch, BufferError> {
        let limit = if self.suspicion.wants_second_opinion() {
            self.size.first()
        } else {
            self.size.get()
        };
        let mut skip = self.settling_now();
        self.choose_retried().await;
        let parked = self.parking.resources();
        let parked = parked.filter(|resource| !self.retried.contains(*resource));
        skip.resources.extend(parked.cloned());
        skip.resources.extend(self.suspicion.skipped().cloned());
        skip.passed = self.pass.passed.take();
        let (lane, now) = (self.lane, self.buffer.clock().now());
        let mut batch = self
            .buffer
            .read(move |reader| reader.next_batch(lane, limit, &skip, now))
            .await?;
        self.pass.passed = batch.passed.take();
        let next_due = self.parking.next_due(Instant::now());
        batch.next_due = earliest(
            batch.next_due,
            next_due.map(|until| timestamp_of(until, now)),
        );
        self.sort_out(batch).await
    }

    /// Sees to what can't be applied.
    async fn sort_out(&mut self, mut batch: Batch) -> Result<Batch, BufferError> {
        if self.vetted.is_some_and(|vetted| vetted != batch.generation) {
            let path = self.buffer.path().to_owned();
            return Err(BufferError::Replaced { path });
        }
        self.set_damaged_aside(std::mem::take(&mut batch.damaged))
            .await?;
        self.note_newer(batch.newer);
        Ok(batch)
    }

    /// Finds the parked resources that are tried again: of those that are due, the ones nobody holds any more. Where that
    /// can't be found out they stay parked.
    async fn choose_retried(&mut self) {
        let due = self.parking.due(Instant::now());
        if due.is_empty() {
            return;
        }
        let locked = match self.sink.find_locked(&due).await {
            Ok(locked) => locked,
            Err(error) => {
                tracing::debug!(lane = self.lane.as_str(), %error, "can't see what is still locked");
                due.clone()
            }
        };
        self.park(&locked);
        let locked: HashSet<ResourceKey> = locked.into_iter().collect();
        let free = due
            .into_iter()
            .filter(|resource| !locked.contains(resource));
        self.retried.extend(free);
    }

    async fn set_damaged_aside(&self, places: Vec<Place>) -> Result<(), BufferError> {
        if places.is_empty() {
            return Ok(());
        }
        let count = self.buffer.set_aside(places).await?;
        metrics::count_damaged(count);
        tracing::error!(
            lane = self.lane.as_str(),
            items = count,
            "damaged items set aside: keep the buffer file"
        );
        Ok(())
    }

    /// Says once that somebody has to upgrade this program.
    fn note_newer(&mut self, items: usize) {
        if items > 0 && !std::mem::replace(&mut self.newer_noted, true) {
            let lane = self.lane.as_str();
            tracing::error!(
                lane,
                "items of a newer version are left queued: upgrade syncd"
            );
        }
    }
}
