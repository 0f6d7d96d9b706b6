//! Sessions: who is let in, and revoking, which holds here at once and everywhere soon.

use crate::buffer::{Queued, Settlement, Verdict};
use crate::config::SessionPolicy;
use crate::domain::{
    Body, Kind, Operation, OperationId, OperationRecord, OperationState, Priority, Revocation,
    Session, SessionId, Stamp, Timestamp, UserId,
};
use crate::store::redis::Redis;

use super::answer::{Admission, ReadError, WriteError, WritePath, Written};
use super::core::{Lane, Repository};

impl Repository {
    /// Whether a session may come in. Notes, in the background and at most once a minute, that it was seen.
    pub async fn admit(&self, session: &Session) -> Admission {
        if self.0.revocations.contain(&session.id) {
            return Admission::Revoked;
        }
        let redis_away = self
            .0
            .redis
            .as_ref()
            .is_some_and(|lane| !lane.health.is_up());
        if redis_away && self.0.session_policy == SessionPolicy::Strict {
            return Admission::Unknown;
        }
        if !self.0.noted_sessions.contains_key(&session.id) {
            self.0.noted_sessions.insert(session.id.clone(), ());
            self.0
                .seen_sessions
                .insert(session.id.clone(), session.clone());
            tokio::spawn(self.clone().note_session(session.clone()));
        }
        Admission::Admitted
    }

    /// Revokes a session of this user's: durably here before this returns, then in Redis. `Ok` with
    /// [`WritePath::Buffered`] when Redis will learn of it later.
    ///
    /// # Errors
    /// [`WriteError`] when the buffer can't take it; nothing is revoked then.
    pub async fn revoke(
        &self,
        user: &UserId,
        revocation: Revocation,
    ) -> Result<Written, WriteError> {
        let operation = revoking(user, revocation.clone(), self.now());
        let queued = self.0.redis.as_ref().map(|_| operation.clone());
        self.0
            .buffer
            .revoke(revocation.clone(), queued)
            .await
            .map_err(|error| match error {
                error if error.is_full() => WriteError::Full,
                error => {
                    tracing::error!(%error, "the buffer can't take a revocation");
                    WriteError::Unavailable
                }
            })?;
        self.0.revocations.add([revocation.clone()]);
        let path = self.publish(user, revocation, &operation).await;
        let state = if path == WritePath::Direct {
            OperationState::Applied
        } else {
            OperationState::Pending
        };
        Ok(Written {
            path,
            state: None,
            created: false,
            operation: OperationRecord {
                state,
                ..OperationRecord::pending(&operation)
            },
            replayed: false,
        })
    }

    /// Tells Redis of a revocation that is queued, and takes it from the queue if that works.
    async fn publish(
        &self,
        user: &UserId,
        revocation: Revocation,
        operation: &Operation,
    ) -> WritePath {
        let Some(lane) = &self.0.redis else {
            return WritePath::Direct;
        };
        if !lane.health.is_up() {
            return WritePath::Buffered;
        }
        match lane.store.revoke(&[(user.clone(), revocation)]).await {
            Ok(()) => self.settle_published(operation).await,
            Err(error) => {
                lane.health.report_failure(&error);
                WritePath::Buffered
            }
        }
    }

    async fn settle_published(&self, operation: &Operation) -> WritePath {
        let key = operation.resource();
        let queued = self.0.read(move |reader| reader.list_items_of(&key)).await;
        let mine = |queued: &Queued| queued.item.operation.id == operation.id;
        let settlement = queued.ok().and_then(|items| items.into_iter().find(mine));
        let settlements = settlement.map(|queued| Settlement {
            queued,
            verdict: Verdict::Applied,
        });
        match self
            .0
            .buffer
            .settle(settlements.into_iter().collect())
            .await
        {
            Ok(_) => WritePath::Direct,
            Err(error) => {
                tracing::warn!(%error, "a published revocation stays queued; it will be published again");
                WritePath::Buffered
            }
        }
    }

    /// The user's sessions.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`] when the store that has them is away.
    pub async fn list_sessions(&self, user: &UserId) -> Result<Vec<Session>, ReadError> {
        let mut sessions = match &self.0.redis {
            Some(lane) => self.stored_sessions(lane, user).await?,
            None => {
                let kept = self.0.read(|reader| reader.list_sessions()).await;
                kept.map_err(|_| ReadError::Unavailable)?
            }
        };
        let now = self.now();
        sessions.retain(|session| {
            session.user_id == *user
                && session.expires_at > now
                && !self.0.revocations.contain(&session.id)
        });
        sessions.sort_by(|one, other| {
            other
                .last_seen_at
                .cmp(&one.last_seen_at)
                .then(one.id.cmp(&other.id))
        });
        Ok(sessions)
    }

    /// A session of this user's that is in force; also, while the store is away, one this process has let in.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`] when the store that has them is away and this process hasn't seen the session.
    pub async fn find_session(
        &self,
        user: &UserId,
        id: &SessionId,
    ) -> Result<Option<Session>, ReadError> {
        match self.list_sessions(user).await {
            Ok(sessions) => Ok(sessions.into_iter().find(|session| session.id == *id)),
            Err(error) => {
                let seen = self
                    .0
                    .seen_sessions
                    .get(id)
                    .filter(|_| !self.0.revocations.contain(id));
                seen.map(|session| Some(session).filter(|session| session.user_id == *user))
                    .ok_or(error)
            }
        }
    }

    async fn stored_sessions(
        &self,
        lane: &Lane<Redis>,
        user: &UserId,
    ) -> Result<Vec<Session>, ReadError> {
        if !lane.health.is_up() {
            return Err(ReadError::Unavailable);
        }
        lane.store.list_sessions(user).await.map_err(|error| {
            lane.health.report_failure(&error);
            ReadError::Unavailable
        })
    }

    async fn note_session(self, session: Session) {
        let id = session.id.clone();
        let noted = match &self.0.redis {
            Some(lane) if lane.health.is_up() => match lane.store.record_session(&session).await {
                Ok(()) => true,
                Err(error) => {
                    lane.health.report_failure(&error);
                    false
                }
            },
            Some(_) => false,
            None => self.0.buffer.remember_session(session).await.is_ok(),
        };
        if !noted {
            self.0.noted_sessions.invalidate(&id);
        }
    }
}

fn revoking(user: &UserId, revocation: Revocation, now: Timestamp) -> Operation {
    Operation {
        id: OperationId::generate(),
        stamp: Stamp::ZERO,
        user_id: user.clone(),
        kind: Kind::Delete,
        body: Body::Session(revocation),
        precondition: None,
        idempotency: None,
        accepted_at: now,
        priority: Priority::ALL[0],
        buffered: false,
    }
}
