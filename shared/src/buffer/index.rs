//! What is pending, by resource, operation and user: an index in memory over the queues.
//!
//! It is no second truth. It follows the file by sequence number (whatever any process appended since the last look is
//! read from the queues' ends), and what it names is looked up in the file before it is believed, since another
//! process may have drained it. In the file, tables keyed this way would cost 5 to 12 times an append at a million
//! items; rebuilding this takes about a second for a million. It takes about 300 bytes an item.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::ops::RangeFrom;

use redb::{ReadableTable, StorageError};

use crate::domain::{OperationId, Priority, ResourceKey, UserId};

use super::schema::{ItemPrefix, Lane, Place};

/// Entries that may be out of date before the index is swept: this many, or as many as are pending.
const SWEEP_SLACK: usize = 4_096;

/// The index is swept in so many parts, since whoever asks meanwhile waits. Of a million entries all at once takes a
/// tenth of a second; a part of them, a tenth of a millisecond. What is pending of one user is in one part.
pub(super) const PARTS: usize = 1_024;

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

    /// Drops those that aren't present; tells whether any is left.
    fn retain(&mut self, mut present: impl FnMut(Place) -> bool) -> bool {
        self.more.retain(|place| present(*place));
        if present(self.first) {
            return true;
        }
        let next = self.more.pop();
        self.first = next.unwrap_or(self.first);
        next.is_some()
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct PendingIndex {
    generation: u64,
    next_seq: u64,
    by_resource: Parted<ResourceKey, Places>,
    by_user: Parted<UserId, HashSet<ResourceKey>>,
    by_operation: Parted<OperationId, Place>,
}

/// A map in [`PARTS`] parts, by the keys' hashes.
#[derive(Debug)]
struct Parted<K, V> {
    hasher: RandomState,
    parts: Vec<HashMap<K, V>>,
}

impl<K: Eq + Hash, V> Parted<K, V> {
    fn new() -> Self {
        Parted {
            hasher: RandomState::new(),
            parts: (0..PARTS).map(|_| HashMap::new()).collect(),
        }
    }

    fn number_of(&self, key: &K) -> usize {
        let hash = self.hasher.hash_one(key) % PARTS as u64;
        usize::try_from(hash).unwrap_or(0)
    }

    fn get(&self, key: &K) -> Option<&V> {
        self.parts[self.number_of(key)].get(key)
    }

    fn part_of(&mut self, key: &K) -> &mut HashMap<K, V> {
        let number = self.number_of(key);
        &mut self.parts[number]
    }

    fn len(&self) -> usize {
        self.parts.iter().map(HashMap::len).sum()
    }
}

impl Default for PendingIndex {
    fn default() -> Self {
        PendingIndex {
            generation: 0,
            next_seq: 0,
            by_resource: Parted::new(),
            by_user: Parted::new(),
            by_operation: Parted::new(),
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
        self.by_operation
            .part_of(&prefix.id)
            .insert(prefix.id, place);
        let key = prefix.resource();
        let of_user = self.by_user.part_of(&prefix.user_id);
        of_user
            .entry(prefix.user_id)
            .or_default()
            .insert(key.clone());
        let of_resource = self.by_resource.part_of(&key);
        match of_resource.get_mut(&key) {
            None => {
                let more = Vec::new();
                of_resource.insert(key, Places { first: place, more });
            }
            Some(places) if places.iter().any(|known| known == place) => {}
            Some(places) => places.more.push(place),
        }
    }

    /// Where items of a resource may be, in no particular order.
    pub(super) fn of_resource(&self, key: &ResourceKey) -> Vec<Place> {
        self.by_resource
            .get(key)
            .map(|places| places.iter().collect())
            .unwrap_or_default()
    }

    /// Where the item of an operation may be.
    pub(super) fn of_operation(&self, id: OperationId) -> Option<Place> {
        self.by_operation.get(&id).copied()
    }

    /// Resources of a user's that may have items.
    pub(super) fn of_user(&self, user: &UserId) -> Vec<ResourceKey> {
        self.by_user
            .get(user)
            .map(|keys| keys.iter().cloned().collect())
            .unwrap_or_default()
    }

    /// How many operations it knows.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_operation.len()
    }

    /// Whether so many entries are out of date that [`PendingIndex::sweep`] pays.
    pub(super) fn wants_sweep(&self, pending: u64) -> bool {
        let pending = usize::try_from(pending).unwrap_or(usize::MAX);
        self.by_operation.len() > pending.saturating_mul(2).saturating_add(SWEEP_SLACK)
    }

    /// Drops from a part, below [`PARTS`], what the file no longer has; `present` tells.
    pub(super) fn sweep(&mut self, part: usize, mut present: impl FnMut(Place) -> bool) {
        self.by_operation.parts[part].retain(|_, place| present(*place));
        self.by_resource.parts[part].retain(|_, places| places.retain(&mut present));
        // Of these keys, most are in parts whose turn may be yet to come.
        let by_resource = &self.by_resource;
        self.by_user.parts[part].retain(|_, keys| {
            keys.retain(|key| {
                let places = by_resource.get(key);
                places.is_some_and(|places| places.iter().any(&mut present))
            });
            !keys.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::TaskId;

    fn task_at(index: &mut PendingIndex, user: &UserId, seq: u64) -> ResourceKey {
        let prefix = ItemPrefix::of_task(OperationId::generate(), user.clone(), TaskId::generate());
        let key = prefix.resource();
        let place = Place::new(Lane::Postgres, Priority::default(), seq);
        index.insert(place, prefix);
        key
    }

    #[test]
    fn a_sweep_of_all_parts_leaves_what_is_present_and_nothing_else() {
        let mut index = PendingIndex::default();
        let users = ["ann", "bob"].map(|name| UserId::parse(name).expect("valid"));
        let keys: Vec<_> = (0..10_000)
            .map(|seq| task_at(&mut index, &users[usize::from(seq >= 9_000)], seq))
            .collect();
        assert!(index.wants_sweep(1_000) && !index.wants_sweep(9_000));
        for part in 0..PARTS {
            index.sweep(part, |place| place.seq() >= 9_000);
        }
        assert!(!index.wants_sweep(0), "1000 are within the slack");
        assert_eq!(index.of_user(&users[0]), []);
        assert_eq!(index.of_user(&users[1]).len(), 1_000);
        assert_eq!(index.of_resource(&keys[8_999]), []);
        let place = Place::new(Lane::Postgres, Priority::default(), 9_000);
        assert_eq!(index.of_resource(&keys[9_000]), [place]);
    }
}
