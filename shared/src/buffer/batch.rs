//! Batches to drain: which items come next, and which are left out.

use std::collections::HashSet;

use crate::domain::{ResourceKey, Timestamp};

use super::queue::Queued;
use super::schema::{Decoded, Item, Place, checksum, decode};

/// Most items looked at for one batch: bounds a read when very many are put off.
const SCAN_MAX: usize = 50_000;

/// What a batch leaves out.
#[derive(Debug, Clone, Default)]
pub struct Skip {
    /// Resources that are put off: none of their items.
    pub resources: HashSet<ResourceKey>,
    /// Items that are being settled already.
    pub places: HashSet<Place>,
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
}

/// A batch in the making.
pub(super) struct Gathering<'g> {
    batch: Batch,
    held: HashSet<ResourceKey>,
    scanned: usize,
    limit: usize,
    skip: &'g Skip,
    now: Timestamp,
}

impl<'g> Gathering<'g> {
    pub(super) fn new(limit: usize, skip: &'g Skip, now: Timestamp) -> Self {
        Gathering {
            batch: Batch::default(),
            held: HashSet::new(),
            scanned: 0,
            limit,
            skip,
            now,
        }
    }

    /// What has been gathered.
    pub(super) fn finish(self) -> Batch {
        self.batch
    }

    /// Whether there is room for another item.
    pub(super) fn wants_more(&self) -> bool {
        self.batch.items.len() < self.limit && self.scanned < SCAN_MAX
    }

    /// Takes the next item of the lane, or notes why not.
    pub(super) fn consider(&mut self, place: Place, bytes: &[u8]) {
        self.scanned += 1;
        if self.skip.places.contains(&place) {
            return;
        }
        let item: Item = match decode(bytes) {
            Decoded::Whole(item) => item,
            Decoded::Damaged => return self.batch.damaged.push(place),
            Decoded::Newer => {
                self.batch.newer += 1;
                return;
            }
        };
        let key = item.operation.resource();
        if self.skip.resources.contains(&key) || self.held.contains(&key) {
            self.batch.put_off += 1;
        } else if let Some(due) = item.not_before.filter(|due| *due > self.now) {
            self.batch.put_off += 1;
            self.batch.next_due = self.batch.next_due.into_iter().chain([due]).min();
            self.held.insert(key);
        } else {
            self.batch.items.push(Queued {
                place,
                checksum: checksum(bytes),
                item: Box::new(item),
            });
        }
    }
}
