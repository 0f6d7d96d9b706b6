//! What an operator does about dead letters and damaged items: has them tried again, or discards them for good.

use crate::domain::OperationId;

use super::error::BufferError;
use super::queue::{self, Slot};
use super::retention;
use super::schema::{DamagedItem, DeadLetter, SET_ASIDE};
use super::shared::Buffer;
use super::writer::Transaction;

impl Buffer {
    /// Puts dead letters back into their queues, in the order given. Gives those that were there.
    ///
    /// # Errors
    /// When the file can't be written; all stay dead then.
    pub async fn retry_dead(&self, ids: Vec<OperationId>) -> Result<Vec<OperationId>, BufferError> {
        let (index, clock, _) = self.for_append(Slot::Reserved);
        self.submit(move |transaction| {
            let letters = retention::remove_dead(transaction, ids)?;
            let revived = letters
                .iter()
                .map(|letter| letter.item.operation.id)
                .collect();
            for letter in letters {
                if !queue::revive(transaction, (&index, &clock), letter)? {
                    // It was counted twice: as dead, and as waiting.
                    transaction.counters.accepted -= 1;
                }
            }
            Ok(revived)
        })
        .await
    }

    /// Puts letters of the archive back into their queues, but for those that wait there already. Gives how many. Those
    /// that this buffer has not archived, another's, count as accepted now.
    ///
    /// # Errors
    /// When the file can't be written; none is then.
    pub async fn retry_archived(&self, letters: Vec<DeadLetter>) -> Result<u64, BufferError> {
        let (index, clock, _) = self.for_append(Slot::Reserved);
        self.submit(move |transaction| {
            let mut count = 0;
            for letter in letters {
                count += u64::from(queue::revive(transaction, (&index, &clock), letter)?);
            }
            let counters = &mut transaction.counters;
            let own = counters.archived.min(count);
            counters.archived -= own;
            counters.accepted += count - own;
            Ok(count)
        })
        .await
    }

    /// Discards dead letters for good. Gives those that were there.
    ///
    /// # Errors
    /// When the file can't be written; all stay then.
    pub async fn discard_dead(
        &self,
        ids: Vec<OperationId>,
    ) -> Result<Vec<OperationId>, BufferError> {
        self.submit(move |transaction| {
            let letters = retention::remove_dead(transaction, ids)?;
            transaction.counters.discarded += letters.len() as u64;
            Ok(letters
                .iter()
                .map(|letter| letter.item.operation.id)
                .collect())
        })
        .await
    }

    /// Discards for good the items that were set aside as damaged. Gives how many.
    ///
    /// # Errors
    /// When the file can't be written; all stay then.
    pub async fn discard_damaged(&self) -> Result<u64, BufferError> {
        self.submit(|transaction| discard_aside(transaction, |_| true))
            .await
    }

    /// Discards for good those items set aside as damaged whose bytes name one of these operations. Gives how many.
    ///
    /// # Errors
    /// When the file can't be written; all stay then.
    pub async fn discard_damaged_of(&self, ids: Vec<OperationId>) -> Result<u64, BufferError> {
        self.submit(move |transaction| {
            discard_aside(transaction, |bytes| {
                let id = DamagedItem::of(bytes.to_vec()).id();
                id.is_some_and(|id| ids.contains(&id))
            })
        })
        .await
    }
}

/// Discards those items set aside whose bytes are meant. Gives how many.
fn discard_aside(
    transaction: &mut Transaction<'_>,
    is_meant: impl Fn(&[u8]) -> bool,
) -> Result<u64, BufferError> {
    let mut aside = transaction
        .txn
        .open_table(SET_ASIDE)
        .map_err(|error| transaction.storage(error))?;
    let mut removed = 0;
    aside
        .retain(|_, bytes| {
            let is_removed = is_meant(bytes);
            removed += u64::from(is_removed);
            !is_removed
        })
        .map_err(|error| transaction.storage(error))?;
    drop(aside);
    let counters = &mut transaction.counters;
    counters.dead = counters.dead.saturating_sub(removed);
    counters.discarded += removed;
    Ok(removed)
}
