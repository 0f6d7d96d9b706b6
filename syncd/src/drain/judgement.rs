//! Applies a batch and finds out which of its items are to blame when that fails.
//!
//! A batch is one transaction, so one bad item fails all. Then it is taken apart, and its parts again, until the guilty
//! items stand alone and all others have been applied. Of locked rows there is a shorter way: the store is asked which
//! they are, and the batch is tried again without them, so however many they are, they are waited for once. What follows a guilty item on the same resource is left for
//! later, so that nothing on one resource is ever applied out of order.

use std::collections::HashSet;
use std::error::Error;
use std::time::{Duration, Instant};

use holdfast_shared::buffer::Queued;
use holdfast_shared::domain::{Operation, Outcome, ResourceKey};
use holdfast_shared::seeded::Bug;
use holdfast_shared::store::{FailureClass, StoreError};

use super::parking::MOST_CONTENDED;
use super::sink::Sink;

/// Into how many parts a batch is taken apart. A part with a row that has to be waited for costs the whole lock timeout
/// and one without next to nothing, so few levels are worth many parts: of 50 items with one such row, three parts wait
/// for it, where halving would make it seven.
const SPLIT_WAYS: usize = 8;

/// What became of a batch. Items in none of the lists were not decided and stay queued.
#[derive(Debug, Default)]
pub struct Judgement {
    /// Those the store answered for.
    pub answered: Vec<(Queued, Outcome)>,
    /// Those it fails on, with its words; at most one a resource.
    pub refused: Vec<(Queued, String)>,
    /// Resources somebody else holds.
    pub contended: Vec<ResourceKey>,
    /// Why the rest was not tried, if something stood in the way.
    pub obstacle: Option<Obstacle>,
    /// How long the apply took, when the whole batch (but for what was tried apart) went through in one.
    pub in_one: Option<Duration>,
}

impl Judgement {
    /// Whether the store has answered for every item.
    pub fn is_clean(&self) -> bool {
        self.obstacle.is_none() && self.refused.is_empty() && self.contended.is_empty()
    }
}

/// What makes it pointless to go on with a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// The store is not usable.
    Away,
    /// More than single rows are locked by others.
    Locked,
    /// The store refuses everything: a schema, a permission, a password.
    Systemic(Trouble),
}

/// What the store refuses everything for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// For everybody to see, without secrets or a driver's words.
    pub summary: String,
    /// With its causes, for the log.
    pub detail: String,
}

impl From<&StoreError> for Trouble {
    fn from(error: &StoreError) -> Self {
        Trouble {
            summary: error.to_string(),
            detail: with_causes(error),
        }
    }
}

/// An error and all that caused it, in one line; causes that an error has said itself are not repeated.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    text
}

/// Applies `items`, which are in queue order; those of the resources `apart`, which were locked before, after the
/// others and not together with them. Stops early once `enough` resources were refused and nothing was accepted, or
/// [`MOST_CONTENDED`] had to be waited for.
pub async fn judge<S: Sink>(
    sink: &S,
    items: Vec<Queued>,
    apart: &HashSet<ResourceKey>,
    enough: Option<usize>,
) -> Judgement {
    let mut trial = Trial::new(items, apart);
    while let Some(part) = trial.next_part() {
        trial.hear(sink, part).await;
        if trial.is_over(enough) {
            break;
        }
    }
    trial.judgement
}

/// A batch being judged.
struct Trial {
    /// Emptied as they are decided.
    items: Vec<Option<Queued>>,
    /// How many there were, without those that are tried apart.
    together: usize,
    /// Parts still to be tried, as positions, the next one last.
    parts: Vec<Vec<usize>>,
    /// Resources whose later items have to wait.
    held: HashSet<ResourceKey>,
    /// Resources found locked by waiting for them.
    waited_for: usize,
    judgement: Judgement,
}

impl Trial {
    fn new(items: Vec<Queued>, apart: &HashSet<ResourceKey>) -> Self {
        let is_apart =
            |position: &usize| !apart.is_empty() && apart.contains(&resource(&items[*position]));
        let (last, first): (Vec<usize>, Vec<usize>) = (0..items.len()).partition(is_apart);
        Trial {
            together: first.len(),
            items: items.into_iter().map(Some).collect(),
            parts: vec![last, first],
            held: HashSet::new(),
            waited_for: 0,
            judgement: Judgement::default(),
        }
    }

    /// The next part that still has something in it.
    fn next_part(&mut self) -> Option<Vec<usize>> {
        while let Some(mut part) = self.parts.pop() {
            part.retain(|position| self.is_open(*position));
            if !part.is_empty() {
                return Some(part);
            }
        }
        None
    }

