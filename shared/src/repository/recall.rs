//! What the node knows by itself: what is pending, over what this process remembers.

use std::collections::{HashMap, HashSet};

use crate::buffer::{AcceptedChange, Fate, PendingView};
use crate::domain::{OperationId, ResourceKey, State, TaskId, TaskState, UserId};

use super::answer::{Found, ReadError, SyncState};
use super::cache::Remembered;
use super::core::Repository;
use super::read::found_task;
use super::write::merged;

impl Repository {
    /// What the store said, merged with what is pending; remembered for an outage. `accepted` is what
    /// [`Repository::accepted`] gave before the view was read.
    pub(super) fn over_store(
        &self,
        user: &UserId,
        key: ResourceKey,
        stored: Option<State>,
        (view, accepted): (Option<PendingView>, HashSet<OperationId>),
    ) -> Option<Found<State>> {
        let sync_state = if view.is_some() {
            SyncState::Pending
        } else {
            SyncState::Synced
        };
        self.drop_ended(user, &key, view.as_ref(), &accepted);
        if let Some(stored) = &stored {
            self.note_stored(user, key.clone(), stored);
        }
        if let Some(view) = &view {
            self.note_view(user, key, view);
        }
        let state = merged([stored, view.map(|view| view.state)]).filter(is_known)?;
        Some(Found {
            value: state,
            sync_state,
            age: None,
        })
    }

    /// The changes of this user's, of one resource or all, that are remembered as accepted: to be asked for before what
    /// is pending is read.
    pub(super) fn accepted(
        &self,
        user: &UserId,
        key: Option<&ResourceKey>,
    ) -> HashSet<OperationId> {
        self.0.cache.list_accepted(user, key)
    }

    /// Of what had been accepted, whatever wasn't pending any more is in what PostgreSQL has answered since, or has come
    /// to nothing.
    pub(super) fn drop_ended(
        &self,
        user: &UserId,
        key: &ResourceKey,
        view: Option<&PendingView>,
        accepted: &HashSet<OperationId>,
    ) {
        if accepted.is_empty() {
            return;
        }
        let mut ended = accepted.clone();
        for item in view.iter().flat_map(|view| &view.operations) {
            ended.remove(&item.operation.id);
        }
        self.0.cache.drop_accepted(user, key, &ended);
    }

    /// Whoever is shown this must not be shown an older state later, nor write with an older stamp.
    pub(super) fn note_stored(&self, user: &UserId, key: ResourceKey, state: &State) {
        self.0.buffer.clock().observe(state.newest());
        self.0.cache.note_stored(user, key, state);
    }

    /// The same of what is pending: it may leave the buffer before this process reaches the store again, and another
    /// may have put it there.
    pub(super) fn note_view(&self, user: &UserId, key: ResourceKey, view: &PendingView) {
        if !view.is_provisional() {
            self.0.buffer.clock().observe(view.state.newest());
        }
        for base in view.operations.iter().filter_map(|item| item.base.as_ref()) {
            self.0.cache.note_stored(user, key.clone(), base);
        }
        let changes = view.operations.iter().filter_map(AcceptedChange::of);
        self.0.cache.note_accepted(user, key, changes);
    }

    /// What the node knows by itself.
    pub(super) async fn without_store(
        &self,
        user: &UserId,
        key: &ResourceKey,
        view: Option<PendingView>,
    ) -> Result<Found<State>, ReadError> {
        if let Some(view) = &view {
            self.note_view(user, key.clone(), view);
        }
        let remembered = self.recall(user, key, view.as_ref()).await;
        known(remembered, view).ok_or(ReadError::Unavailable)
    }

