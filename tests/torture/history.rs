//! What happened in a run: every request with its answer, every trouble that was
//! made, and what the stores and buffers held in the end.
//!
//! Every write has a number of its own, its *token*, and every value it sets
//! spells that token, so whatever a read or a row shows names the write that set
//! it. Token 0 is what nobody wrote. Times are microseconds since the run began,
//! by one monotonic clock.

use std::collections::BTreeMap;
use std::fmt;

use uuid::Uuid;

/// Microseconds since the run began.
pub type Micros = u64;

/// Names a write. 0 is no write: a value as it was before any.
pub type Token = u32;

/// A value that no write of this run has set.
pub const ALIEN: Token = Token::MAX;

/// Fields of a resource whose values name their writes: of a task `title`,
/// `description`, `tags` and `due_at`, of a profile `display_name`, `bio`,
/// `avatar_url` and `preferences`.
pub const FIELDS: usize = 4;

/// A task's field that only the write which makes the task sets, unless it is
/// under an id of its client's: it tells whether one request made two tasks.
pub const ORIGIN_FIELD: usize = 1;

/// An API process, by its place: it keeps its name over restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Api {
    /// Its node, and so its buffer.
    pub node: u8,
    /// Which of the node's.
    pub number: u8,
}

/// What requests are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Thing {
    /// A task.
    Task(Uuid),
    /// The user's own profile.
    Profile,
}

/// A thing and whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resource {
    /// The user's number.
    pub user: u32,
    /// What.
    pub thing: Thing,
}

/// How a write was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// `POST`.
    Create,
    /// `PUT`: all fields.
    Put,
    /// `PATCH` of this field.
    Patch(usize),
    /// `DELETE`.
    Delete,
}

/// A write as it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Its token; a repeat under the same key has the same.
    pub token: Token,
    /// How.
    pub verb: Verb,
    /// Of what; `None` for a `POST`, whose answer says it.
    pub thing: Option<Thing>,
    /// Whether it carries an `Idempotency-Key` (which spells the token).
    pub keyed: bool,
}

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// A write.
    Write(Wanted),
    /// `GET` of one.
    Read(Thing),
    /// `GET` of all the user's tasks.
    List,
    /// `GET` of an operation that a 202 named.
    Follow(Uuid),
}

/// The contract's word for where what is shown comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// From the store.
    Synced,
    /// A write of it waits.
    Pending,
    /// From the node's memory.
    Stale,
}

/// A resource as an answer shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Which.
    pub thing: Thing,
    /// Whose writes its fields show.
    pub tokens: [Token; FIELDS],
    /// Where from.
    pub sync: Sync,
}

/// What an answer shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// No resource.
    Nothing,
    /// One.
    One(Seen),
    /// A page of tasks.
    Page {
        /// Them.
        items: Vec<Seen>,
        /// Not `"complete": false`.
        complete: bool,
        /// Whether there is a next page, which nobody asked for.
        more: bool,
    },
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// What `Operation-Location` names, or the operation that is the body.
    pub operation: Option<Uuid>,
    /// `Idempotency-Replayed`.
    pub replayed: bool,
    /// What it shows.
    pub shown: Shown,
}

/// A request with what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// Who was asked.
    pub api: Api,
    /// Which of its lives, when it lived all the time; else `None`.
    pub life: Option<u32>,
    /// Who asked.
    pub user: u32,
    /// When it was sent.
    pub invoked: Micros,
    /// When the answer was there, or given up.
    pub ended: Micros,
    /// The request.
    pub ask: Ask,
    /// The answer; `None` where none came: it may have happened or not.
    pub reply: Option<Reply>,
}

/// A trouble that was made, and that excuses something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// This API process was down, from before its end until it answered again.
    Down(Api),
    /// A process on this node's buffer was stopped.
    Frozen(u8),
    /// A store, or the way from this node to it, was hurt.
    Store(u8),
    /// This node's disk was full.
    DiskFull(u8),
    /// The machine stood still: its disk, or its processors.
    Stalled,
}

