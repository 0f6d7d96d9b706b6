//! What became of operations: the buffer knows of those that wait or have lately ended here, PostgreSQL of the rest.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::buffer::BufferError;
use crate::domain::{OperationId, OperationRecord, OperationState, UserId};

use super::answer::ReadError;
use super::core::Repository;

impl Repository {
    /// An operation of this user's; `Ok(None)` when there is none or it is another's.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`] when the buffer doesn't know it and PostgreSQL, which may, is away.
    pub async fn find_operation(
        &self,
        user: &UserId,
        id: OperationId,
    ) -> Result<Option<OperationRecord>, ReadError> {
        if self.is_embedded() {
            let all = self.embedded_operations(user).await?;
            return Ok(all.into_iter().find(|record| record.id == id));
        }
        let here = self.0.read(move |reader| reader.find_operation(id)).await;
        let here = here
            .map_err(|error| tracing::warn!(%error, "can't read the buffer"))
            .ok()
            .flatten();
        if let Some(record) = here {
            return Ok(Some(record).filter(|record| record.user_id == *user));
        }
        let lane = self.0.postgres_up().ok_or(ReadError::Unavailable)?;
        lane.store.find_operation(user, id).await.map_err(|error| {
            lane.health.report_failure(&error);
            ReadError::Unavailable
        })
    }

    /// The same, waiting up to `patience` for it to end. Gives it as it then is.
    ///
    /// # Errors
    /// As [`Repository::find_operation`].
    pub async fn await_operation(
        &self,
        user: &UserId,
        id: OperationId,
        patience: Duration,
    ) -> Result<Option<OperationRecord>, ReadError> {
        let until = Instant::now() + patience;
        let mut ended = self.0.ended.subscribe();
        loop {
            ended.borrow_and_update();
            let found = self.find_operation(user, id).await?;
            let waits = found
                .as_ref()
                .is_some_and(|record| !record.state.is_final());
            if !waits || !matches!(timeout_at(until, ended.changed()).await, Ok(Ok(()))) {
                return Ok(found);
            }
        }
    }

    /// This user's operations, newest first: up to `limit`, beginning after `before`, in one state if one is given.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`] when the buffer can't be read. While PostgreSQL is away, those the buffer knows of.
    pub async fn list_operations(
        &self,
        user: &UserId,
        state: Option<OperationState>,
        before: Option<OperationId>,
        limit: usize,
    ) -> Result<Vec<OperationRecord>, ReadError> {
        let here = if self.is_embedded() {
            self.embedded_operations(user).await?
        } else {
            let owner = user.clone();
            self.0
                .read(move |reader| reader.list_operations(&owner))
                .await
                .map_err(unreadable)?
        };
        let mut records: BTreeMap<OperationId, OperationRecord> = BTreeMap::new();
        if let Some(lane) = self
            .0
            .postgres_up()
            .filter(|_| state != Some(OperationState::Pending))
        {
            match lane.store.list_operations(user, state, before, limit).await {
                Ok(stored) => records.extend(stored.into_iter().map(|record| (record.id, record))),
                Err(error) => lane.health.report_failure(&error),
            }
        }
        records.extend(here.into_iter().map(|record| (record.id, record)));
        let wanted = records.into_values().rev().filter(|record| {
            state.is_none_or(|state| record.state == state)
                && before.is_none_or(|before| record.id < before)
        });
        Ok(wanted.take(limit).collect())
    }

    /// In embedded mode every write has taken effect when it is answered, and only those with an idempotency key are
    /// told of.
    async fn embedded_operations(&self, user: &UserId) -> Result<Vec<OperationRecord>, ReadError> {
        let owner = user.clone();
        let keyed = self.0.read(move |reader| reader.list_keyed(&owner)).await;
        let keyed = keyed.map_err(unreadable)?;
        Ok(keyed.into_iter().map(|write| write.record).collect())
    }
}

fn unreadable(error: BufferError) -> ReadError {
    tracing::warn!(%error, "can't read the buffer");
    ReadError::Unavailable
}
