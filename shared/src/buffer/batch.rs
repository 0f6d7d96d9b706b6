//! Batches to drain: which items come next, and which are left out.

use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasher, RandomState};

use crate::domain::{Priority, ResourceKey, Timestamp};

use super::epoch::{Epochs, correct};
use super::queue::Queued;
use super::schema::{Decoded, Item, Lane, Place, checksum, decode};

/// Most items passed over in one read: bounds it when very many are put off.
const PASS_MAX: usize = 20_000;

/// So many items passed over make it worth while to go on behind them with the next batch.
const WORTH_RESUMING: usize = 2_000;

/// What a batch leaves out.
#[derive(Debug, Clone, Default)]
pub struct Skip {
    /// Resources that are put off: none of their items.
    pub resources: HashSet<ResourceKey>,
    /// Items that are being settled already.
    pub places: HashSet<Place>,
    /// Everything up to the end of an earlier batch, and later items of what that one passed over.
    pub passed: Option<Passed>,
}

/// Items to apply, in order.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// The items: by priority, then by age; never a later one of a resource without the earlier ones.
    pub items: Vec<Queued>,
    /// When the first of the items put off is due.
    pub next_due: Option<Timestamp>,
    /// Items passed over because their resource is put off.
    pub put_off: usize,
    /// Items whose checksum is wrong: to be set aside.
    pub damaged: Vec<Place>,
    /// Items that a newer program wrote: left where they are.
    pub newer: usize,
    /// Set when there may be more behind very many that were passed over: where the next batch is to go on.
    pub passed: Option<Passed>,
    /// Which opening of the file they are from: another file may be at its path since.
    pub generation: u64,
}

impl Batch {
    /// This batch, which found nothing to apply, and the one behind it as one.
    pub fn followed_by(mut self, next: Batch) -> Batch {
        self.damaged.extend(next.damaged);
        Batch {
            items: next.items,
            next_due: self.next_due.into_iter().chain(next.next_due).min(),
            put_off: self.put_off + next.put_off,
            damaged: self.damaged,
            newer: self.newer + next.newer,
            passed: next.passed,
            generation: next.generation,
        }
    }
}

/// How far a pass over a lane has come, and whose items it has passed over: later ones of theirs have to wait too.
///
/// Valid only as long as everything taken on the way has ended: an item that goes back to its queue is behind the
/// pass, and must not be overtaken.
#[derive(Debug, Clone)]
pub struct Passed {
    up_to: Place,
    resources: Sieve,
}

impl Passed {
    /// From where to read a queue; `None` when it has been passed altogether.
    pub(super) fn start_in(&self, lane: Lane, priority: Priority) -> Option<u64> {
        let last = Place::last(lane, priority);
        let next = Place::new(lane, priority, self.up_to.seq() + 1);
        if last < self.up_to {
            None
        } else if priority == self.up_to.priority() {
            Some(next.seq())
        } else {
            Some(0)
        }
    }
}

/// A set of resources in constant space (a Bloom filter of one mebibyte): it may say of one that it holds it though it
/// doesn't, of 2 in 100 when it holds a million. Such a one waits for the next pass, whose filter errs about others.
#[derive(Clone)]
struct Sieve {
    bits: Vec<u64>,
    hasher: RandomState,
}

impl Sieve {
    const BITS: u64 = 1 << 23;
    const PROBES: u64 = 4;

    fn new() -> Self {
        let words = usize::try_from(Sieve::BITS / 64).expect("fits in any address space");
        Sieve {
            bits: vec![0; words],
            hasher: RandomState::new(),
        }
    }

    fn insert(&mut self, key: &ResourceKey) {
        for (word, bit) in self.positions(key) {
            self.bits[word] |= bit;
        }
    }

    fn may_hold(&self, key: &ResourceKey) -> bool {
        self.positions(key)
            .all(|(word, bit)| self.bits[word] & bit != 0)
    }

    fn positions(&self, key: &ResourceKey) -> impl Iterator<Item = (usize, u64)> + use<> {
        let hash = self.hasher.hash_one(key);
        let (start, stride) = (hash & u64::from(u32::MAX), (hash >> 32) | 1);
        (0..Sieve::PROBES).map(move |probe| {
            let position = (start + probe * stride) % Sieve::BITS;
            let word = usize::try_from(position / 64).expect("below the number of words");
            (word, 1 << (position % 64))
        })
    }
}

