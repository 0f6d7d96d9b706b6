//! What the node knows by itself: what is pending, over what this process remembers.

use std::collections::HashMap;

use crate::buffer::{AcceptedChange, PendingView};
use crate::domain::{ResourceKey, State, TaskId, TaskState, UserId};

use super::answer::{Found, ReadError, SyncState};
use super::cache::Remembered;
use super::core::Repository;
use super::read::found_task;
use super::write::merged;

impl Repository {
    /// What the store said, merged with what is pending; remembered for an outage.
    pub(super) fn over_store(
        &self,
        user: &UserId,
        key: ResourceKey,
        stored: Option<State>,
        view: Option<PendingView>,
    ) -> Option<Found<State>> {
        let sync_state = if view.is_some() {
            SyncState::Pending
        } else {
            SyncState::Synced
        };
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
        views: Vec<(TaskId, PendingView)>,
    ) -> Vec<(TaskId, Found<TaskState>)> {
        for (id, view) in &views {
            self.note_view(user, ResourceKey::Task(*id), view);
        }
        let mut views: HashMap<ResourceKey, PendingView> = views
            .into_iter()
            .map(|(id, view)| (ResourceKey::Task(id), view))
            .collect();
        let mut remembered = self.0.cache.list(user);
        for (key, remembered) in &mut remembered {
            leave_out(remembered, views.get(key));
        }
        let mut remembered = self.settled(user, remembered).await;
        // Of very many, the cache may not have kept all.
        let mut known_tasks = Vec::new();
        for (key, remembered) in remembered.drain(..) {
            let view = views.remove(&key);
            known_tasks.extend(task_of(key, known(Some(remembered), view)));
        }
        for (key, view) in views {
            known_tasks.extend(task_of(key, known(None, Some(view))));
        }
        known_tasks
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
    let is_in_view = |change: &AcceptedChange| {
        let mut operations = view.operations.iter();
        operations.any(|item| item.operation.id == change.id)
    };
    remembered.accepted.retain(|change| !is_in_view(change));
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

fn task_of(key: ResourceKey, found: Option<Found<State>>) -> Option<(TaskId, Found<TaskState>)> {
    let ResourceKey::Task(id) = key else {
        return None;
    };
    Some((id, found_task(found?)?))
}

/// Whether all of a resource is known: its fields, or that it was deleted.
pub(super) fn is_known(state: &State) -> bool {
    state.is_complete() || state.deleted().is_some()
}
