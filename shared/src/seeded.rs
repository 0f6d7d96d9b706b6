//! Bugs to be switched on, each to see that a test catches it.
//!
//! Each stands for a guarantee that somebody might lose by accident. A program built without the feature
//! `seeded-bugs`, as every program but those of `make seeded-bugs`, has none of them: the answer is a constant then.

/// A bug, by what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A buffered write is acknowledged before its commit.
    AckBeforeCommit,
    /// Commits of the buffer aren't synced.
    CommitUnsynced,
    /// A request that was refused at its deadline is carried out all the same.
    WithdrawnCarriedOut,
    /// The greatest stamp of the buffer's items isn't kept.
    HighWaterForgotten,
    /// An item's checksum isn't looked at.
    ChecksumIgnored,
    /// An urgent write overtakes earlier ones of its resource.
    PriorityReorders,
    /// A full buffer takes more.
    CapIgnored,
    /// A dead letter leaves the buffer though the archive doesn't have it.
    RemovedUnarchived,
    /// An item is settled without a look at whether it has changed since it was read.
    SettledUnseen,
    /// A merge in Rust takes the field that came last.
    RustMergeIgnoresStamps,
    /// A merge in SQL takes the field that came last.
    SqlMergeIgnoresStamps,
    /// A delete removes the row instead of leaving a tombstone.
    TombstonePurged,
    /// A condition is judged before the ledger is asked.
    ConditionBeforeLedger,
    /// The batch leaves no record in the ledger.
    LedgerSkipped,
    /// A probe that only reads finds a store well.
    ReadOnlyProbe,
    /// A write whose store went away is failed instead of buffered.
    OutageFailsWrites,
    /// The store is read before the pending view.
    StoreBeforeView,
    /// An outage counts as a failure of the item.
    RetryCountedInOutage,
    /// Items leave the buffer before they are applied.
    RemovedBeforeApplied,
    /// One locked row stops the lane.
    LockedRowStopsLane,
    /// A revoked session is let in.
    RevocationIgnored,
    /// What Redis has lost of the revocations isn't given back to it.
    LostRevocationsLeft,
    /// An expired token is let in.
    ExpiredTokenAccepted,
    /// A body is read to its end, however long.
    BodyUnbounded,
}

impl Bug {
    /// Whether this one is on.
    #[cfg(not(feature = "seeded-bugs"))]
    #[inline(always)]
    pub const fn is_on(self) -> bool {
        false
    }

    /// Whether this one is on: `HOLDFAST_SEEDED_BUG`, read once, names it as its declaration does.
    ///
    /// # Panics
    /// When the variable names none.
    #[cfg(feature = "seeded-bugs")]
    pub fn is_on(self) -> bool {
        use std::sync::OnceLock;
        static SEEDED: OnceLock<Option<Bug>> = OnceLock::new();
        let seeded = SEEDED.get_or_init(|| {
            let name = std::env::var("HOLDFAST_SEEDED_BUG").ok()?;
            let known = ALL.into_iter().find(|bug| format!("{bug:?}") == name);
            Some(known.unwrap_or_else(|| panic!("no seeded bug is called {name}")))
        });
        *seeded == Some(self)
    }
}

/// Every bug.
#[cfg(feature = "seeded-bugs")]
const ALL: [Bug; 24] = [
    Bug::AckBeforeCommit,
    Bug::CommitUnsynced,
    Bug::WithdrawnCarriedOut,
    Bug::HighWaterForgotten,
    Bug::ChecksumIgnored,
    Bug::PriorityReorders,
    Bug::CapIgnored,
    Bug::RemovedUnarchived,
    Bug::SettledUnseen,
    Bug::RustMergeIgnoresStamps,
    Bug::SqlMergeIgnoresStamps,
    Bug::TombstonePurged,
    Bug::ConditionBeforeLedger,
    Bug::LedgerSkipped,
    Bug::ReadOnlyProbe,
    Bug::OutageFailsWrites,
    Bug::StoreBeforeView,
    Bug::RetryCountedInOutage,
    Bug::RemovedBeforeApplied,
    Bug::LockedRowStopsLane,
    Bug::RevocationIgnored,
    Bug::LostRevocationsLeft,
    Bug::ExpiredTokenAccepted,
    Bug::BodyUnbounded,
];
