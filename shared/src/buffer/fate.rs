//! Changes that were accepted into the buffer, and what has become of them since: for whoever goes on showing them.

use crate::clock::BootId;
use crate::domain::{OperationId, Stamp, State};

use super::epoch;
use super::error::BufferError;
use super::schema::Item;
use super::snap::Snap;

/// What an item sets, and what is needed to find out what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptedChange {
    /// Its operation.
    pub id: OperationId,
    /// What it sets, stamped as it is in the file.
    pub change: State,
    /// Whether it may turn out to be a repeat.
    is_keyed: bool,
    /// As its item's.
    epoch: Option<BootId>,
}

impl AcceptedChange {
    #[cfg(test)]
    pub(crate) fn new(change: State) -> Self {
        AcceptedChange {
            id: OperationId::generate(),
            change,
            is_keyed: false,
            epoch: None,
        }
    }

    /// That of an item; `None` for a session's.
    pub fn of(item: &Item) -> Option<Self> {
        Some(AcceptedChange {
            id: item.operation.id,
            change: item.operation.change()?,
            is_keyed: item.operation.idempotency.is_some(),
            epoch: item.epoch,
        })
    }

    fn stamped(&self, stamp: Stamp) -> State {
        let mut change = self.change.clone();
        change.restamp(stamp);
        change
    }
}

/// What has become of an accepted change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It waits; its stamps may have been corrected since.
    Waiting(AcceptedChange),
    /// It is in the store, or newer writes are: with the stamps it was applied with, or of a repeat the first one.
    /// `None` where the file doesn't know these any more.
    Settled(Option<State>),
    /// It did nothing: it was refused, or failed for good.
    Void,
}

impl Snap<'_> {
    /// What has become of a change. One that the file knows nothing of counts as settled: so it is to be asked about
    /// while the file still holds the dead letters of that time.
    pub(super) fn fate_of(&self, accepted: &AcceptedChange) -> Result<Fate, BufferError> {
        if let Some(item) = self.find_item(accepted.id)? {
            return Ok(AcceptedChange::of(&item).map_or(Fate::Settled(None), Fate::Waiting));
        }
        if self.find_dead(accepted.id)?.is_some() {
            return Ok(Fate::Void);
        }
        if accepted.is_keyed
            && let Some(first) = self.first_stamp_of(accepted.id)?
        {
            return Ok(Fate::Settled(Some(accepted.stamped(first))));
        }
        let Some(run) = accepted.epoch else {
            return Ok(Fate::Settled(Some(accepted.change.clone())));
        };
        let shift = epoch::shift_of(run, self.epochs()?);
        Ok(Fate::Settled(shift.map(|shift| {
            accepted.stamped(accepted.change.newest().moved_by(shift))
        })))
    }
}
