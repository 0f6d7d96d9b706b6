//! Where a lane's operations go: a store, and whether it can be reached.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use holdfast_shared::domain::{Body, Operation, Outcome, ResourceKey, Revocation, UserId};
use holdfast_shared::health::StoreHealth;
use holdfast_shared::store::postgres::Postgres;
use holdfast_shared::store::redis::Redis;
use holdfast_shared::store::{FailureClass, StoreError};

use super::judgement::Trouble;

/// From so many operations on a batch is applied in two halves at the same time: one transaction keeps PostgreSQL busy
/// on a single core, and waits while the next statement is made. Smaller batches are those of a store that has just
/// come back, or that serves others.
const WORTH_HALVING: usize = 500;

/// The receiving end of a lane. PostgreSQL takes tasks and profiles, Redis revocations.
pub trait Sink: Send + Sync + 'static {
    /// Applies operations, those of one resource in their order; gives one outcome each, in their order. After an error
    /// any of them may have been applied, and a repeat of them changes nothing. That the store has gone away has been
    /// reported to whoever watches it.
    fn apply(
        &self,
        operations: &[&Operation],
    ) -> impl Future<Output = Result<Vec<Outcome>, StoreError>> + Send;

    /// Which of these resources others hold locked at this moment. Waits for none of them; fails as contended when more
    /// than single resources are locked.
    fn find_locked(
        &self,
        resources: &[ResourceKey],
    ) -> impl Future<Output = Result<Vec<ResourceKey>, StoreError>> + Send;

    /// Whether others have used the store within that time; `false` where that isn't known.
    fn serves_others(&self, within: Duration) -> impl Future<Output = bool> + Send;

    /// What is thought of the store now.
    fn standing(&self) -> Standing;

    /// Waits until the store is thought to be usable.
    fn came_up(&self) -> impl Future<Output = ()> + Send;
}

/// What is thought of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It is usable.
    Up,
    /// It is not, which will pass.
    Away,
    /// It answers, but is of no use until somebody mends something.
    Unsound(Trouble),
}

impl Standing {
    fn of(health: &StoreHealth) -> Self {
        if health.is_up() {
            return Standing::Up;
        }
        let status = health.status();
        match status.class {
            Some(FailureClass::Systemic) => {
                let summary = status
                    .error
                    .unwrap_or_else(|| "it refuses everything".to_owned());
                Standing::Unsound(Trouble {
                    detail: summary.clone(),
                    summary,
                })
            }
            _ => Standing::Away,
        }
    }
}

/// PostgreSQL as a sink.
#[derive(Clone)]
pub struct PostgresSink {
    store: Postgres,
    health: StoreHealth,
}

impl PostgresSink {
    /// A sink for a store and its watch.
    pub fn new(store: Postgres, health: StoreHealth) -> Self {
        PostgresSink { store, health }
    }

    /// Applies two halves at the same time, over two connections. All of a resource is in one half.
    async fn apply_halves(&self, operations: &[&Operation]) -> Result<Vec<Outcome>, StoreError> {
        let hasher = RandomState::new();
        let is_first: Vec<bool> = operations
            .iter()
            .map(|operation| hasher.hash_one(operation.resource()).is_multiple_of(2))
            .collect();
        let half = |first: bool| -> Vec<&Operation> {
            let pairs = operations.iter().zip(&is_first);
            pairs
                .filter(|(_, is_first)| **is_first == first)
                .map(|(operation, _)| *operation)
                .collect()
        };
        let (first, second) = (half(true), half(false));
        let both = async {
            let (first, second) = tokio::join!(
                self.store.apply_batch(&first),
                self.store.apply_batch(&second)
            );
            both_or_graver(first, second)
        };
        let (first, second) = while_up(&self.health, both).await?;
        let (mut first, mut second) = (first.into_iter(), second.into_iter());
        let next = |is_first: &bool| {
            if *is_first {
                first.next()
            } else {
                second.next()
            }
        };
        Ok(is_first.iter().filter_map(next).collect())
    }
}