impl fmt::Debug for Sieve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sieve").finish_non_exhaustive()
    }
}

/// A batch in the making.
pub(super) struct Gathering<'g> {
    batch: Batch,
    held: HashSet<ResourceKey>,
    passed_over: usize,
    last: Option<Place>,
    limit: usize,
    skip: &'g Skip,
    epochs: &'g Epochs,
    now: Timestamp,
}

impl<'g> Gathering<'g> {
    pub(super) fn new(
        limit: usize,
        skip: &'g Skip,
        epochs: &'g Epochs,
        (now, generation): (Timestamp, u64),
    ) -> Self {
        Gathering {
            batch: Batch {
                generation,
                ..Batch::default()
            },
            held: HashSet::new(),
            passed_over: 0,
            last: None,
            limit,
            skip,
            epochs,
            now,
        }
    }

    /// What has been gathered, with nothing behind it.
    pub(super) fn finish(self) -> Batch {
        self.batch
    }

    /// What has been gathered, with more behind it.
    pub(super) fn pause(mut self) -> Batch {
        let before = self.skip.passed.as_ref();
        if let Some(up_to) = self.last
            && (before.is_some() || self.passed_over >= WORTH_RESUMING)
        {
            let mut resources = before.map_or_else(Sieve::new, |passed| passed.resources.clone());
            self.held.iter().for_each(|key| resources.insert(key));
            self.batch.passed = Some(Passed { up_to, resources });
        }
        self.batch
    }

    /// Whether there is room for another item.
    pub(super) fn wants_more(&self) -> bool {
        self.batch.items.len() < self.limit && self.passed_over < PASS_MAX
    }

    /// Takes the next item of the lane, or notes why not.
    pub(super) fn consider(&mut self, place: Place, bytes: &[u8]) {
        self.last = Some(place);
        if self.skip.places.contains(&place) {
            return;
        }
        let mut item: Item = match decode(bytes) {
            Decoded::Whole(item) => item,
            Decoded::Damaged => return self.batch.damaged.push(place),
            Decoded::Newer => {
                self.batch.newer += 1;
                self.passed_over += 1;
                return;
            }
        };
        let key = item.operation.resource();
        if self.is_held(&key) {
            self.pass_over(key);
        } else if let Some(due) = item.not_before.filter(|due| *due > self.now) {
            self.batch.next_due = self.batch.next_due.into_iter().chain([due]).min();
            self.pass_over(key);
        } else {
            correct(&mut item, self.epochs);
            self.batch.items.push(Queued {
                place,
                checksum: checksum(bytes),
                item: Box::new(item),
            });
        }
    }

    fn is_held(&self, key: &ResourceKey) -> bool {
        let passed = self.skip.passed.as_ref();
        self.skip.resources.contains(key)
            || self.held.contains(key)
            || passed.is_some_and(|passed| passed.resources.may_hold(key))
    }

    fn pass_over(&mut self, key: ResourceKey) {
        self.batch.put_off += 1;
        self.passed_over += 1;
        self.held.insert(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::TaskId;

    #[test]
    fn a_sieve_holds_what_was_put_in_and_hardly_anything_else() {
        let keys = || ResourceKey::Task(TaskId::generate());
        let mut sieve = Sieve::new();
        let held: Vec<ResourceKey> = std::iter::repeat_with(keys).take(100_000).collect();
        held.iter().for_each(|key| sieve.insert(key));
        assert!(held.iter().all(|key| sieve.may_hold(key)));
        let mistaken = std::iter::repeat_with(keys)
            .take(100_000)
            .filter(|key| sieve.may_hold(key));
        assert!(mistaken.count() < 100);
    }

    #[test]
    fn a_pass_goes_on_behind_its_end() {
        let priority = |number| Priority::parse(number).expect("valid");
        let passed = Passed {
            up_to: Place::new(Lane::Postgres, priority(3), 17),
            resources: Sieve::new(),
        };
        let starts: Vec<Option<u64>> = (1..=5)
            .map(|number| passed.start_in(Lane::Postgres, priority(number)))
            .collect();
        assert_eq!(starts, [None, None, Some(18), Some(0), Some(0)]);
    }
}
