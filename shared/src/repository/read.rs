//! Reading: the pending view first, then the store, merged by stamps; without the store, the view over the cache.

use std::collections::{HashMap, HashSet};

use crate::buffer::PendingView;
use crate::domain::{
    Body, Claims, Kind, Operation, OperationId, Priority, ProfileState, ResourceKey, Stamp, State,
    TaskId, TaskQuery, TaskState, UserId,
};
use crate::seeded::Bug;
use crate::store::StoreError;
use crate::store::postgres::Postgres;

use super::answer::{Found, ReadError, SyncState, TaskPage};
use super::core::{Lane, Repository};
use super::write::merged;

/// Most ids asked for in one statement.
const IDS_PER_STATEMENT: usize = 1_000;

impl Repository {
    /// A task of this user's; `Ok(None)` when there is none or it is another's. Of a deleted one `deleted` is set.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`] when the store is away and the node doesn't know the task.
    pub async fn find_task(
        &self,
        user: &UserId,
        id: TaskId,
    ) -> Result<Option<Found<TaskState>>, ReadError> {
        let key = ResourceKey::Task(id);
        let (mut view, accepted) = self.pending(user, &key).await?;
        if self.is_embedded() {
            return Ok(view.and_then(|view| task(view.state)).map(synced));
        }
        if let Some(lane) = self.0.postgres_up() {
            match lane.store.find_task(id).await {
                Ok(Some(row)) if row.owner != *user => return Ok(None),
                Ok(row) => {
                    if Bug::StoreBeforeView.is_on() {
                        view = self.pending(user, &key).await?.0;
                    }
                    return Ok(self
                        .over_store(user, key, row.map(|row| row.state), (view, accepted))
                        .and_then(found_task));
                }
                Err(error) => note_failure(lane, &error),
            }
        }
        Ok(found_task(self.without_store(user, &key, view).await?))
    }

    /// The user's profile, made from the claims where there is none.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`] when the store is away and the node doesn't know the profile.
    pub async fn find_profile(
        &self,
        user: &UserId,
        claims: &Claims,
    ) -> Result<Found<ProfileState>, ReadError> {
        let key = ResourceKey::Profile(user.clone());
        let (view, accepted) = self.pending(user, &key).await?;
        if self.is_embedded() {
            return self.embedded_profile(user, claims, view).await;
        }
        if let Some(lane) = self.0.postgres_up() {
            match self.stored_profile(lane, user, claims).await {
                Ok(profile) => {
                    let stored = Some(State::Profile(profile));
                    let found = self.over_store(user, key, stored, (view, accepted));
                    return found.and_then(found_profile).ok_or(ReadError::Unavailable);
                }
                Err(error) => note_failure(lane, &error),
            }
        }
        found_profile(self.without_store(user, &key, view).await?).ok_or(ReadError::Unavailable)
    }

    /// A resource of this user's as a read shows it while the store answers: `Some(None)` when there is none, `None` when
    /// that can't be said now.
    pub(super) async fn find_over_store(
        &self,
        lane: &Lane<Postgres>,
        user: &UserId,
        key: &ResourceKey,
    ) -> Option<Option<State>> {
        let pending = self.pending(user, key).await.ok()?;
        let stored = match key {
            ResourceKey::Task(id) => lane
                .store
                .find_task(*id)
                .await
                .map(|row| row.filter(|row| row.owner == *user).map(|row| row.state)),
            ResourceKey::Profile(user) => {
                let found = lane.store.find_profile(user).await;
                found.map(|profile| profile.map(State::Profile))
            }
            ResourceKey::Session(_) => return None,
        };
        match stored {
            Ok(stored) => {
                let found = self.over_store(user, key.clone(), stored, pending);
                Some(found.map(|found| found.value))
            }
            Err(error) => {
                note_failure(lane, &error);
                None
            }
        }
    }

