//! Operations: what a client's write becomes, and what becomes of it.

use serde::{Deserialize, Serialize};

use super::identity::{IdempotencyKey, OperationId, ResourceKey, TaskId, UserId};
use super::profile::ProfileState;
use super::record::ETag;
use super::session::Revocation;
use super::stamp::{Stamp, Timestamp};
use super::task::{Priority, TaskState};

/// The kinds of thing operations are about, in the contract's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Entity {
    /// A task.
    Task,
    /// A profile.
    Profile,
    /// A session.
    Session,
}

impl Entity {
    /// Every kind of thing, in the contract's order.
    pub const ALL: [Entity; 3] = [Entity::Task, Entity::Profile, Entity::Session];

    /// The contract's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Entity::Task => "task",
            Entity::Profile => "profile",
            Entity::Session => "session",
        }
    }
}

/// What an operation does, in the contract's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// Creates, or replaces what is there.
    Create,
    /// Sets fields of what is there.
    Update,
    /// Deletes, for good.
    Delete,
}

impl Kind {
    /// Everything an operation does, in the contract's order.
    pub const ALL: [Kind; 3] = [Kind::Create, Kind::Update, Kind::Delete];

    /// The contract's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Create => "create",
            Kind::Update => "update",
            Kind::Delete => "delete",
        }
    }
}

/// What an operation changes. Its registers carry the stamps; after stamping they all equal the operation's, except
/// in an item that several writes were folded into (embedded mode).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// A change of a task.
    Task {
        /// The task.
        id: TaskId,
        /// What is set. With `created` set it may make the row; without, the row must be there.
        change: TaskState,
    },
    /// A change of the user's own profile.
    Profile {
        /// What is set. Boxed, as it is rare and large, and operations are moved about a lot.
        change: Box<ProfileState>,
        /// The profile to begin with where there is none yet: every field at [`Stamp::ZERO`].
        provision: Box<ProfileState>,
    },
    /// A session to be let in no more.
    Session(Revocation),
}

/// A condition the client set on a write (RFC 9110 §13.1), judged where the write is applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Precondition {
    /// `If-Match` with tags: one of them must be the current one.
    Match(Vec<ETag>),
    /// `If-Match: *`: it must be there.
    Exists,
    /// `If-None-Match: *`: it must not be there.
    Absent,
}

/// The client's promise that a repeat under the same key is the same request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    /// The key, unique for the user.
    pub key: IdempotencyKey,
    /// SHA-256 of method, path and body: tells a repeat from a reuse.
    pub fingerprint: [u8; 32],
}

/// An id that is no older than this when its operation is accepted was made for it: a request may take some seconds,
/// and clocks may differ by some.
const ID_FRESH_MILLIS: u64 = 10_000;

/// A write on its way: the only thing that changes a task, a profile or a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Its identity, on every path.
    pub id: OperationId,
    /// Its place in time; [`Stamp::ZERO`] until it is stamped.
    pub stamp: Stamp,
    /// Whose it is.
    pub user_id: UserId,
    /// What the client asked for, in the contract's words.
    pub kind: Kind,
    /// What it changes.
    pub body: Body,
    /// What the client demanded to be true.
    pub precondition: Option<Precondition>,
    /// The client's key for repeats.
    pub idempotency: Option<Idempotency>,
    /// When it was accepted, by this node's clock.
    pub accepted_at: Timestamp,
    /// Its place in the queue.
    pub priority: Priority,
    /// Whether it has been in the buffer: then it leaves a row in `applied_operations`.
    pub buffered: bool,
}

impl Operation {
    /// The kind of thing it is about.
    pub fn entity(&self) -> Entity {
        match self.body {
            Body::Task { .. } => Entity::Task,
            Body::Profile { .. } => Entity::Profile,
            Body::Session(_) => Entity::Session,
        }
    }

    /// The very thing it is about.
    pub fn resource(&self) -> ResourceKey {
        match &self.body {
            Body::Task { id, .. } => ResourceKey::Task(*id),
            Body::Profile { .. } => ResourceKey::Profile(self.user_id.clone()),
            Body::Session(revocation) => ResourceKey::Session(revocation.session_id.clone()),
        }
    }

    /// Gives it, and everything it sets, this stamp.
    pub fn restamp(&mut self, stamp: Stamp) {
        self.stamp = stamp;
        match &mut self.body {
            Body::Task { change, .. } => change.restamp(stamp),
            Body::Profile { change, provision } => {
                change.restamp(stamp);
                provision.created = Some(stamp);
            }
            Body::Session(_) => {}
        }
    }

    /// Whether it leaves a row in `applied_operations`: when it was buffered, or a repeat must be recognised.
    pub fn leaves_record(&self) -> bool {
        self.buffered || self.idempotency.is_some() || self.precondition.is_some()
    }

