//! The revocations in force on this node, kept the same as everybody's: what others add to Redis is taken over into the
//! file, and what Redis has lost is given back to it.
//!
//! Redis acknowledges before its replicas have a write, so a failover may cost it the last ones; and one that keeps
//! nothing on disk loses everything with a restart. A revocation must not be lost with it: each node revokes again what
//! it knows and Redis doesn't have, also what another process of it or syncd had given to Redis.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
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

/// Most revocations that are given back to Redis between two looks for news: one command of some 200 KB.
const GIVEN_BACK_AT_ONCE: usize = 2000;

/// The revocations in force on this node.
#[derive(Debug, Default)]
pub(super) struct Revocations(RwLock<HashMap<SessionId, Known>>);

/// What is known of a revocation.
#[derive(Debug, Clone, Copy)]
struct Known {
    /// By whoever keeps it longest.
    keep_until: Timestamp,
    /// Until when the file keeps it.
    written_until: Option<Timestamp>,
    /// Until when it was read to be kept in Redis.
    in_redis_until: Option<Timestamp>,
}

impl Known {
    fn is_in_redis(&self) -> bool {
        self.in_redis_until >= Some(self.keep_until)
    }
}

impl Revocations {
    pub(super) fn contain(&self, id: &SessionId) -> bool {
        self.read().contains_key(id) && !Bug::RevocationIgnored.is_on()
    }

    /// Adds what is in the file.
    pub(super) fn add(&self, revocations: impl IntoIterator<Item = Revocation>) {
        self.learn(revocations, |known| &mut known.written_until);
    }

    /// Adds what was read in Redis; gives those of them that the file doesn't have, or not for as long.
    fn add_from_redis(&self, mut revocations: Vec<Revocation>) -> Vec<Revocation> {
        self.learn(revocations.clone(), |known| &mut known.in_redis_until);
        let all = self.read();
        revocations.retain(|revocation| {
            let known = all.get(&revocation.session_id);
            known.is_some_and(|known| known.written_until < Some(revocation.keep_until))
        });
        revocations
    }

    /// `place` is where it was found.
    fn learn(
        &self,
        revocations: impl IntoIterator<Item = Revocation>,
        place: fn(&mut Known) -> &mut Option<Timestamp>,
    ) {
        let mut all = self.write();
        for Revocation {
            session_id,
            keep_until,
        } in revocations
        {
            let known = all.entry(session_id).or_insert(Known {
                keep_until,
                written_until: None,
                in_redis_until: None,
            });
            known.keep_until = known.keep_until.max(keep_until);
            let until = place(known);
            *until = (*until).max(Some(keep_until));
        }
    }

    /// What Redis has is to be found out anew.
    fn redis_may_have_none(&self) {
        for known in self.write().values_mut() {
            known.in_redis_until = None;
        }
    }

    /// Those that weren't read in Redis, but at most so many.
    fn missing_in_redis(&self, limit: usize) -> Vec<Revocation> {
        let all = self.read();
        let missing = all.iter().filter(|(_, known)| !known.is_in_redis());
        let missing = missing.take(limit);
        let missing = missing.map(|(id, known)| Revocation {
            session_id: id.clone(),
            keep_until: known.keep_until,
        });
        missing.collect()
    }

    /// Forgets those that needn't be kept any more.
    pub(super) fn forget_before(&self, now: Timestamp) {
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
    /// Takes over the revocations in the file. Whether that worked.
    pub(super) async fn reload_revocations(&self) -> bool {
        match self.0.read(|reader| reader.list_revocations()).await {
            Ok(revocations) => {
                self.0.revocations.add(revocations);
                true
            }
            Err(error) => {
                tracing::warn!(%error, "can't read the revocations; trying again");
                false
            }
        }
    }

    /// Forgets revocations that have outlived every token. Where PostgreSQL's time is to be known but isn't yet, none has:
    /// by a wrong clock all may have.
    pub(super) fn forget_old_revocations(&self) {
        if self.is_embedded() || self.0.buffer.clock().boot_distance_us().is_some() {
            self.0.revocations.forget_before(self.now());
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
            let is_current = lane.health.is_up() && self.take_over_news(&lane, &mut cursor).await;
            self.0
                .mirror_is_current
                .store(is_current, Ordering::Relaxed);
            if is_current {
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
        let unwritten = self.0.revocations.add_from_redis(news);
        if unwritten.is_empty() {
            return true;
        }
        match self.0.buffer.remember_revocations(unwritten.clone()).await {
            Ok(()) => {
                self.0.revocations.add(unwritten);
                true
            }
            Err(error) => {
                tracing::warn!(%error, "can't write down other nodes' revocations; trying again");
                false
            }
        }
    }

    /// So many at a time that news are read between. What was revoked here just now is given twice, which changes nothing.
    async fn give_back_what_is_missing(&self, lane: &Lane<Redis>) {
        let missing = self.0.revocations.missing_in_redis(GIVEN_BACK_AT_ONCE);
        if missing.is_empty() || Bug::LostRevocationsLeft.is_on() {
            return;
        }
        if let Err(error) = lane.store.revoke_again(&missing).await {
            lane.health.report_failure(&error);
        }
    }
}