/// Both answers, or of two errors the one that says more about the store.
fn both_or_graver<T>(
    first: Result<T, StoreError>,
    second: Result<T, StoreError>,
) -> Result<(T, T), StoreError> {
    let gravity = |error: &StoreError| match error.class() {
        FailureClass::Unavailable => 3,
        FailureClass::Systemic => 2,
        FailureClass::Contended => 1,
        FailureClass::Item => 0,
    };
    match (first, second) {
        (Ok(first), Ok(second)) => Ok((first, second)),
        (Err(error), Ok(_)) | (Ok(_), Err(error)) => Err(error),
        (Err(first), Err(second)) if gravity(&first) >= gravity(&second) => Err(first),
        (Err(_), Err(second)) => Err(second),
    }
}

impl Sink for PostgresSink {
    async fn apply(&self, operations: &[&Operation]) -> Result<Vec<Outcome>, StoreError> {
        let outcomes = if operations.len() < WORTH_HALVING {
            while_up(&self.health, self.store.apply_batch(operations)).await?
        } else {
            self.apply_halves(operations).await?
        };
        answers(outcomes, operations.len())
    }

    async fn find_locked(&self, resources: &[ResourceKey]) -> Result<Vec<ResourceKey>, StoreError> {
        while_up(&self.health, self.store.find_locked(resources)).await
    }

    /// Failing at this is no news: the next apply tells.
    async fn serves_others(&self, within: Duration) -> bool {
        self.store.serves_others(within).await.unwrap_or(false)
    }

    fn standing(&self) -> Standing {
        Standing::of(&self.health)
    }

    async fn came_up(&self) {
        self.health.came_up().await;
    }
}

/// Does some work, but not beyond the moment when the store is seen to be down: a call that a network has swallowed
/// would take its whole deadline, long after the store is back. Whatever became of the work, its replay changes nothing.
///
/// Tells the watch when the work finds the store gone. Not when it refuses everything: then probes may well succeed,
/// and the lane stops by itself.
async fn while_up<T>(
    health: &StoreHealth,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let cut_off = || {
        StoreError::new(
            FailureClass::Unavailable,
            "the store went away while it was given a batch",
        )
    };
    let done = tokio::select! {
        done = work => done,
        () = health.went_down() => return Err(cut_off()),
    };
    if let Err(error) = &done
        && error.class() == FailureClass::Unavailable
    {
        health.report_failure(error);
    }
    done
}

/// An answer missing would leave an item to be applied for ever, and shift the others' answers: stop instead.
fn answers(outcomes: Vec<Outcome>, expected: usize) -> Result<Vec<Outcome>, StoreError> {
    if outcomes.len() == expected {
        return Ok(outcomes);
    }
    let error = format!("{} answers came for {expected} operations", outcomes.len());
    Err(StoreError::new(FailureClass::Systemic, error))
}

/// Redis as a sink.
#[derive(Clone)]
pub struct RedisSink {
    store: Redis,
    health: StoreHealth,
}

impl RedisSink {
    /// A sink for a store and its watch.
    pub fn new(store: Redis, health: StoreHealth) -> Self {
        RedisSink { store, health }
    }
}

impl Sink for RedisSink {
    async fn apply(&self, operations: &[&Operation]) -> Result<Vec<Outcome>, StoreError> {
        let revocations: Vec<(UserId, Revocation)> = operations
            .iter()
            .filter_map(|operation| revocation(operation))
            .collect();
        while_up(&self.health, self.store.revoke(&revocations)).await?;
        Ok(vec![Outcome::Applied; operations.len()])
    }

    /// Redis locks nothing.
    async fn find_locked(&self, _: &[ResourceKey]) -> Result<Vec<ResourceKey>, StoreError> {
        Ok(Vec::new())
    }

    /// A revocation is soon written; nobody has to be made room for.
    async fn serves_others(&self, _: Duration) -> bool {
        false
    }

    fn standing(&self) -> Standing {
        Standing::of(&self.health)
    }

    async fn came_up(&self) {
        self.health.came_up().await;
    }
}

/// What an operation revokes; the buffer puts nothing else into this lane.
fn revocation(operation: &Operation) -> Option<(UserId, Revocation)> {
    match &operation.body {
        Body::Session(revocation) => Some((operation.user_id.clone(), revocation.clone())),
        Body::Task { .. } | Body::Profile { .. } => None,
    }
}