    /// Whether several writes have become one in it, as in embedded mode: it has the stamp of the newest, and makes its
    /// resource with that of the oldest. What is known of one of them isn't known of all.
    pub fn is_folded(&self) -> bool {
        let created = match &self.body {
            Body::Task { change, .. } => change.created,
            Body::Profile { change, .. } => change.created,
            Body::Session(_) => None,
        };
        created.is_some_and(|created| created != self.stamp)
    }

    /// What it sets, as a record; `None` for a session.
    pub fn change(&self) -> Option<State> {
        match &self.body {
            Body::Task { change, .. } => Some(State::Task(change.clone())),
            Body::Profile { change, .. } => Some(State::Profile((**change).clone())),
            Body::Session(_) => None,
        }
    }

    /// The same, had it been stamped so.
    pub(crate) fn change_as_of(&self, stamp: Stamp) -> Option<State> {
        let mut change = self.change()?;
        change.restamp(stamp);
        Some(change)
    }

    /// Whether it makes its row where there is none.
    pub fn makes_row(&self) -> bool {
        match &self.body {
            Body::Task { change, .. } => change.created.is_some(),
            Body::Profile { .. } => true,
            Body::Session(_) => false,
        }
    }

    /// Whether it makes a task whose id was made for it, to all appearances: there is no such row then, unless this is
    /// a repeat.
    pub fn brings_its_id(&self) -> bool {
        let Body::Task { id, .. } = &self.body else {
            return false;
        };
        let accepted = self.accepted_at.as_millis();
        let is_fresh = |made: u64| accepted.abs_diff(made.cast_signed()) <= ID_FRESH_MILLIS;
        self.makes_row() && id.made_at_millis().is_some_and(is_fresh)
    }

    /// The stamp with which it deletes its resource, if it does.
    pub fn deletes(&self) -> Option<Stamp> {
        match &self.body {
            Body::Task { change, .. } => change.deleted,
            Body::Profile { change, .. } => change.deleted,
            Body::Session(_) => None,
        }
    }

    /// Whether some field it sets is, or already was, newer than in `current`.
    fn advances(&self, current: &State) -> bool {
        match (&self.body, current) {
            (Body::Task { change, .. }, State::Task(task)) => change.advances(task),
            (Body::Profile { change, .. }, State::Profile(profile)) => change.advances(profile),
            _ => false,
        }
    }

    /// Whether it takes effect on a row as it is now. A buffered operation does if it sets anything: what newer writes
    /// have set stays theirs. A direct one is newer than all there is, whatever its stamp says: it has to prevail in each
    /// field, and is stamped anew until it does.
    pub fn prevails(&self, current: &State) -> bool {
        let is_overtaken = match (&self.body, current) {
            (Body::Task { change, .. }, State::Task(task)) => change.is_overtaken_by(task),
            (Body::Profile { change, .. }, State::Profile(profile)) => {
                change.is_overtaken_by(profile)
            }
            _ => false,
        };
        self.advances(current) && (self.buffered || !is_overtaken)
    }

    /// Whether a row is changed by it that it met with this outcome. One that comes too late to set a field may still be
    /// the earliest to have made the row. But a direct one is stamped anew and judged again: a condition on the same row,
    /// and what goes by a key as a whole, for until it is done all of it is its repeat's to do.
    pub fn changes_row(&self, outcome: &Outcome) -> bool {
        match outcome {
            Outcome::Applied => true,
            Outcome::Superseded => {
                self.buffered || (self.precondition.is_none() && self.idempotency.is_none())
            }
            Outcome::Repeated(_) | Outcome::Rejected(_) => false,
        }
    }

    /// The row it makes where there is none; `None` when it needs one to be there.
    pub fn initial(&self) -> Option<State> {
        match &self.body {
            Body::Task { change, .. } => self.makes_row().then(|| State::Task(change.clone())),
            Body::Profile { change, provision } => {
                let mut first = (**provision).clone();
                first.merge(change);
                Some(State::Profile(first))
            }
            Body::Session(_) => None,
        }
    }

    /// The state of its resource once this is applied to `current`; `None` when it needs a row and there is none.
    ///
    /// Also to be used for a superseded operation: it sets no field, but may be the earlier of two creates.
    pub fn applied_to(&self, current: Option<&State>) -> Option<State> {
        let Some(current) = current else {
            return self.initial();
        };
        let mut merged = current.clone();
        if current.deleted().is_some() {
            return Some(merged);
        }
        match (&self.body, &mut merged) {
            (Body::Task { change, .. }, State::Task(task)) => task.merge(change),
            (Body::Profile { change, .. }, State::Profile(profile)) => profile.merge(change),
            _ => debug_assert!(
                matches!(self.body, Body::Session(_)),
                "records of two kinds under one key"
            ),
        }
        Some(merged)
    }
}

/// A task's or profile's record, whole or in part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Of a task.
    Task(TaskState),
    /// Of a profile.
    Profile(ProfileState),
}

impl State {
    /// Merges a record of the same resource; one of another kind, which no caller has, changes nothing.
    pub fn merge(&mut self, other: &State) {
        match (self, other) {
            (State::Task(mine), State::Task(theirs)) => mine.merge(theirs),
            (State::Profile(mine), State::Profile(theirs)) => mine.merge(theirs),
            _ => debug_assert!(false, "records of two kinds under one key"),
        }
    }