/// A trouble's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// What.
    pub trouble: Trouble,
    /// From when.
    pub from: Micros,
    /// Until when.
    pub to: Micros,
}

/// A resource's row in PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Whose writes its fields hold.
    pub tokens: [Token; FIELDS],
    /// Whether it is a tombstone.
    pub deleted: bool,
}

/// How an operation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// `applied`.
    Applied,
    /// `superseded`.
    Superseded,
    /// `dead`, and why.
    Dead(String),
}

/// A row of `applied_operations`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Whose.
    pub user: u32,
    /// The token its key spells, if it has a key.
    pub key: Option<Token>,
    /// How it ended.
    pub end: End,
    /// When, by PostgreSQL's clock.
    pub finished: Micros,
}

/// A buffer's counters of operations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Books {
    /// Accepted.
    pub accepted: u64,
    /// Still waiting.
    pub pending: u64,
    /// Applied.
    pub applied: u64,
    /// Superseded.
    pub superseded: u64,
    /// Dead, in the file.
    pub dead: u64,
    /// Damaged or otherwise unaccounted for.
    pub astray: i64,
}

/// What was there after everything had healed and drained.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Tasks and profiles.
    pub rows: BTreeMap<Resource, Row>,
    /// The ledger.
    pub ledger: BTreeMap<Uuid, Entry>,
    /// Dead letters of all buffers, with their reasons.
    pub dead: BTreeMap<Uuid, String>,
    /// Each node's counters.
    pub books: Vec<Books>,
}

/// A whole run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// Every request, in no particular order.
    pub exchanges: Vec<Exchange>,
    /// Every trouble that excuses something.
    pub troubles: Vec<Span>,
    /// The end.
    pub outcome: Outcome,
}

impl Exchange {
    /// Whether the answer is 2xx.
    pub fn is_acknowledged(&self) -> bool {
        self.status().is_some_and(|status| status / 100 == 2)
    }

    /// The answer's status.
    pub fn status(&self) -> Option<u16> {
        self.reply.as_ref().map(|reply| reply.status)
    }

    /// The write that was asked for.
    pub fn wanted(&self) -> Option<&Wanted> {
        match &self.ask {
            Ask::Write(wanted) => Some(wanted),
            Ask::Read(_) | Ask::List | Ask::Follow(_) => None,
        }
    }

    /// The one resource the answer shows.
    pub fn seen(&self) -> Option<&Seen> {
        match self.reply.as_ref().map(|reply| &reply.shown) {
            Some(Shown::One(seen)) => Some(seen),
            _ => None,
        }
    }
}

impl Verb {
    /// Whether it sets this field.
    pub fn sets(self, field: usize) -> bool {
        match self {
            Verb::Create | Verb::Put => true,
            Verb::Patch(own) => own == field,
            Verb::Delete => false,
        }
    }

    /// Whether it makes a task that isn't there.
    pub fn makes(self) -> bool {
        matches!(self, Verb::Create | Verb::Put)
    }
}

impl fmt::Display for Api {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "api {}.{}", self.node, self.number)
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.thing {
            Thing::Task(id) => write!(formatter, "task {id} of user {}", self.user),
            Thing::Profile => write!(formatter, "profile of user {}", self.user),
        }
    }
}

impl fmt::Display for Exchange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |time: Micros| time as f64 / 1e6;
        write!(
            formatter,
            "{:12.6} {:12.6}  {} life {:?}  user {}  {:?} -> ",
            seconds(self.invoked),
            seconds(self.ended),
            self.api,
            self.life,
            self.user,
            self.ask
        )?;
        match &self.reply {
            None => write!(formatter, "no answer"),
            Some(reply) => write!(formatter, "{} {:?}", reply.status, reply),
        }
    }
}
