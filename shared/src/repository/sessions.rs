//! Sessions: who is let in, and revoking, which holds here at once and everywhere soon.

use std::sync::atomic::Ordering;

use crate::buffer::{Queued, Settlement, Verdict};
use crate::config::SessionPolicy;
use crate::domain::{
    Body, Kind, Operation, OperationId, OperationRecord, OperationState, Priority, Revocation,
    Session, SessionId, Stamp, Timestamp, UserId,
};
use crate::store::redis::Redis;

use super::answer::{Admission, ReadError, WriteError, WritePath, Written};
use super::core::{Lane, Repository};

/// Most sessions of a user that are listed: as many as Redis keeps of one.
pub const LISTED_SESSIONS_MAX: usize = 1000;

impl Repository {
    /// Whether a session may come in. Notes, in the background and at most once a minute, that it was seen.
    pub async fn admit(&self, session: &Session) -> Admission {
        if self.is_revoked(&session.id) {
            return Admission::Revoked;
        }
        if self.0.session_policy == SessionPolicy::Strict && self.may_miss_revocations() {
            return Admission::Unknown;
        }
        let noted = self.0.noted_sessions.get(&session.id);
        if noted.is_none_or(|expires_at| expires_at < session.expires_at) {
            self.see(session.clone());
        }
        Admission::Admitted
    }

    /// Whether a session is known to be revoked.
    pub fn is_revoked(&self, id: &SessionId) -> bool {
        self.0.revocations.contain(id)
    }

    /// Notes a session that was let in. It ends with the last of its tokens.
    fn see(&self, mut session: Session) {
        let id = session.id.clone();
        session.expires_at = session.expires_at.max(self.last_token_of(&id));
        self.0.noted_sessions.insert(id.clone(), session.expires_at);
        self.0.seen_sessions.insert(id, session.clone());
        tokio::spawn(self.clone().note_session(session));
    }

    /// When the last of a session's tokens ends that this process has seen; long ago where it has seen none.
    fn last_token_of(&self, id: &SessionId) -> Timestamp {
        let seen = self.0.seen_sessions.get(id);
        seen.map_or(Timestamp::from_micros(0), |session| session.expires_at)
    }

    /// Whether others may have revoked what isn't known here: Redis is away, or was until now.
    fn may_miss_revocations(&self) -> bool {
        let is_current = || self.0.mirror_is_current.load(Ordering::Relaxed);
        let redis = self.0.redis.as_ref();
        redis.is_some_and(|lane| !(lane.health.is_up() && is_current()))
    }

    /// Revokes a session of this user's: durably here before this returns, then in Redis. `Ok` with
    /// [`WritePath::Buffered`] when Redis will learn of it later. It outlives all of the session's tokens that were seen here.
    ///
    /// # Errors
    /// [`WriteError`] when the buffer can't take it; nothing is revoked then.
    pub async fn revoke(
        &self,
        user: &UserId,
        mut revocation: Revocation,
    ) -> Result<Written, WriteError> {
        let last_token = self.last_token_of(&revocation.session_id);
        revocation.keep_until = revocation.keep_until.max(last_token);
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

    /// The user's sessions, those seen last first, at most [`LISTED_SESSIONS_MAX`].
    ///
    /// # Errors
    /// [`ReadError::Unavailable`] when the store that has them is away.
    pub async fn list_sessions(&self, user: &UserId) -> Result<Vec<Session>, ReadError> {
        let mut sessions = self.sessions_of(user).await?;
        sessions.sort_by(|one, other| {
            other
                .last_seen_at
                .cmp(&one.last_seen_at)
                .then(one.id.cmp(&other.id))
        });
        sessions.truncate(LISTED_SESSIONS_MAX);
        Ok(sessions)
    }

    /// All that are in force, in no particular order.
    async fn sessions_of(&self, user: &UserId) -> Result<Vec<Session>, ReadError> {
        let mut sessions = match &self.0.redis {
            Some(lane) => self.stored_sessions(lane, user).await?,
            None => {
                let kept = self.0.read(|reader| reader.list_sessions()).await;
                kept.map_err(|_| ReadError::Unavailable)?
            }
        };
        let now = self.now();
        sessions.retain(|session| {
            session.user_id == *user && session.expires_at > now && !self.is_revoked(&session.id)
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
        match self.sessions_of(user).await {
            Ok(sessions) => Ok(sessions.into_iter().find(|session| session.id == *id)),
            Err(error) => {
                let seen = self
                    .0
                    .seen_sessions
                    .get(id)
                    .filter(|_| !self.is_revoked(id));
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
