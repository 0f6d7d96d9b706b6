//! How many requests a user may send: a bucket of a minute's worth that fills up evenly. Per node, and off by default.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use holdfast_shared::domain::UserId;
use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderValue};
use moka::sync::Cache;

use crate::transport::header::{RATELIMIT, RATELIMIT_POLICY};
use crate::transport::problem::{Kind, Problem};

/// Most users that are kept account of; beyond that those longest unseen are forgotten, and may begin anew.
const MAX_USERS: u64 = 100_000;

/// The time a bucket takes to fill up, after which forgetting it changes nothing.
const MINUTE: Duration = Duration::from_secs(60);

/// Limits requests per user.
#[derive(Debug)]
pub struct RateLimit {
    per_minute: u32,
    buckets: Cache<UserId, Arc<Mutex<Bucket>>>,
}

/// What a user may still send.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

/// How a user stands after a request was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    per_minute: u32,
    /// Requests that would be taken now.
    left: u32,
    /// Whole seconds, at least one, until there is one more.
    more_in_seconds: u64,
    /// Whether this one was taken.
    is_taken: bool,
}

impl RateLimit {
    /// So many requests a minute; `None` for zero, which means no limit.
    pub fn new(per_minute: u32) -> Option<Self> {
        let buckets = Cache::builder()
            .max_capacity(MAX_USERS)
            .time_to_idle(MINUTE)
            .build();
        (per_minute > 0).then(|| RateLimit {
            per_minute,
            buckets,
        })
    }

    /// Counts a request of this user's.
    pub fn count(&self, user: &UserId) -> Standing {
        self.count_at(user, Instant::now())
    }

    fn count_at(&self, user: &UserId, now: Instant) -> Standing {
        let most = f64::from(self.per_minute);
        let full = || {
            Arc::new(Mutex::new(Bucket {
                left: most,
                at: now,
            }))
        };
        let bucket = self.buckets.get_with_by_ref(user, full);
        let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let per_second = most / MINUTE.as_secs_f64();
        let gained = now.saturating_duration_since(bucket.at).as_secs_f64() * per_second;
        bucket.left = (bucket.left + gained).min(most);
        bucket.at = now;
        let is_taken = bucket.left >= 1.0;
        if is_taken {
            bucket.left -= 1.0;
        }
        let more_in = (1.0 - bucket.left.fract()) / per_second;
        Standing {
            per_minute: self.per_minute,
            left: bucket.left as u32,
            more_in_seconds: more_in.ceil().max(1.0) as u64,
            is_taken,
        }
    }
}

impl Standing {
    /// Lets the request through if it was taken.
    ///
    /// # Errors
    /// 429, saying when the next one will be.
    pub fn admit(&self) -> Result<(), Problem> {
        if self.is_taken {
            return Ok(());
        }
        let (limit, seconds) = (self.per_minute, self.more_in_seconds);
        let detail = format!("more than {limit} requests in a minute; try again in {seconds} s");
        Err(Problem::new(Kind::TooManyRequests, detail)
            .with_header(RETRY_AFTER, HeaderValue::from(seconds)))
    }

    /// Tells the client, whether the request was taken or not (draft-ietf-httpapi-ratelimit-headers-10): the quota `q`
    /// of a window of `w` seconds, what remains of it (`r`), and in how many seconds there will be more (`t`).
    pub fn tell(&self, headers: &mut HeaderMap) {
        let policy = format!("\"user\";q={};w={}", self.per_minute, MINUTE.as_secs());
        let standing = format!("\"user\";r={};t={}", self.left, self.more_in_seconds);
        for (name, value) in [(RATELIMIT_POLICY, policy), (RATELIMIT, standing)] {
            let value = HeaderValue::try_from(value).expect("digits and letters are ASCII");
            headers.insert(name, value);
        }
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
        for left in (0..60).rev() {
            let standing = limit.count_at(&user("ann"), start);
            assert_eq!((standing.is_taken, standing.left), (true, left));
        }
        let beyond = limit.count_at(&user("ann"), start);
        assert_eq!(
            (beyond.is_taken, beyond.left, beyond.more_in_seconds),
            (false, 0, 1)
        );
        let other = limit.count_at(&user("bob"), start);
        assert!(other.is_taken, "each user has a bucket");
        let later = start + Duration::from_millis(1_001);
        assert!(limit.count_at(&user("ann"), later).is_taken);
        assert!(!limit.count_at(&user("ann"), later).is_taken);
    }

    #[test]
    fn a_client_is_told_how_it_stands() {
        let limit = RateLimit::new(6).expect("a limit");
        let start = Instant::now();
        let told = |standing: Standing| {
            let mut headers = HeaderMap::new();
            standing.tell(&mut headers);
            let text = |name| headers[name].to_str().expect("ASCII").to_owned();
            (text(RATELIMIT_POLICY), text(RATELIMIT))
        };
        let policy = "\"user\";q=6;w=60".to_owned();
        let first = told(limit.count_at(&user("ann"), start));
        assert_eq!(first, (policy.clone(), "\"user\";r=5;t=10".to_owned()));
        let later = start + Duration::from_secs(4);
        let second = told(limit.count_at(&user("ann"), later));
        assert_eq!(second, (policy, "\"user\";r=4;t=6".to_owned()));
    }

    #[test]
    fn too_many_is_429_and_says_when() {
        let limit = RateLimit::new(1).expect("a limit");
        limit.count(&user("ann")).admit().expect("the first");
        let response = limit
            .count(&user("ann"))
            .admit()
            .expect_err("the second")
            .into_response("r-1");
        assert_eq!(response.status().as_u16(), 429);
        assert_eq!(response.headers()[RETRY_AFTER], "60");
    }
}
