//! The tasks and profiles a transaction works on: locked, changed in memory, written once each.

use std::collections::HashMap;

use uuid::Uuid;

use super::connection::Connection;
use super::profile::{self, ProfileArrays, ProfileColumns};
use super::task::{self, TaskArrays, TaskColumns};
use crate::domain::{Operation, Outcome, ResourceKey, Row, State, judge};

/// Resources by key.
#[derive(Default)]
pub(super) struct Resources {
    by_key: HashMap<ResourceKey, Resource>,
}

#[derive(Default)]
struct Resource {
    row: Option<Row>,
    is_stored: bool,
    is_changed: bool,
}

impl Resources {
    /// Locks and reads what these operations are about. What isn't there can't be locked, and of other operations nothing
    /// is: [`Self::write`] fails when another transaction makes it meanwhile, or had made it before.
    pub(super) async fn lock<'o>(
        connection: &mut Connection<'_>,
        operations: impl Iterator<Item = &'o &'o Operation>,
    ) -> Result<Self, sqlx::Error> {
        let mut tasks: Vec<Uuid> = Vec::new();
        let mut users: Vec<String> = Vec::new();
        for operation in operations {
            match operation.resource() {
                ResourceKey::Task(id) => tasks.push(id.as_uuid()),
                ResourceKey::Profile(user) => users.push(user.as_str().to_owned()),
                ResourceKey::Session(_) => {}
            }
        }
        let mut resources = Resources::default();
        if !tasks.is_empty() {
            for (id, row) in task::lock(connection, &tasks).await? {
                resources.keep(ResourceKey::Task(id), row);
            }
        }
        if !users.is_empty() {
            for row in profile::lock(connection, &users).await? {
                resources.keep(ResourceKey::Profile(row.owner.clone()), row);
            }
        }
        Ok(resources)
    }

    fn keep(&mut self, key: ResourceKey, row: Row) {
        self.by_key.insert(
            key,
            Resource {
                row: Some(row),
                is_stored: true,
                is_changed: false,
            },
        );
    }

    /// Judges an operation, and merges it where its outcome changes the row. A tombstone never changes.
    pub(super) fn settle(&mut self, operation: &Operation) -> Outcome {
        let resource = self.by_key.entry(operation.resource()).or_default();
        let current = resource.row.as_ref();
        let outcome = judge(operation, current);
        let is_tombstone = current.is_some_and(|row| row.state.deleted().is_some());
        if is_tombstone || !operation.changes_row(&outcome) {
            return outcome;
        }
        let current = current.map(|row| &row.state);
        if let Some(mut state) = operation.applied_to(current) {
            if state.deleted().is_some() {
                state.merge(&state.clone());
            }
            if current != Some(&state) {
                resource.row = Some(Row {
                    owner: operation.user_id.clone(),
                    state,
                });
                resource.is_changed = true;
            }
        }
        outcome
    }

    /// The operation's resource as it is now, if its user may see it.
    pub(super) fn visible_to(&self, operation: &Operation) -> Option<State> {
        let row = self.by_key.get(&operation.resource())?.row.as_ref()?;
        (row.owner == operation.user_id).then(|| row.state.clone())
    }

    /// Writes what has changed. Fails with a unique violation when another transaction has made one of the new rows
    /// meanwhile: then what was judged is void.
    pub(super) async fn write(&self, connection: &mut Connection<'_>) -> Result<(), sqlx::Error> {
        let mut changed: Vec<Changed<'_>> = self.by_key.iter().filter_map(Changed::of).collect();
        // Any order will do if it is the same in every transaction, so that inserts never wait in a circle. By owner
        // comes cheapest: neighbours go to the same pages of an index that begins with the owner.
        changed.sort_unstable_by_key(|changed| (&changed.row.owner, changed.key));
        let (stored, new): (Vec<_>, Vec<_>) =
            changed.into_iter().partition(|changed| changed.is_stored);
        let (new, stored) = (Arrays::of(new), Arrays::of(stored));
        if !new.tasks.is_empty() {
            task::insert(connection, &new.tasks).await?;
        }
        if !new.profiles.is_empty() {
            profile::insert(connection, &new.profiles).await?;
        }
        if !stored.tasks.is_empty() {
            task::overwrite(connection, &stored.tasks).await?;
        }
        if !stored.profiles.is_empty() {
            profile::overwrite(connection, &stored.profiles).await?;
        }
        Ok(())
    }
}

/// A row that has to be written.
struct Changed<'a> {
    key: &'a ResourceKey,
    row: &'a Row,
    is_stored: bool,
}

impl<'a> Changed<'a> {
    fn of((key, resource): (&'a ResourceKey, &'a Resource)) -> Option<Self> {
        let row = resource.row.as_ref().filter(|_| resource.is_changed)?;
        Some(Changed {
            key,
            row,
            is_stored: resource.is_stored,
        })
    }
}

/// Rows, column by column.
#[derive(Default)]
struct Arrays<'a> {
    tasks: TaskArrays<'a>,
    profiles: ProfileArrays<'a>,
}

impl<'a> Arrays<'a> {
    fn of(changed: Vec<Changed<'a>>) -> Self {
        let mut arrays = Arrays::default();
        for Changed { key, row, .. } in changed {
            match (key, &row.state) {
                (ResourceKey::Task(id), State::Task(task)) => {
                    arrays.tasks.push(TaskColumns::of(*id, &row.owner, task));
                }
                (_, State::Profile(profile)) => arrays
                    .profiles
                    .push(ProfileColumns::of(&row.owner, profile)),
                (_, State::Task(_)) => {}
            }
        }
        arrays
    }
}
