//! The checker: reads a run's history and says which promises it shows broken.
//!
//! It does no I/O and knows nothing of how a history came about, so that the
//! tests can hand it histories with each violation in them.
//!
//! # What is held to be promised
//!
//! - **Lost.** A write answered 2xx has its fields in the row at the end, or
//!   another write's that isn't surely older; or the task is deleted, by a
//!   delete somebody sent; or its operation is dead for a reason that the history
//!   bears out (see *buried*). An operation that a 202 named is in the ledger or
//!   among the dead letters.
//! - **Doubled.** No two tasks of one `POST` or of one idempotency key, no row
//!   that nobody asked for, and never two ids for one key.
//! - **Stale.** Of each field the newest acknowledged write won: what the row
//!   shows is not *surely older* than any acknowledged write of that field.
//! - **Undeleted.** After an acknowledged delete the row is a tombstone, and who
//!   was told of it never sees the task again.
//! - **Forgotten.** Whoever was answered 2xx sees that write, or one that isn't
//!   surely older, in every later answer (read, list, or write) of the same life
//!   of the same process; of any process on the same buffer while it waits there;
//!   and, once PostgreSQL has it, wherever an answer says `synced`. What one life
//!   of a process has shown it doesn't take back. A resource that a life has
//!   answered whole is never unknown to it.
//! - **Buried.** An operation is dead only because of what clients did: its task
//!   was deleted, or never was there for that node, or its create is dead.
//! - **Unjustified.** A valid write is answered 2xx; or 404, 409, 410 where the
//!   history bears it out; or 503 while a process on that buffer was stopped or
//!   its disk full, or when the machine stood still until the buffer's
//!   deadline. No answer at all comes only of a process that was down. A
//!   read may be refused only for what the node can't know, in an outage.
//! - **Slow.** No answer takes longer than [`answers::SLOWEST`] and for how long
//!   the machine stood still, but of a stopped process, or of one whose buffer
//!   a stopped process may hold.
//! - **Unbalanced.** The buffers' counters add up, and are what PostgreSQL's
//!   ledger has of buffered operations.
//!
//! # Which of two writes is surely the older
//!
//! Stamps decide, and they come from clocks. One process' clock only rises, and a
//! write that PostgreSQL takes directly is stamped above all that PostgreSQL
//! holds: there, real time decides ([`order::is_older`] with no slack). Between
//! other clocks, those of two nodes or of a process and its successor, it
//! decides beyond [`order::CLOCK_SLACK`]; within it either may win, so no
//! complaint is made. Writes that overlap in time are never surely ordered, and
//! one without an answer may have happened, until it was given up, or not at all.

pub mod answers;
mod books;
mod finals;
pub mod order;
mod reads;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::history::{History, Resource};
use order::Writes;

/// The promises, by what their breach is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Breach {
    /// An acknowledged write is gone.
    Lost,
    /// Something took effect twice, or nobody asked for it.
    Doubled,
    /// An older write won.
    Stale,
    /// What was deleted is there.
    Undeleted,
    /// An answer forgets what its process had said.
    Forgotten,
    /// An operation is dead for no reason of its client's making.
    Buried,
    /// A request failed, or got no answer, without excuse.
    Unjustified,
    /// An answer took too long.
    Slow,
    /// The buffers' books don't agree with the ledger's.
    Unbalanced,
}

impl Breach {
    /// Every one.
    pub const ALL: [Breach; 9] = [
        Breach::Lost,
        Breach::Doubled,
        Breach::Stale,
        Breach::Undeleted,
        Breach::Forgotten,
        Breach::Buried,
        Breach::Unjustified,
        Breach::Slow,
        Breach::Unbalanced,
    ];
}

/// One promise broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which promise.
    pub breach: Breach,
    /// Of what, if it is about one resource.
    pub resource: Option<Resource>,
    /// In words.
    pub detail: String,
}

/// What the checker looked at, so that a clean result can be judged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Looked {
    /// Acknowledged writes compared with the rows.
    pub acknowledged: usize,
    /// Fields shown by answers and compared with what had to be seen.
    pub shown_fields: usize,
    /// Resources followed through the run.
    pub resources: usize,
}

/// A verdict on a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Every breach found.
    pub violations: Vec<Violation>,
    /// What was looked at.
    pub looked: Looked,
}

impl Verdict {
    /// How many of each breach there are, those that there are.
    pub fn counts(&self) -> BTreeMap<Breach, usize> {
        let mut counts = BTreeMap::new();
        for violation in &self.violations {
            *counts.entry(violation.breach).or_default() += 1;
        }
        counts
    }

    fn add(&mut self, breach: Breach, resource: Option<Resource>, detail: String) {
        self.violations.push(Violation {
            breach,
            resource,
            detail,
        });
    }
}

/// Judges a run.
pub fn check(history: &History) -> Verdict {
    let writes = Writes::of(history);
    let mut verdict = Verdict::default();
    verdict.looked.resources = writes.resources().count();
    finals::check(history, &writes, &mut verdict);
    reads::check(history, &writes, &mut verdict);
    answers::check(history, &writes, &mut verdict);
    books::check(history, &writes, &mut verdict);
    verdict
}
