//! Sessions: what a revocation says. The session itself lives in the token and in Redis.

use serde::{Deserialize, Serialize};

use super::identity::{SessionId, UserId};
use super::stamp::Timestamp;

/// Days a revocation is kept at least: it must outlive every token of the session.
pub const REVOCATION_DAYS: i64 = 30;

/// A session that is not to be let in any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// The session.
    pub session_id: SessionId,
    /// Until when it has to be remembered: 30 days, or the token's `exp` if later.
    pub keep_until: Timestamp,
}

impl Revocation {
    /// Revokes a session now; `expires_at` is the `exp` of the token it was made with, where that is known.
    pub fn new(session_id: SessionId, now: Timestamp, expires_at: Option<Timestamp>) -> Self {
        let day_us = 24 * 3_600 * 1_000_000;
        let least =
            Timestamp::from_micros(now.as_micros().saturating_add(REVOCATION_DAYS * day_us));
        Revocation {
            session_id,
            keep_until: expires_at.map_or(least, |expiry| expiry.max(least)),
        }
    }
}

/// A session a token opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// Whose it is.
    pub user_id: UserId,
    /// When it was first seen.
    pub created_at: Timestamp,
    /// When it was last seen, to the minute.
    pub last_seen_at: Timestamp,
    /// When its token expires.
    pub expires_at: Timestamp,
    /// The client's `User-Agent`, up to 200 characters of it.
    pub user_agent: Option<String>,
}