    /// All of this user's tasks that the node knows by itself, in no particular order.
    pub(super) async fn list_without_store(
        &self,
        user: &UserId,
        views: &HashMap<ResourceKey, PendingView>,
    ) -> Vec<(TaskId, Found<TaskState>)> {
        let mut remembered = self.0.cache.list(user);
        for (key, remembered) in &mut remembered {
            leave_out(remembered, views.get(key));
        }
        let remembered = self.settled(user, remembered).await;
        let mut remembered: HashMap<ResourceKey, Remembered> = remembered.into_iter().collect();
        let mut tasks = Vec::new();
        for (key, view) in views {
            let known = known(remembered.remove(key), Some(view.clone()));
            tasks.extend(task_of(key, known));
        }
        for (key, remembered) in remembered {
            tasks.extend(task_of(&key, known(Some(remembered), None)));
        }
        tasks
    }

    /// What this process remembers of a resource besides what is pending of it.
    pub(super) async fn recall(
        &self,
        user: &UserId,
        key: &ResourceKey,
        view: Option<&PendingView>,
    ) -> Option<Remembered> {
        let mut remembered = self.0.cache.find(user, key)?;
        leave_out(&mut remembered, view);
        let settled = self.settled(user, vec![(key.clone(), remembered)]).await;
        settled.into_iter().next().map(|(_, remembered)| remembered)
    }

    /// Forgets the accepted changes that have died: while the file still holds their letters.
    /// Tells whether the file could be asked.
    pub(super) async fn forget_dead(&self) -> bool {
        let accepted = self.0.cache.list_all_accepted();
        let changes: Vec<AcceptedChange> = accepted
            .iter()
            .map(|(_, _, change)| change.clone())
            .collect();
        let fates = match self.0.read(move |reader| reader.fates(&changes)).await {
            Ok(fates) => fates,
            Err(error) => {
                tracing::warn!(%error, "can't ask the buffer which writes have died");
                return false;
            }
        };
        for (user, key, change) in accepted {
            if fates.get(&change.id) == Some(&Fate::Void) {
                let ended = HashSet::from([change.id]);
                self.0.cache.drop_accepted(&user, &key, &ended);
            }
        }
        true
    }

    /// Asks the buffer what has become of the changes it once accepted.
    async fn settled(
        &self,
        user: &UserId,
        mut remembered: Vec<(ResourceKey, Remembered)>,
    ) -> Vec<(ResourceKey, Remembered)> {
        let changes = remembered.iter().flat_map(|(_, known)| &known.accepted);
        let changes: Vec<AcceptedChange> = changes.cloned().collect();
        if changes.is_empty() {
            return remembered;
        }
        match self.0.read(move |reader| reader.fates(&changes)).await {
            Ok(fates) => {
                for (key, known) in &mut remembered {
                    if !known.accepted.is_empty() {
                        known.settle(&fates);
                        self.0.cache.settle(user, key, &fates);
                    }
                }
            }
            Err(error) => {
                tracing::warn!(%error, "can't ask the buffer what became of earlier writes; showing them as accepted");
            }
        }
        remembered
    }
}

/// Leaves out what the view holds, which is nearer to the truth.
fn leave_out(remembered: &mut Remembered, view: Option<&PendingView>) {
    let Some(view) = view else { return };
    if remembered.accepted.is_empty() {
        return;
    }
    let in_view = view.operations.iter().map(|item| item.operation.id);
    let in_view: HashSet<OperationId> = in_view.collect();
    remembered
        .accepted
        .retain(|change| !in_view.contains(&change.id));
}

fn known(remembered: Option<Remembered>, view: Option<PendingView>) -> Option<Found<State>> {
    let (sync_state, age) = match &view {
        Some(_) => (SyncState::Pending, None),
        None => (SyncState::Stale, remembered.as_ref().map(Remembered::age)),
    };
    let state = merged([
        remembered.and_then(|remembered| remembered.state()),
        view.map(|view| view.state),
    ]);
    Some(Found {
        value: state.filter(is_known)?,
        sync_state,
        age,
    })
}

fn task_of(key: &ResourceKey, found: Option<Found<State>>) -> Option<(TaskId, Found<TaskState>)> {
    let ResourceKey::Task(id) = key else {
        return None;
    };
    Some((*id, found_task(found?)?))
}

/// Whether all of a resource is known: its fields, or that it was deleted.
pub(super) fn is_known(state: &State) -> bool {
    state.is_complete() || state.deleted().is_some()
}
