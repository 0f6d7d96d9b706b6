//! The revocations in force on this node, kept the same as everybody's: what others add to Redis is taken over into the
//! file, and what Redis has lost is given back to it.
//!
//! Redis acknowledges before its replicas have a write, so a failover may cost it the last ones; and one that keeps
//! nothing on disk loses everything with a restart. A revocation must not be lost with it: each node revokes again what
//! it knows and Redis doesn't have, also what another process of it or syncd had given to Redis.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::buffer::{BufferError, Reader};
use crate::domain::{Revocation, SessionId, Timestamp};
use crate::seeded::Bug;
use crate::store::redis::{Redis, RevocationCursor};

use super::core::{Lane, Repository};

/// How often other nodes' revocations are asked for: half of the second within which they must hold here.
const MIRROR_INTERVAL: Duration = Duration::from_millis(500);

/// The revocations in force on this node.
#[derive(Debug, Default)]
pub(super) struct Revocations(RwLock<HashMap<SessionId, Known>>);

/// What is known of a revocation.
#[derive(Debug, Clone, Copy)]
struct Known {
    keep_until: Timestamp,
    /// Whether it was read there.
    is_in_redis: bool,
}

impl Revocations {
    pub(super) fn contain(&self, id: &SessionId) -> bool {
        self.read().contains_key(id) && !Bug::RevocationIgnored.is_on()
    }

    /// Adds what this node has written down.
    pub(super) fn add(&self, revocations: impl IntoIterator<Item = Revocation>) {
        self.learn(revocations, |_| {});
    }

    /// Adds what was read in Redis.
    fn add_from_redis(&self, revocations: impl IntoIterator<Item = Revocation>) {
        self.learn(revocations, |known| known.is_in_redis = true);
    }

    fn learn(&self, revocations: impl IntoIterator<Item = Revocation>, note: fn(&mut Known)) {
        let mut all = self.write();
        for Revocation {
            session_id,
            keep_until,
        } in revocations
        {
            let known = all.entry(session_id).or_insert(Known {
                keep_until,
                is_in_redis: false,
            });
            known.keep_until = known.keep_until.max(keep_until);
            note(known);
        }
    }

    /// What Redis has is to be found out anew.
    fn redis_may_have_none(&self) {
        for known in self.write().values_mut() {
            known.is_in_redis = false;
        }
    }

    /// Those that weren't read in Redis.
    fn missing_in_redis(&self) -> Vec<Revocation> {
        let all = self.read();
        let missing = all.iter().filter(|(_, known)| !known.is_in_redis);
        let missing = missing.map(|(id, known)| Revocation {
            session_id: id.clone(),
            keep_until: known.keep_until,
        });
        missing.collect()
    }

    fn forget_before(&self, now: Timestamp) {
        self.write().retain(|_, known| known.keep_until >= now);
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, HashMap<SessionId, Known>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<SessionId, Known>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Repository {
    /// Takes over the revocations in the file.
    pub(super) async fn reload_revocations(&self) {
        match self.0.read(|reader| reader.list_revocations()).await {
            Ok(revocations) => self.0.revocations.add(revocations),
            Err(error) => tracing::warn!(%error, "can't read the revocations"),
        }
    }

    /// The same, before anything is served.
    pub(super) fn reload_revocations_blocking(&self) -> Result<(), BufferError> {
        self.0
            .revocations
            .add(self.0.buffer.read_blocking(Reader::list_revocations)?);
        Ok(())
    }

    /// Keeps this node's revocations and those in Redis the same, until the process ends.
    pub(super) async fn mirror_revocations(self) {
        let Some(lane) = self.0.redis.clone() else {
            return;
        };
        let mut ticks = interval(MIRROR_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut cursor = RevocationCursor::default();
        loop {
            ticks.tick().await;
            self.0.revocations.forget_before(self.now());
            if lane.health.is_up() && self.take_over_news(&lane, &mut cursor).await {
                self.give_back_what_is_missing(&lane).await;
            }
        }
    }

    /// Takes over what is new since the cursor, and moves it. Whether that was everything.
    async fn take_over_news(&self, lane: &Lane<Redis>, cursor: &mut RevocationCursor) -> bool {
        loop {
            let page = match lane.store.revocations_since(cursor.clone()).await {
                Ok(Some(page)) => page,
                Ok(None) => {
                    tracing::info!(
                        "redis no longer has the last revocation that was read there: comparing all"
                    );
                    self.0.revocations.redis_may_have_none();
                    *cursor = RevocationCursor::default();
                    continue;
                }
                Err(error) => {
                    lane.health.report_failure(&error);
                    return false;
                }
            };
            if !self.take_over(page.revocations).await {
                return false;
            }
            *cursor = page.cursor;
            if page.is_last {
                return true;
            }
        }
    }

    /// Whether they are written down.
    async fn take_over(&self, news: Vec<Revocation>) -> bool {
        if news.is_empty() {
            return true;
        }
        self.0.revocations.add_from_redis(news.clone());
        match self.0.buffer.remember_revocations(news).await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "can't write down other nodes' revocations; trying again");
                false
            }
        }
    }

    /// What was revoked here just now is given twice, which changes nothing.
    async fn give_back_what_is_missing(&self, lane: &Lane<Redis>) {
        let missing = self.0.revocations.missing_in_redis();
        if missing.is_empty() || Bug::LostRevocationsLeft.is_on() {
            return;
        }
        if let Err(error) = lane.store.revoke_again(&missing).await {
            lane.health.report_failure(&error);
        }
    }
}
