//! What an operator does about dead letters and damaged items: has them tried again, or discards them for good.

use crate::domain::OperationId;

use super::error::BufferError;
use super::queue::{self, Slot};
use super::retention;
use super::schema::{DeadLetter, SET_ASIDE};
use super::shared::Buffer;

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
                queue::revive(transaction, (&index, &clock), letter)?;
            }
            Ok(revived)
        })
        .await
    }

    /// Puts letters of the archive back into their queues. Gives how many.
    ///
    /// # Errors
    /// When the file can't be written; none is then.
    pub async fn retry_archived(&self, letters: Vec<DeadLetter>) -> Result<u64, BufferError> {
        let (index, clock, _) = self.for_append(Slot::Reserved);
        self.submit(move |transaction| {
            let count = letters.len() as u64;
            for letter in letters {
                queue::revive(transaction, (&index, &clock), letter)?;
            }
            transaction.counters.archived = transaction.counters.archived.saturating_sub(count);
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
        self.submit(|transaction| {
            let mut aside = transaction
                .txn
                .open_table(SET_ASIDE)
                .map_err(|error| transaction.storage(error))?;
            let mut removed = 0;
            aside
                .retain(|_, _| {
                    removed += 1;
                    false
                })
                .map_err(|error| transaction.storage(error))?;
            drop(aside);
            let counters = &mut transaction.counters;
            counters.dead = counters.dead.saturating_sub(removed);
            counters.discarded += removed;
            Ok(removed)
        })
        .await
    }
}
