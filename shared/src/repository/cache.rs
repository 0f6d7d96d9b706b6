//! What this node has seen lately, in memory, so that it can still be read when the store is away.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use moka::sync::Cache;

use crate::buffer::{AcceptedChange, Fate};
use crate::domain::{OperationId, ResourceKey, State, UserId};

use super::write::merged;

/// Most resources remembered of one user; beyond it the one seen longest ago goes.
const PER_USER_MAX: usize = 500;

/// Most resources and accepted changes remembered in all: about 100 MB of tasks of a kilobyte.
const TOTAL_MAX: u64 = 100_000;

/// Most accepted changes remembered of one resource. It has far fewer fields, so whatever set one of them last is among
/// them; see [`most_telling`].
const ACCEPTED_MAX: usize = 64;

/// A record as it was last seen, and when.
#[derive(Debug, Clone)]
pub(super) struct Remembered {
    /// What PostgreSQL has said, or has taken since.
    pub(super) stored: Option<State>,
    /// What the buffer has accepted last, in no particular order, as long as it isn't known what became of it. It may be
    /// refused yet, and its stamps may be corrected: so it isn't part of `stored`.
    pub(super) accepted: Vec<AcceptedChange>,
    seen_at: Instant,
}

impl Remembered {
    fn nothing() -> Self {
        Remembered {
            stored: None,
            accepted: Vec::new(),
            seen_at: Instant::now(),
        }
    }

    /// How many states it holds, of which one is the resource's own.
    fn weight(&self) -> usize {
        1 + self.accepted.len()
    }

    /// How long ago it was seen.
    pub(super) fn age(&self) -> Duration {
        self.seen_at.elapsed()
    }

    /// All of it, merged.
    pub(super) fn state(&self) -> Option<State> {
        let changes = self.accepted.iter().map(|accepted| &accepted.change);
        merged(self.stored.iter().chain(changes).cloned().map(Some))
    }

    /// Takes in what has become of accepted changes.
    pub(super) fn settle(&mut self, fates: &HashMap<OperationId, Fate>) {
        let stored = &mut self.stored;
        self.accepted
            .retain_mut(|accepted| match fates.get(&accepted.id) {
                None => true,
                Some(Fate::Waiting(corrected)) => {
                    *accepted = corrected.clone();
                    true
                }
                Some(Fate::Settled(change)) => {
                    *stored = merged([stored.take(), change.clone()]);
                    false
                }
                Some(Fate::Void) => false,
            });
    }

    fn note_stored(&mut self, state: &State) {
        match &mut self.stored {
            Some(stored) => stored.merge(state),
            None => self.stored = Some(state.clone()),
        }
    }

    fn note_accepted(&mut self, changes: impl IntoIterator<Item = AcceptedChange>) {
        for change in most_telling(changes.into_iter().collect()) {
            match self.accepted.iter_mut().find(|known| known.id == change.id) {
                Some(known) => *known = change,
                None => self.accepted.push(change),
            }
        }
        self.accepted = most_telling(std::mem::take(&mut self.accepted));
    }

    /// Forgets accepted changes that PostgreSQL's answer holds, or that have come to nothing.
    fn drop_accepted(&mut self, ended: &HashSet<OperationId>) {
        self.accepted.retain(|change| !ended.contains(&change.id));
    }
}

/// Of more changes of one resource than are remembered, those that set one of its fields last, then the newest of the
/// others, which show only if a later one is refused.
fn most_telling(mut changes: Vec<AcceptedChange>) -> Vec<AcceptedChange> {
    if changes.len() <= ACCEPTED_MAX {
        return changes;
    }
    changes.sort_by_key(|accepted| Reverse(accepted.change.newest()));
    let mut whole: Option<State> = None;
    let (mut telling, others): (Vec<_>, Vec<_>) = changes.into_iter().partition(|accepted| {
        let with = merged([whole.clone(), Some(accepted.change.clone())]);
        let adds = with != whole;
        whole = with;
        adds
    });
    let room = ACCEPTED_MAX.saturating_sub(telling.len());
    telling.extend(others.into_iter().take(room));
    telling
}

