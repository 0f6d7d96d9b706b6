//! Which tasks a list asks for, and in which order: one definition for the rows of PostgreSQL and for those still in
//! the buffer.

use std::cmp::Ordering;

use super::identity::TaskId;
use super::stamp::Timestamp;
use super::task::{Priority, Status, TaskState};

/// What a list of tasks is sorted by; ties are in order of id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SortField {
    /// When it was made.
    #[default]
    CreatedAt,
    /// When it last changed.
    UpdatedAt,
    /// When it is due; tasks without a due time come last, in either direction.
    DueAt,
    /// How urgent it is.
    Priority,
}

impl SortField {
    /// Every field, with the contract's word for it.
    pub const ALL: [(SortField, &'static str); 4] = [
        (SortField::CreatedAt, "created_at"),
        (SortField::UpdatedAt, "updated_at"),
        (SortField::DueAt, "due_at"),
        (SortField::Priority, "priority"),
    ];
}

/// The value a task is sorted by: microseconds, a priority, or `None` for no due time.
pub type SortKey = Option<i64>;

/// Where a page begins: after the task with this key and id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// The last task's sort key.
    pub key: SortKey,
    /// The last task's id.
    pub id: TaskId,
}

/// A list of one user's tasks. Every condition that is given has to hold; bounds are inclusive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskQuery {
    /// Has this status.
    pub status: Option<Status>,
    /// Has this priority.
    pub priority: Option<Priority>,
    /// Has this tag.
    pub tag: Option<String>,
    /// Is due at or before.
    pub due_before: Option<Timestamp>,
    /// Is due at or after.
    pub due_after: Option<Timestamp>,
    /// Has this in its title or description, in any case.
    pub text: Option<String>,
    /// What to sort by.
    pub sort: SortField,
    /// Greatest first.
    pub descending: bool,
    /// Most tasks to give: 1 to 200.
    pub limit: usize,
    /// Begin after this one.
    pub after: Option<Cursor>,
}

impl Default for TaskQuery {
    /// The newest 50.
    fn default() -> Self {
        TaskQuery {
            status: None,
            priority: None,
            tag: None,
            due_before: None,
            due_after: None,
            text: None,
            sort: SortField::CreatedAt,
            descending: true,
            limit: 50,
            after: None,
        }
    }
}

impl TaskQuery {
    /// Whether a whole task meets every condition, the page's beginning included. An incomplete one never does.
    pub fn selects(&self, id: TaskId, task: &TaskState) -> bool {
        task.is_complete() && self.meets_conditions(task) && self.is_after_cursor(id, task)
    }

    /// The value this query sorts a task by.
    pub fn key(&self, task: &TaskState) -> SortKey {
        match self.sort {
            SortField::CreatedAt => task.created.map(|stamp| stamp.time().as_micros()),
            SortField::UpdatedAt => Some(task.newest().time().as_micros()),
            SortField::DueAt => task.due_at.as_ref()?.value.map(Timestamp::as_micros),
            SortField::Priority => task
                .priority
                .as_ref()
                .map(|priority| priority.value.number().into()),
        }
    }

    /// The order of two tasks in this list.
    pub fn compare(&self, one: (SortKey, TaskId), other: (SortKey, TaskId)) -> Ordering {
        let keys = match (one.0, other.0) {
            (Some(one), Some(other)) if self.descending => other.cmp(&one),
            (Some(one), Some(other)) => one.cmp(&other),
            (None, None) => Ordering::Equal,
            (None, Some(_)) => Ordering::Greater,
            (Some(_), None) => Ordering::Less,
        };
        let ids = one.1.cmp(&other.1);
        keys.then(if self.descending { ids.reverse() } else { ids })
    }

    fn is_after_cursor(&self, id: TaskId, task: &TaskState) -> bool {
        let Some(cursor) = &self.after else {
            return true;
        };
        self.compare((self.key(task), id), (cursor.key, cursor.id)) == Ordering::Greater
    }

    fn meets_conditions(&self, task: &TaskState) -> bool {
        let due = task.due_at.as_ref().and_then(|due| due.value);
        let has_tag = |tag: &String| {
            task.tags
                .as_ref()
                .is_some_and(|tags| tags.value.as_slice().contains(tag))
        };
        self.status
            .is_none_or(|status| task.status.as_ref().is_some_and(|own| own.value == status))
            && self.priority.is_none_or(|wanted| {
                task.priority
                    .as_ref()
                    .is_some_and(|own| own.value == wanted)
            })
            && self.tag.as_ref().is_none_or(has_tag)
            && self
                .due_before
                .is_none_or(|bound| due.is_some_and(|due| due <= bound))
            && self
                .due_after
                .is_none_or(|bound| due.is_some_and(|due| due >= bound))
            && self
                .text
                .as_ref()
                .is_none_or(|text| contains_text(task, text))
    }
}

fn contains_text(task: &TaskState, text: &str) -> bool {
    let wanted = folded(text);
    let title = task.title.as_ref().map(|title| title.value.as_str());
    let description = task
        .description
        .as_ref()
        .map(|description| description.value.as_str());
    [title, description]
        .into_iter()
        .flatten()
        .any(|text| folded(text).contains(&wanted))
}

/// Text in lower case, with one form of the letter that has two: which of them a capital sigma becomes hangs on what is
/// around it, and a search for a part of a word can't know that.
pub fn folded(text: &str) -> String {
    text.to_lowercase().replace(FINAL_SIGMA, SIGMA)
}

/// The two forms of sigma.
pub const FINAL_SIGMA: &str = "ς";
/// See [`FINAL_SIGMA`].
pub const SIGMA: &str = "σ";
