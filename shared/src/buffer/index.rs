//! What is pending, by resource, operation and user: an index in memory over the queues.
//!
//! It is no second truth. It follows the file by sequence number (whatever any process appended since the last look is
//! read from the queues' ends), and what it names is looked up in the file before it is believed, since another
//! process may have drained it. In the file, tables keyed this way would cost 5 to 12 times an append at a million
//! items; rebuilding this takes about a second for a million. It takes about 200 bytes an item.

use std::collections::{HashMap, HashSet};
use std::ops::RangeFrom;

use redb::{ReadableTable, StorageError};

use crate::domain::{OperationId, Priority, ResourceKey, UserId};

use super::schema::{ItemPrefix, Lane, Place};

/// Entries that may be out of date before the index is swept: this many, or as many as are pending.
const SWEEP_SLACK: usize = 4_096;

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
#[derive(Debug, Default)]
pub(super) struct PendingIndex {
    generation: u64,
    next_seq: u64,
    by_resource: HashMap<ResourceKey, Places>,
    by_operation: HashMap<OperationId, Place>,
    by_user: HashMap<UserId, HashSet<ResourceKey>>,
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
        let key = prefix.resource();
        self.by_operation.insert(prefix.id, place);
        self.by_user
            .entry(prefix.user_id)
            .or_default()
            .insert(key.clone());
        match self.by_resource.get_mut(&key) {
            None => {
                self.by_resource.insert(
                    key,
                    Places {
                        first: place,
                        more: Vec::new(),
                    },
                );
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

    /// Whether so many entries are out of date that [`PendingIndex::sweep`] pays.
    pub(super) fn wants_sweep(&self, pending: u64) -> bool {
        let pending = usize::try_from(pending).unwrap_or(usize::MAX);
        self.by_operation.len() > pending.saturating_mul(2).saturating_add(SWEEP_SLACK)
    }

    /// Drops what the file no longer has. `present` tells.
    pub(super) fn sweep(&mut self, mut present: impl FnMut(Place) -> bool) {
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