    fn is_open(&self, position: usize) -> bool {
        let item = self.items[position].as_ref();
        item.is_some_and(|queued| self.held.is_empty() || !self.held.contains(&resource(queued)))
    }

    /// Tries one part.
    async fn hear<S: Sink>(&mut self, sink: &S, part: Vec<usize>) {
        let operations: Vec<&Operation> = part
            .iter()
            .filter_map(|position| self.items[*position].as_ref())
            .map(|queued| &queued.item.operation)
            .collect();
        let began = Instant::now();
        let answered = sink.apply(&operations).await;
        match answered {
            Ok(outcomes) => self.note_answers(&part, outcomes, began.elapsed()),
            Err(error) => match error.class() {
                FailureClass::Unavailable if Bug::RetryCountedInOutage.is_on() => {
                    self.refuse(part[0], &error);
                }
                FailureClass::Contended if Bug::LockedRowStopsLane.is_on() => {
                    self.judgement.obstacle = Some(Obstacle::Away);
                }
                FailureClass::Unavailable => self.judgement.obstacle = Some(Obstacle::Away),
                FailureClass::Systemic => {
                    self.judgement.obstacle = Some(Obstacle::Systemic(Trouble::from(&error)));
                }
                FailureClass::Contended => self.make_way(sink, part).await,
                FailureClass::Item if part.len() > 1 => self.split(part),
                FailureClass::Item => self.refuse(part[0], &error),
            },
        }
    }

    fn note_answers(&mut self, part: &[usize], outcomes: Vec<Outcome>, took: Duration) {
        if part.len() == self.together && self.judgement.answered.is_empty() {
            self.judgement.in_one = Some(took);
        }
        for (position, outcome) in part.iter().zip(outcomes) {
            if let Some(queued) = self.items[*position].take() {
                self.judgement.answered.push((queued, outcome));
            }
        }
    }

    /// Puts off what others hold locked, and leaves the rest of the part to be tried again without it. Nobody may be
    /// seen to hold anything: two transactions got into each other's way, or somebody is about to make the very row.
    async fn make_way<S: Sink>(&mut self, sink: &S, part: Vec<usize>) {
        let resources = self.resources_of(&part);
        if resources.len() == 1 {
            self.waited_for += 1;
            return self.put_off(resources);
        }
        match sink.find_locked(&resources).await {
            Ok(locked) if locked.is_empty() => self.split(part),
            Ok(locked) => {
                self.put_off(locked);
                self.parts.push(part);
            }
            Err(error) => match error.class() {
                FailureClass::Contended => self.judgement.obstacle = Some(Obstacle::Locked),
                FailureClass::Unavailable => self.judgement.obstacle = Some(Obstacle::Away),
                FailureClass::Systemic => {
                    self.judgement.obstacle = Some(Obstacle::Systemic(Trouble::from(&error)));
                }
                FailureClass::Item => self.split(part),
            },
        }
    }

    fn split(&mut self, part: Vec<usize>) {
        let size = part.len().div_ceil(SPLIT_WAYS);
        self.parts.extend(part.rchunks(size).map(<[usize]>::to_vec));
    }

    /// The resources of a part, each once.
    fn resources_of(&self, part: &[usize]) -> Vec<ResourceKey> {
        let mut seen = HashSet::new();
        part.iter()
            .filter_map(|position| self.items[*position].as_ref())
            .map(resource)
            .filter(|resource| seen.insert(resource.clone()))
            .collect()
    }

    fn put_off(&mut self, resources: Vec<ResourceKey>) {
        self.held.extend(resources.iter().cloned());
        self.judgement.contended.extend(resources);
    }

    fn refuse(&mut self, position: usize, error: &StoreError) {
        if let Some(queued) = self.items[position].take() {
            let operation = queued.item.operation.id;
            tracing::debug!(%operation, error = with_causes(error), "store fails on an operation");
            self.held.insert(resource(&queued));
            self.judgement.refused.push((queued, error.to_string()));
        }
    }

    fn is_over(&self, enough: Option<usize>) -> bool {
        let nothing_accepted = self.judgement.answered.is_empty();
        let heard_enough = enough.is_some_and(|enough| self.judgement.refused.len() >= enough);
        self.judgement.obstacle.is_some()
            || self.waited_for >= MOST_CONTENDED
            || (nothing_accepted && heard_enough)
    }
}

/// The resource of a queued item.
pub(super) fn resource(queued: &Queued) -> ResourceKey {
    queued.item.operation.resource()
}