    /// See [`TaskState::advances`].
    pub fn advances(&self, current: &State) -> bool {
        match (self, current) {
            (State::Task(mine), State::Task(theirs)) => mine.advances(theirs),
            (State::Profile(mine), State::Profile(theirs)) => mine.advances(theirs),
            _ => false,
        }
    }

    /// The write that deleted it.
    pub fn deleted(&self) -> Option<Stamp> {
        match self {
            State::Task(task) => task.deleted,
            State::Profile(profile) => profile.deleted,
        }
    }

    /// Whether every field is known and it isn't deleted.
    pub fn is_complete(&self) -> bool {
        match self {
            State::Task(task) => task.is_complete(),
            State::Profile(profile) => profile.is_complete(),
        }
    }

    /// The newest write in it.
    pub fn newest(&self) -> Stamp {
        match self {
            State::Task(task) => task.newest(),
            State::Profile(profile) => profile.newest(),
        }
    }

    /// Gives every write in it the same stamp.
    pub(crate) fn restamp(&mut self, stamp: Stamp) {
        match self {
            State::Task(task) => task.restamp(stamp),
            State::Profile(profile) => profile.restamp(stamp),
        }
    }

    /// Its entity tag, as its owner is told it.
    pub fn etag(&self, owner: &UserId) -> ETag {
        match self {
            State::Task(task) => task.etag(),
            State::Profile(profile) => profile.etag(owner),
        }
    }
}

/// What became of an operation where it was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// At least one of its fields is, or was, the newest; of a direct write, all are.
    Applied,
    /// Newer writes had set everything it sets; of a direct write, something.
    Superseded,
    /// A request that had taken effect before, under the same idempotency key, as another operation with this stamp:
    /// nothing was done.
    Repeated(Stamp),
    /// It was refused, for good.
    Rejected(Rejection),
}

/// Why an operation was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Rejection {
    /// What it changes isn't there. It may still come from another node, so a buffered operation is tried again.
    NotFound,
    /// What it changes is another user's.
    NotOwner,
    /// What it changes has been deleted.
    Deleted,
    /// The client's condition wasn't met.
    PreconditionFailed,
    /// Its idempotency key was used for another request.
    KeyReused,
    /// Too old for its condition to be judged: what it had to be compared with is no longer recorded.
    TooOld,
}

impl Rejection {
    /// The word recorded as the reason.
    pub fn as_str(self) -> &'static str {
        match self {
            Rejection::NotFound => "not_found",
            Rejection::NotOwner => "not_owner",
            Rejection::Deleted => "deleted",
            Rejection::PreconditionFailed => "precondition_failed",
            Rejection::KeyReused => "key_reused",
            Rejection::TooOld => "too_old",
        }
    }
}

/// What an operation meets: a row as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Whose it is.
    pub owner: UserId,
    /// What it holds.
    pub state: State,
}

/// Judges an operation against the row it meets, without changing either. The stores and the buffer's views decide
/// by this one function.
pub fn judge(operation: &Operation, current: Option<&Row>) -> Outcome {
    let Some(row) = current else {
        return judge_without_row(operation);
    };
    if row.owner != operation.user_id {
        return Outcome::Rejected(Rejection::NotOwner);
    }
    if let Some(deleted) = row.state.deleted() {
        return judge_deleted(operation, deleted);
    }
    if !holds(operation, &row.state) {
        return Outcome::Rejected(Rejection::PreconditionFailed);
    }
    if operation.deletes().is_some() || operation.prevails(&row.state) {
        Outcome::Applied
    } else {
        Outcome::Superseded
    }
}

/// A profile is there from the first sight of its user on, so a condition meets it as it would be made now.
fn judge_without_row(operation: &Operation) -> Outcome {
    let is_met = match (&operation.body, &operation.precondition) {
        (Body::Profile { provision, .. }, _) => {
            holds(operation, &State::Profile((**provision).clone()))
        }
        (_, precondition) => matches!(precondition, None | Some(Precondition::Absent)),
    };
    if !is_met {
        Outcome::Rejected(Rejection::PreconditionFailed)
    } else if operation.makes_row() {
        Outcome::Applied
    } else {
        Outcome::Rejected(Rejection::NotFound)
    }
}

fn judge_deleted(operation: &Operation, deleted: Stamp) -> Outcome {
    match operation.deletes() {
        Some(stamp) if stamp == deleted => Outcome::Applied,
        Some(_) => Outcome::Superseded,
        None => Outcome::Rejected(Rejection::Deleted),
    }
}

fn holds(operation: &Operation, state: &State) -> bool {
    match &operation.precondition {
        None | Some(Precondition::Exists) => true,
        Some(Precondition::Absent) => false,
        Some(Precondition::Match(tags)) => tags.contains(&state.etag(&operation.user_id)),
    }
}