type Shelf = Arc<Mutex<HashMap<ResourceKey, Remembered>>>;

/// See the module's documentation. What PostgreSQL has said is merged by stamps with what is there, so that nobody is
/// shown an older state than one already shown.
pub(super) struct StateCache {
    shelves: Cache<UserId, Shelf>,
}

impl StateCache {
    pub(super) fn new() -> Self {
        let shelves = Cache::builder()
            .max_capacity(TOTAL_MAX)
            .weigher(|_, shelf: &Shelf| {
                let records = shelf.lock().unwrap_or_else(PoisonError::into_inner);
                let weight: usize = records.values().map(Remembered::weight).sum();
                u32::try_from(weight.max(1)).unwrap_or(u32::MAX)
            })
            .build();
        StateCache { shelves }
    }

    /// Remembers what PostgreSQL has said of a resource of this user's.
    pub(super) fn note_stored(&self, user: &UserId, key: ResourceKey, state: &State) {
        self.note(user, key, |known| known.note_stored(state));
    }

    /// Remembers what the buffer holds of a resource of this user's.
    pub(super) fn note_accepted(
        &self,
        user: &UserId,
        key: ResourceKey,
        changes: impl IntoIterator<Item = AcceptedChange>,
    ) {
        self.note(user, key, |known| known.note_accepted(changes));
    }

    fn note(&self, user: &UserId, key: ResourceKey, work: impl FnOnce(&mut Remembered)) {
        let shelf = self.shelves.get_with_by_ref(user, Shelf::default);
        let grown = {
            let mut records = shelf.lock().unwrap_or_else(PoisonError::into_inner);
            let before = records.get(&key).map(Remembered::weight);
            let known = records.entry(key).or_insert_with(Remembered::nothing);
            known.seen_at = Instant::now();
            work(known);
            let after = known.weight();
            make_room(&mut records);
            before != Some(after)
        };
        if grown {
            self.shelves.insert(user.clone(), shelf);
        }
    }

    /// Changes of this user's that were accepted, as far as it isn't known what became of them: of one resource, or all.
    pub(super) fn list_accepted(
        &self,
        user: &UserId,
        key: Option<&ResourceKey>,
    ) -> HashSet<OperationId> {
        let Some(shelf) = self.shelves.get(user) else {
            return HashSet::new();
        };
        let records = shelf.lock().unwrap_or_else(PoisonError::into_inner);
        let ids = |known: &Remembered| -> Vec<OperationId> {
            known.accepted.iter().map(|change| change.id).collect()
        };
        match key {
            Some(key) => records.get(key).into_iter().flat_map(ids).collect(),
            None => records.values().flat_map(ids).collect(),
        }
    }

    /// The same of every user, with the changes themselves.
    pub(super) fn list_all_accepted(&self) -> Vec<(UserId, ResourceKey, AcceptedChange)> {
        let mut all = Vec::new();
        for (user, shelf) in &self.shelves {
            let records = shelf.lock().unwrap_or_else(PoisonError::into_inner);
            for (key, known) in records.iter() {
                let changes = known.accepted.iter().cloned();
                all.extend(changes.map(|change| ((*user).clone(), key.clone(), change)));
            }
        }
        all
    }

    /// Forgets accepted changes of a resource that PostgreSQL's answer holds, or that have come to nothing.
    pub(super) fn drop_accepted(
        &self,
        user: &UserId,
        key: &ResourceKey,
        ended: &HashSet<OperationId>,
    ) {
        if let Some(shelf) = self.shelves.get(user) {
            let mut records = shelf.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = records.get_mut(key) {
                known.drop_accepted(ended);
            }
        }
    }

