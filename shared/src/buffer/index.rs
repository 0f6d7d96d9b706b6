//! What is pending, by resource, operation and user: an index in memory over the queues.
//!
//! It is no second truth. It follows the file by sequence number (whatever any process appended since the last look is
//! read from the queues' ends), and what it names is looked up in the file before it is believed, since another
//! process may have drained it. In the file, tables keyed this way would cost 5 to 12 times an append at a million
//! items; rebuilding this takes about a second for a million. It takes about 400 bytes an item.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::ops::RangeFrom;
use std::time::{Duration, Instant};

use redb::{ReadableTable, StorageError};

use crate::domain::{OperationId, Priority, ResourceKey, UserId};

use super::schema::{ItemPrefix, Lane, Place};

/// Entries that may be out of date before the index is swept: this many, or as many as are pending.
const SWEEP_SLACK: usize = 4_096;

/// A sweep goes through so many parts, since whoever asks meanwhile waits. Of a million entries all at once takes a
/// tenth of a second; a part of them, a tenth of a millisecond.
const SHARDS: usize = 1_024;

/// Parts are swept in one go for so long.
const SWEEP_LIMIT: Duration = Duration::from_micros(500);

/// The items of one resource: almost always one.
#[derive(Debug)]
struct Places {
    first: Place,
    more: Vec<Place>,
}

impl Places {
    fn iter(&self) -> impl Iterator<Item = Place> {
        std::iter::once(self.first).chain(self.more.iter().copied())
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct PendingIndex {
    generation: u64,
    next_seq: u64,
    hasher: RandomState,
    shards: Vec<Shard>,
    /// Which shard is swept next.
    swept: usize,
}

/// The resources, and the operations, whose hashes fall on this part.
#[derive(Debug, Default)]
struct Shard {
    by_resource: HashMap<ResourceKey, Places>,
    /// Of these resources.
    by_user: HashMap<UserId, HashSet<ResourceKey>>,
    by_operation: HashMap<OperationId, Place>,
}

impl Default for PendingIndex {
    fn default() -> Self {
        PendingIndex {
            generation: 0,
            next_seq: 0,
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            swept: 0,
        }
    }
}

impl PendingIndex {
    /// Forgets everything if the file is another one than it was.
    pub(super) fn for_generation(&mut self, generation: u64) -> &mut Self {
        if self.generation != generation {
            *self = PendingIndex {
                generation,
                ..PendingIndex::default()
            };
        }
        self
    }

    /// The sequence numbers not yet seen, when the file's next one is `next_seq`; `None` when there are none.
    pub(super) fn unseen(&self, next_seq: u64) -> Option<RangeFrom<u64>> {
        (self.next_seq < next_seq).then_some(self.next_seq..)
    }

    /// Notes the items of one queue that have not been seen.
    pub(super) fn absorb(
        &mut self,
        (lane, priority): (Lane, Priority),
        queue: &impl ReadableTable<u64, &'static [u8]>,
        unseen: RangeFrom<u64>,
    ) -> Result<(), StorageError> {
        for entry in queue.range(unseen)? {
            let (seq, bytes) = entry?;
            if let Some(prefix) = ItemPrefix::read(bytes.value()) {
                self.insert(Place::new(lane, priority, seq.value()), prefix);
            }
        }
        Ok(())
    }

    /// Records that all up to `next_seq` has been absorbed.
    pub(super) fn caught_up(&mut self, next_seq: u64) {
        self.next_seq = next_seq;
    }

    fn insert(&mut self, place: Place, prefix: ItemPrefix) {
        let of_operation = self.shard_of(&prefix.id);
        self.shards[of_operation]
            .by_operation
            .insert(prefix.id, place);
        let key = prefix.resource();
        let of_resource = self.shard_of(&key);
        self.shards[of_resource].insert(place, key, prefix.user_id);
    }

    fn shard_of(&self, key: &impl Hash) -> usize {
        let hash = self.hasher.hash_one(key) % SHARDS as u64;
        usize::try_from(hash).unwrap_or(0)
    }

    /// Where items of a resource may be, in no particular order.
    pub(super) fn of_resource(&self, key: &ResourceKey) -> Vec<Place> {
        self.shards[self.shard_of(key)]
            .by_resource
            .get(key)
            .map(|places| places.iter().collect())
            .unwrap_or_default()
    }

    /// Where the item of an operation may be.
    pub(super) fn of_operation(&self, id: OperationId) -> Option<Place> {
        let shard = &self.shards[self.shard_of(&id)];
        shard.by_operation.get(&id).copied()
    }

    /// Resources of a user's that may have items.
    pub(super) fn of_user(&self, user: &UserId) -> Vec<ResourceKey> {
        let keys = self
            .shards
            .iter()
            .filter_map(|shard| shard.by_user.get(user));
        keys.flatten().cloned().collect()
    }

    /// Whether so many entries are out of date that [`PendingIndex::sweep`] pays.
    pub(super) fn wants_sweep(&self, pending: u64) -> bool {
        let pending = usize::try_from(pending).unwrap_or(usize::MAX);
        let entries: usize = self
            .shards
            .iter()
            .map(|shard| shard.by_operation.len())
            .sum();
        entries > pending.saturating_mul(2).saturating_add(SWEEP_SLACK)
    }

    /// Drops what the file no longer has, as far as that goes quickly; the next sweep goes on there. `present` tells.
    pub(super) fn sweep(&mut self, mut present: impl FnMut(Place) -> bool) {
        let began = Instant::now();
        for _ in 0..SHARDS {
            self.shards[self.swept].sweep(&mut present);
            self.swept = (self.swept + 1) % SHARDS;
            if began.elapsed() >= SWEEP_LIMIT {
                return;
            }
        }
    }
}

impl Shard {
    fn insert(&mut self, place: Place, key: ResourceKey, user: UserId) {
        self.by_user.entry(user).or_default().insert(key.clone());
        match self.by_resource.get_mut(&key) {
            None => {
                let more = Vec::new();
                self.by_resource.insert(key, Places { first: place, more });
            }
            Some(places) if places.iter().any(|known| known == place) => {}
            Some(places) => places.more.push(place),
        }
    }

    fn sweep(&mut self, mut present: impl FnMut(Place) -> bool) {
        self.by_operation.retain(|_, place| present(*place));
        self.by_resource.retain(|_, places| {
            places.more.retain(|place| present(*place));
            if present(places.first) {
                return true;
            }
            match places.more.pop() {
                Some(place) => {
                    places.first = place;
                    true
                }
                None => false,
            }
        });
        let kept = &self.by_resource;
        self.by_user.retain(|_, keys| {
            keys.retain(|key| kept.contains_key(key));
            !keys.is_empty()
        });
    }
}