    /// A page of this user's tasks.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`] when neither the store nor the buffer can be read.
    pub async fn list_tasks(
        &self,
        user: &UserId,
        query: &TaskQuery,
    ) -> Result<TaskPage, ReadError> {
        let (views, accepted) = self.pending_tasks(user).await?;
        if self.is_embedded() {
            let tasks = views.into_iter().filter_map(|(key, view)| {
                let id = id_of(&key)?;
                Some((id, synced(task(view.state)?)))
            });
            return Ok(page(query, tasks.collect(), true));
        }
        if let Some(lane) = self.0.postgres_up() {
            match self
                .list_over_store(lane, (user, query), &views, &accepted)
                .await
            {
                Ok(items) => return Ok(self.shown_page(user, query, items, (&views, true))),
                Err(error) => note_failure(lane, &error),
            }
        }
        let items = self.list_without_store(user, &views).await;
        Ok(self.shown_page(user, query, items, (&views, false)))
    }

    /// A page, of which what is pending is remembered.
    fn shown_page(
        &self,
        user: &UserId,
        query: &TaskQuery,
        items: Vec<(TaskId, Found<TaskState>)>,
        (views, complete): (&HashMap<ResourceKey, PendingView>, bool),
    ) -> TaskPage {
        let page = page(query, items, complete);
        for (id, _) in &page.items {
            let key = ResourceKey::Task(*id);
            if let Some(view) = views.get(&key) {
                self.note_view(user, key, view);
            }
        }
        page
    }

    /// What is pending of a resource, and which changes had been accepted before that was read. Of a buffer that can't be
    /// read neither is known.
    async fn pending(
        &self,
        user: &UserId,
        key: &ResourceKey,
    ) -> Result<(Option<PendingView>, HashSet<OperationId>), ReadError> {
        let accepted = self.accepted(user, Some(key));
        let (user, key) = (user.clone(), key.clone());
        match self
            .0
            .read(move |reader| reader.find_pending(&user, &key))
            .await
        {
            Ok(view) => Ok((view, accepted)),
            Err(error) => self.without_buffer(&error).map(|()| (None, HashSet::new())),
        }
    }

    /// The same of all of a user's tasks.
    async fn pending_tasks(
        &self,
        user: &UserId,
    ) -> Result<(HashMap<ResourceKey, PendingView>, HashSet<OperationId>), ReadError> {
        let accepted = self.accepted(user, None);
        let owner = user.clone();
        match self.0.read(move |reader| reader.list_pending(&owner)).await {
            Ok(views) => {
                let tasks = views.into_iter().filter(|(key, _)| id_of(key).is_some());
                Ok((tasks.collect(), accepted))
            }
            Err(error) => self
                .without_buffer(&error)
                .map(|()| (HashMap::new(), HashSet::new())),
        }
    }

    /// A buffer that can't be read counts as empty while PostgreSQL serves; without both nothing is known.
    fn without_buffer(&self, error: &crate::buffer::BufferError) -> Result<(), ReadError> {
        tracing::warn!(%error, "can't read the buffer");
        self.0
            .postgres_up()
            .map(|_| ())
            .ok_or(ReadError::Unavailable)
    }

    async fn stored_profile(
        &self,
        lane: &Lane<Postgres>,
        user: &UserId,
        claims: &Claims,
    ) -> Result<ProfileState, StoreError> {
        if let Some(profile) = lane.store.find_profile(user).await? {
            return Ok(profile);
        }
        let first = ProfileState::provisioned(claims, self.0.buffer.clock().stamp());
        lane.store.insert_profile_if_absent(user, &first).await
    }

    async fn embedded_profile(
        &self,
        user: &UserId,
        claims: &Claims,
        view: Option<PendingView>,
    ) -> Result<Found<ProfileState>, ReadError> {
        if let Some(found) = view.and_then(|view| profile(view.state)) {
            return Ok(synced(found));
        }
        let folded = self
            .0
            .buffer
            .fold(provisioning(user, claims, self.now()))
            .await;
        let state = folded
            .ok()
            .and_then(|folded| folded.state)
            .and_then(profile);
        state.map(synced).ok_or(ReadError::Unavailable)
    }

