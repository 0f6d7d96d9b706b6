//! What the repository answers.

use std::time::Duration;

use crate::domain::{OperationRecord, Rejection, State, TaskId, TaskState, Timestamp};

/// Where what was read comes from, in the contract's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncState {
    /// From the store, with nothing of it waiting.
    Synced,
    /// A write of it waits in the buffer.
    Pending,
    /// From this node's memory.
    Stale,
}

impl SyncState {
    /// Every one, the strongest first.
    pub const ALL: [SyncState; 3] = [SyncState::Synced, SyncState::Pending, SyncState::Stale];
}

/// Something that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found<T> {
    /// What.
    pub value: T,
    /// From where.
    pub sync_state: SyncState,
    /// How long ago a `Stale` one was last known to be right.
    pub age: Option<Duration>,
}

/// A page of tasks, in the query's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskPage {
    /// The tasks.
    pub items: Vec<(TaskId, Found<TaskState>)>,
    /// Whether there are more after the last of them.
    pub has_more: bool,
    /// Whether the node knows all of this user's tasks.
    pub complete: bool,
}

impl TaskPage {
    /// Ends the page with the item by which its titles, descriptions and tags reach so many bytes, if it has more.
    pub fn cut(&mut self, bytes: usize) {
        let mut total = 0;
        let fitting = self.items.iter().position(|(_, found)| {
            total += found.value.text_bytes();
            total >= bytes
        });
        if let Some(last) = fitting.filter(|last| last + 1 < self.items.len()) {
            self.items.truncate(last + 1);
            self.has_more = true;
        }
    }
}

/// A write that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// How.
    pub path: WritePath,
    /// The resource as it is, or will be; `None` where the node can't know it, and for a delete.
    pub state: Option<State>,
    /// Whether the write made it (as far as the node can know).
    pub created: bool,
    /// The operation; of a buffered write, what `Operation-Location` names.
    pub operation: OperationRecord,
    /// Whether it is a repeat, under an idempotency key, of a write accepted before.
    pub replayed: bool,
}

/// How a write was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WritePath {
    /// It is committed in the store (in embedded mode: the buffer).
    Direct,
    /// It is committed in the buffer.
    Buffered,
}

/// What may become of a write that its store doesn't take now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Handling {
    /// It is accepted into the buffer.
    #[default]
    Lenient,
    /// It is refused.
    Strict,
}

/// Why a write could not be made in its store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hindrance {
    /// The store is away.
    StoreAway,
    /// Earlier writes of the resource wait in the buffer, and none may overtake them.
    EarlierWaits,
    /// The store failed, and surely hasn't made it.
    NotMade,
    /// The store didn't answer in time: it may have made it, or may still.
    OutcomeUnknown,
}

/// Why a write was not accepted. Nothing of it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteError {
    /// Refused, for good.
    Rejected(Rejection),
    /// The first request with this idempotency key still runs.
    KeyInUse,
    /// The store is away and the buffer is full.
    Full,
    /// The store is away and the buffer can't be used.
    Unavailable,
    /// It was to be handled strictly, and could not be made in its store.
    NotDirect(Hindrance),
}

/// Why a read has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadError {
    /// The store is away and this node doesn't know.
    Unavailable,
}

/// Whether a session may come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Yes.
    Admitted,
    /// It was revoked.
    Revoked,
    /// It can't be known now, and the policy is strict.
    Unknown,
}

/// The contract's four words for how things stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// No PostgreSQL is configured.
    Embedded,
    /// Every configured store is usable and the buffer is empty.
    Online,
    /// A configured store isn't usable.
    Offline,
    /// All are, and the buffer is not empty.
    CatchingUp,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Mode; 4] = [
        Mode::Embedded,
        Mode::Online,
        Mode::Offline,
        Mode::CatchingUp,
    ];
}

/// A configured or disabled store, for `/health`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreReport {
    /// One of [`StoreReport::STATES`].
    pub state: &'static str,
    /// Since when; `None` when disabled.
    pub since: Option<Timestamp>,
    /// How long the last probe took.
    pub latency: Option<Duration>,
    /// Why it is down, in words of our own.
    pub error: Option<String>,
}

impl StoreReport {
    /// It takes writes.
    pub const UP: &'static str = "up";
    /// It doesn't.
    pub const DOWN: &'static str = "down";
    /// It isn't configured.
    pub const DISABLED: &'static str = "disabled";
    /// Every state, in the contract's words.
    pub const STATES: [&'static str; 3] = [Self::UP, Self::DOWN, Self::DISABLED];
}

/// The buffer, for `/health`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BufferReport {
    /// One of [`BufferReport::STATES`].
    pub state: &'static str,
    /// Items waiting.
    pub pending: u64,
    /// Dead letters.
    pub dead: u64,
    /// Age of the oldest item waiting; zero when none is.
    pub oldest_age: Duration,
    /// Size of the file.
    pub bytes: u64,
    /// Most items waiting.
    pub max_items: u64,
    /// Items set aside as damaged.
    pub damaged_items: u64,
    /// Damaged files beside the buffer, salvaged or not.
    pub damaged_files: u64,
}

impl BufferReport {
    /// It takes writes.
    pub const OK: &'static str = "ok";
    /// It takes no more for now.
    pub const FULL: &'static str = "full";
    /// It can't be read.
    pub const UNAVAILABLE: &'static str = "unavailable";
    /// Every state, in the contract's words.
    pub const STATES: [&'static str; 3] = [Self::OK, Self::FULL, Self::UNAVAILABLE];
}

/// What `/health` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthReport {
    /// How things stand.
    pub status: Mode,
    /// PostgreSQL.
    pub postgres: StoreReport,
    /// Redis.
    pub redis: StoreReport,
    /// The buffer.
    pub buffer: BufferReport,
    /// Whether a syncd holds this buffer's lock.
    pub syncd_running: bool,
    /// Whether the process can serve: PostgreSQL or the buffer is usable.
    pub ready: bool,
}
