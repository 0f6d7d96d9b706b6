//! Waiting for a state instead of sleeping.
//!
//! A fixed sleep is either too short on a busy machine or too long on every
//! other one. [`eventually`] looks again and again, and when time is up it says
//! what it saw last, which is what one wants to know about a failed wait.

use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Time between two looks: short against everything that is waited for here,
/// long enough to leave the two cores to what is being waited for.
const GAP: Duration = Duration::from_millis(10);

/// Calls `look` until it returns `Ok`, and gives that value back.
///
/// `look` returns `Err(seen)` while the state isn't there yet; `what` completes
/// the sentence "waited for …".
///
/// # Errors
/// When `deadline` has passed, naming `what` and the last thing seen. A look
/// that hangs is cut off at the deadline too.
pub async fn eventually<T, S: Display>(
    deadline: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> Result<T, S>,
) -> Result<T> {
    let started = Instant::now();
    let mut last_seen = String::from("nothing yet");
    loop {
        let left = deadline.saturating_sub(started.elapsed());
        match tokio::time::timeout(left, look()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(seen)) => last_seen = seen.to_string(),
            Err(_) => {}
        }
        if started.elapsed() >= deadline {
            bail!("waited {deadline:?} for {what}; last seen: {last_seen}");
        }
        tokio::time::sleep(GAP).await;
    }
}