    async fn list_over_store(
        &self,
        lane: &Lane<Postgres>,
        (user, query): (&UserId, &TaskQuery),
        views: &HashMap<ResourceKey, PendingView>,
        accepted: &HashSet<OperationId>,
    ) -> Result<Vec<(TaskId, Found<TaskState>)>, StoreError> {
        let ids: Vec<TaskId> = views.keys().filter_map(id_of).collect();
        let one_more = TaskQuery {
            limit: query.limit + 1,
            ..query.clone()
        };
        let mut items = Vec::new();
        for (id, state) in lane.store.list_tasks(user, &one_more, &ids).await? {
            let key = ResourceKey::Task(id);
            self.drop_ended(user, &key, None, accepted);
            self.note_stored(user, key, &State::Task(state.clone()));
            items.push((id, synced(state)));
        }
        let mut stored = HashMap::new();
        for some in ids.chunks(IDS_PER_STATEMENT) {
            stored.extend(lane.store.find_tasks(user, some).await?);
        }
        for (key, view) in views {
            let Some(id) = id_of(key) else { continue };
            let row = stored.remove(&id).map(State::Task);
            if let Some(row) = &row {
                self.drop_ended(user, key, Some(view), accepted);
                self.note_stored(user, key.clone(), row);
            }
            let state = merged([row, Some(view.state.clone())]);
            items.extend(state.and_then(task).map(|value| {
                let found = Found {
                    value,
                    sync_state: SyncState::Pending,
                    age: None,
                };
                (id, found)
            }));
        }
        Ok(items)
    }
}

/// The operation that makes a profile at first sight, in embedded mode.
fn provisioning(user: &UserId, claims: &Claims, now: crate::domain::Timestamp) -> Operation {
    Operation {
        id: OperationId::generate(),
        stamp: Stamp::ZERO,
        user_id: user.clone(),
        kind: Kind::Create,
        body: Body::Profile {
            change: Box::default(),
            provision: Box::new(ProfileState::provisioned(claims, Stamp::ZERO)),
        },
        precondition: None,
        idempotency: None,
        accepted_at: now,
        priority: Priority::ALL[1],
        buffered: false,
    }
}

/// Keeps what the query selects, in its order, up to its limit.
fn page(query: &TaskQuery, items: Vec<(TaskId, Found<TaskState>)>, complete: bool) -> TaskPage {
    let mut items: Vec<_> = items
        .into_iter()
        .filter(|(id, found)| query.selects(*id, &found.value))
        .collect();
    items.sort_by(|(one_id, one), (other_id, other)| {
        query.compare(
            (query.key(&one.value), *one_id),
            (query.key(&other.value), *other_id),
        )
    });
    let has_more = items.len() > query.limit;
    items.truncate(query.limit);
    TaskPage {
        items,
        has_more,
        complete,
    }
}

fn note_failure(lane: &Lane<Postgres>, error: &StoreError) {
    lane.health.report_failure(error);
    tracing::debug!(%error, "reading from postgres failed; answering from what the node knows");
}

fn id_of(key: &ResourceKey) -> Option<TaskId> {
    match key {
        ResourceKey::Task(id) => Some(*id),
        ResourceKey::Profile(_) | ResourceKey::Session(_) => None,
    }
}

fn synced<T>(value: T) -> Found<T> {
    Found {
        value,
        sync_state: SyncState::Synced,
        age: None,
    }
}

fn task(state: State) -> Option<TaskState> {
    match state {
        State::Task(task) => Some(task),
        State::Profile(_) => None,
    }
}

fn profile(state: State) -> Option<ProfileState> {
    match state {
        State::Profile(profile) => Some(profile),
        State::Task(_) => None,
    }
}

pub(super) fn found_task(found: Found<State>) -> Option<Found<TaskState>> {
    let Found {
        value,
        sync_state,
        age,
    } = found;
    task(value).map(|value| Found {
        value,
        sync_state,
        age,
    })
}

fn found_profile(found: Found<State>) -> Option<Found<ProfileState>> {
    let Found {
        value,
        sync_state,
        age,
    } = found;
    profile(value)
        .filter(ProfileState::is_complete)
        .map(|value| Found {
            value,
            sync_state,
            age,
        })
}
