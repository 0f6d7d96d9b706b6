//! What this node has seen lately, in memory, so that it can still be read when the store is away.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use moka::sync::Cache;

use crate::domain::{ResourceKey, State, UserId};

/// Most resources remembered of one user; beyond it the one seen longest ago goes.
const PER_USER_MAX: usize = 500;

/// Most resources remembered in all: about 100 MB of tasks of a kilobyte.
const TOTAL_MAX: u64 = 100_000;

/// A record as it was last seen, and when.
#[derive(Debug, Clone)]
pub(super) struct Remembered {
    pub(super) state: State,
    seen_at: Instant,
}

impl Remembered {
    /// How long ago it was seen.
    pub(super) fn age(&self) -> Duration {
        self.seen_at.elapsed()
    }
}

type Shelf = Arc<Mutex<HashMap<ResourceKey, Remembered>>>;

/// See the module's documentation. Whatever is put in is merged by stamps with what is there, so that nobody is shown
/// an older state than one already shown.
pub(super) struct StateCache {
    shelves: Cache<UserId, Shelf>,
}

impl StateCache {
    pub(super) fn new() -> Self {
        let shelves = Cache::builder()
            .max_capacity(TOTAL_MAX)
            .weigher(|_, shelf: &Shelf| {
                let length = shelf.lock().unwrap_or_else(PoisonError::into_inner).len();
                u32::try_from(length.max(1)).unwrap_or(u32::MAX)
            })
            .build();
        StateCache { shelves }
    }

    /// Remembers a record of this user's, merged with what is remembered of it.
    pub(super) fn remember(&self, user: &UserId, key: ResourceKey, state: &State) {
        let shelf = self.shelves.get_with_by_ref(user, Shelf::default);
        let grown = {
            let mut records = shelf.lock().unwrap_or_else(PoisonError::into_inner);
            let before = records.len();
            merge_into(&mut records, key, state);
            make_room(&mut records);
            records.len() != before
        };
        if grown {
            self.shelves.insert(user.clone(), shelf);
        }
    }

    /// What is remembered of a resource of this user's.
    pub(super) fn find(&self, user: &UserId, key: &ResourceKey) -> Option<Remembered> {
        let shelf = self.shelves.get(user)?;
        let records = shelf.lock().unwrap_or_else(PoisonError::into_inner);
        records.get(key).cloned()
    }

    /// All that is remembered of this user's.
    pub(super) fn list(&self, user: &UserId) -> Vec<(ResourceKey, Remembered)> {
        let Some(shelf) = self.shelves.get(user) else {
            return Vec::new();
        };
        let records = shelf.lock().unwrap_or_else(PoisonError::into_inner);
        records
            .iter()
            .map(|(key, remembered)| (key.clone(), remembered.clone()))
            .collect()
    }

    /// Forgets a resource: a write of it that was remembered has been refused.
    pub(super) fn forget(&self, user: &UserId, key: &ResourceKey) {
        if let Some(shelf) = self.shelves.get(user) {
            shelf
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(key);
        }
    }
}

fn merge_into(records: &mut HashMap<ResourceKey, Remembered>, key: ResourceKey, state: &State) {
    let seen_at = Instant::now();
    match records.get_mut(&key) {
        Some(known) => {
            known.state.merge(state);
            known.seen_at = seen_at;
        }
        None => {
            records.insert(
                key,
                Remembered {
                    state: state.clone(),
                    seen_at,
                },
            );
        }
    }
}

fn make_room(records: &mut HashMap<ResourceKey, Remembered>) {
    if records.len() <= PER_USER_MAX {
        return;
    }
    let oldest = records
        .iter()
        .min_by_key(|(_, remembered)| remembered.seen_at)
        .map(|(key, _)| key.clone());
    if let Some(key) = oldest {
        records.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Register, Stamp, TaskId, TaskState, task::Title};

    fn titled(title: &str, stamp: i64) -> State {
        let title = Title::parse(title).expect("a valid title");
        State::Task(TaskState {
            title: Some(Register::new(title, Stamp::from_i64(stamp))),
            ..TaskState::default()
        })
    }

    #[test]
    fn an_older_state_never_replaces_a_newer_one() {
        let (cache, user) = (StateCache::new(), UserId::parse("ann").expect("valid"));
        let key = ResourceKey::Task(TaskId::generate());
        cache.remember(&user, key.clone(), &titled("new", 2));
        cache.remember(&user, key.clone(), &titled("old", 1));
        assert_eq!(
            cache.find(&user, &key).map(|found| found.state),
            Some(titled("new", 2))
        );
        cache.forget(&user, &key);
        assert!(cache.find(&user, &key).is_none());
    }

    #[test]
    fn a_user_s_shelf_is_bounded() {
        let (cache, user) = (StateCache::new(), UserId::parse("ann").expect("valid"));
        for _ in 0..PER_USER_MAX + 10 {
            cache.remember(
                &user,
                ResourceKey::Task(TaskId::generate()),
                &titled("x", 1),
            );
        }
        assert_eq!(cache.list(&user).len(), PER_USER_MAX);
    }
}
