//! How many requests a user may send: a bucket of a minute's worth that fills up evenly. Per node, and off by default.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use holdfast_shared::domain::UserId;
use http::HeaderValue;
use http::header::RETRY_AFTER;
use moka::sync::Cache;

use crate::transport::problem::{Kind, Problem};

/// Most users that are kept account of; beyond that those longest unseen are forgotten, and may begin anew.
const MAX_USERS: u64 = 100_000;

/// The time a bucket takes to fill up, after which forgetting it changes nothing.
const MINUTE: Duration = Duration::from_secs(60);

/// Limits requests per user.
#[derive(Debug)]
pub struct RateLimit {
    per_minute: f64,
    buckets: Cache<UserId, Arc<Mutex<Bucket>>>,
}

/// What a user may still send.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl RateLimit {
    /// So many requests a minute; `None` for zero, which means no limit.
    pub fn new(per_minute: u32) -> Option<Self> {
        let buckets = Cache::builder()
            .max_capacity(MAX_USERS)
            .time_to_idle(MINUTE)
            .build();
        (per_minute > 0).then(|| RateLimit {
            per_minute: f64::from(per_minute),
            buckets,
        })
    }

    /// Counts a request of this user's.
    ///
    /// # Errors
    /// 429, saying when the next one will be taken.
    pub fn count(&self, user: &UserId) -> Result<(), Problem> {
        self.count_at(user, Instant::now()).map_err(|wait| {
            let seconds = wait.as_secs_f64().ceil().max(1.0) as u64;
            let detail = format!(
                "more than {} requests in a minute; try again in {seconds} s",
                self.per_minute
            );
            Problem::new(Kind::TooManyRequests, detail)
                .with_header(RETRY_AFTER, HeaderValue::from(seconds))
        })
    }

    fn count_at(&self, user: &UserId, now: Instant) -> Result<(), Duration> {
        let full = || {
            Arc::new(Mutex::new(Bucket {
                left: self.per_minute,
                at: now,
            }))
        };
        let bucket = self.buckets.get_with_by_ref(user, full);
        let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let per_second = self.per_minute / MINUTE.as_secs_f64();
        let gained = now.saturating_duration_since(bucket.at).as_secs_f64() * per_second;
        bucket.left = (bucket.left + gained).min(self.per_minute);
        bucket.at = now;
        if bucket.left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - bucket.left) / per_second));
        }
        bucket.left -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> UserId {
        UserId::parse(name).expect("valid")
    }

    #[test]
    fn zero_is_no_limit() {
        assert!(RateLimit::new(0).is_none());
    }

    #[test]
    fn a_minutes_worth_may_come_at_once_and_then_evenly() {
        let limit = RateLimit::new(60).expect("a limit");
        let start = Instant::now();
        for _ in 0..60 {
            assert_eq!(limit.count_at(&user("ann"), start), Ok(()));
        }
        assert_eq!(
            limit.count_at(&user("ann"), start),
            Err(Duration::from_secs(1))
        );
        assert_eq!(
            limit.count_at(&user("bob"), start),
            Ok(()),
            "each user has a bucket"
        );
        let later = start + Duration::from_millis(1_001);
        assert_eq!(limit.count_at(&user("ann"), later), Ok(()));
        assert!(limit.count_at(&user("ann"), later).is_err());
    }

    #[test]
    fn too_many_is_429_and_says_when() {
        let limit = RateLimit::new(1).expect("a limit");
        limit.count(&user("ann")).expect("the first");
        let response = limit
            .count(&user("ann"))
            .expect_err("the second")
            .into_response("r-1");
        assert_eq!(response.status().as_u16(), 429);
        assert_eq!(response.headers()[RETRY_AFTER], "60");
    }
}