    /// Takes in what has become of accepted changes of a resource; it counts as seen when it was.
    pub(super) fn settle(
        &self,
        user: &UserId,
        key: &ResourceKey,
        fates: &HashMap<OperationId, Fate>,
    ) {
        let Some(shelf) = self.shelves.get(user) else {
            return;
        };
        let mut records = shelf.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = records.get_mut(key) {
            known.settle(fates);
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
    use crate::domain::{Register, Stamp, Status, TaskId, TaskState, task::Title};

    fn titled(title: &str, stamp: i64) -> State {
        let title = Title::parse(title).expect("a valid title");
        State::Task(TaskState {
            title: Some(Register::new(title, Stamp::from_i64(stamp))),
            ..TaskState::default()
        })
    }

    fn known(cache: &StateCache, user: &UserId, key: &ResourceKey) -> Option<State> {
        cache.find(user, key)?.state()
    }

    #[test]
    fn an_older_state_never_replaces_a_newer_one() {
        let (cache, user) = (StateCache::new(), UserId::parse("ann").expect("valid"));
        let key = ResourceKey::Task(TaskId::generate());
        cache.note_stored(&user, key.clone(), &titled("new", 2));
        cache.note_stored(&user, key.clone(), &titled("old", 1));
        assert_eq!(known(&cache, &user, &key), Some(titled("new", 2)));
    }

    #[test]
    fn a_refused_change_uncovers_what_was_stored() {
        let (cache, user) = (StateCache::new(), UserId::parse("ann").expect("valid"));
        let key = ResourceKey::Task(TaskId::generate());
        cache.note_stored(&user, key.clone(), &titled("stored", 1));
        let changes = [2, 3].map(|stamp| AcceptedChange::new(titled("accepted", stamp)));
        let [settled, refused] = changes.clone().map(|change| change.id);
        cache.note_accepted(&user, key.clone(), changes);
        assert_eq!(known(&cache, &user, &key), Some(titled("accepted", 3)));

        let fates = HashMap::from([(refused, Fate::Void)]);
        cache.settle(&user, &key, &fates);
        assert_eq!(known(&cache, &user, &key), Some(titled("accepted", 2)));

        // It had been stamped by a clock that was ahead.
        let corrected = Fate::Settled(Some(titled("accepted", 0)));
        cache.settle(&user, &key, &HashMap::from([(settled, corrected)]));
        assert_eq!(known(&cache, &user, &key), Some(titled("stored", 1)));
    }

    #[test]
    fn what_set_a_field_last_is_remembered_however_often_others_are_set_after_it() {
        let (cache, user) = (StateCache::new(), UserId::parse("ann").expect("valid"));
        let key = ResourceKey::Task(TaskId::generate());
        let done = AcceptedChange::new(State::Task(TaskState {
            status: Some(Register::new(Status::Done, Stamp::from_i64(1))),
            ..TaskState::default()
        }));
        let edits: Vec<_> = (2..10 * ACCEPTED_MAX as i64)
            .map(|stamp| AcceptedChange::new(titled("edited", stamp)))
            .collect();
        cache.note_accepted(&user, key.clone(), [done.clone()]);
        for edit in &edits {
            cache.note_accepted(&user, key.clone(), [edit.clone()]);
        }
        let known = cache.find(&user, &key).expect("remembered");
        assert_eq!(known.accepted.len(), ACCEPTED_MAX);
        assert!(known.accepted.contains(&done));
        assert!(
            edits
                .last()
                .is_some_and(|last| known.accepted.contains(last))
        );

        let at_once = StateCache::new();
        at_once.note_accepted(&user, key.clone(), std::iter::once(done).chain(edits));
        let at_once = at_once.find(&user, &key).expect("remembered");
        assert_eq!(at_once.state(), known.state());
        assert_eq!(at_once.accepted.len(), ACCEPTED_MAX);
    }

    #[test]
    fn a_user_s_shelf_is_bounded() {
        let (cache, user) = (StateCache::new(), UserId::parse("ann").expect("valid"));
        for _ in 0..PER_USER_MAX + 10 {
            cache.note_stored(
                &user,
                ResourceKey::Task(TaskId::generate()),
                &titled("x", 1),
            );
        }
        assert_eq!(cache.list(&user).len(), PER_USER_MAX);
    }
}
