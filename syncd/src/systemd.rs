//! What syncd tells the service manager: that it is ready, what it is doing, and that it is alive.
//!
//! Without a service manager (no `NOTIFY_SOCKET`) all of it does nothing. A notification that can't be sent changes
//! nothing about the work, so it is a debug line; a watchdog that hears nothing ends the process by itself.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// Says that syncd is up, and what it is doing.
pub fn notify_ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
}

/// Says that the configuration is being read again. [`notify_ready`] says that this is over.
pub fn notify_reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(error) => {
            tracing::debug!(%error, "can't read the monotonic clock for the service manager")
        }
    }
}

/// Says that syncd is leaving.
pub fn notify_stopping(status: &str) {
    send(&[
        NotifyState::Stopping,
        NotifyState::Status(&one_line(status)),
    ]);
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "can't reach the service manager");
    }
}

/// A status with a line break in it would be read as another assignment.
fn one_line(text: &str) -> String {
    text.split(['\n', '\r']).collect::<Vec<_>>().join(" ")
}

/// Keeps the service manager informed: the status line when it changes, and the signs of life that its watchdog wants.
///
/// Call [`Pulse::beat`] from the loop whose standstill should be noticed.
#[derive(Debug)]
pub struct Pulse {
    watchdog: Option<Duration>,
    last_sign: Option<Instant>,
    last_status: String,
    status_sent: Option<Instant>,
}

/// Least time between two status lines: while it drains, the backlog changes with every look.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

impl Pulse {
    /// Reads from the environment whether a watchdog waits for signs of life.
    pub fn from_environment() -> Self {
        Pulse {
            watchdog: sd_notify::watchdog_enabled(),
            last_sign: None,
            last_status: String::new(),
            status_sent: None,
        }
    }

    /// Sends whatever is due at `now`: a sign of life three times within the watchdog's patience, and `status` when it
    /// is new and the last one was not just sent.
    pub fn beat(&mut self, now: Instant, status: &str) {
        if let Some(patience) = self.watchdog
            && is_due(self.last_sign, now, patience / 3)
        {
            self.last_sign = Some(now);
            send(&[NotifyState::Watchdog]);
        }
        if status != self.last_status && is_due(self.status_sent, now, STATUS_INTERVAL) {
            self.status_sent = Some(now);
            status.clone_into(&mut self.last_status);
            send(&[NotifyState::Status(&one_line(status))]);
        }
    }
}

fn is_due(last: Option<Instant>, now: Instant, interval: Duration) -> bool {
    last.is_none_or(|last| now.duration_since(last) >= interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_one_line() {
        assert_eq!(one_line("a\nREADY=1\r\nb"), "a READY=1  b");
    }

    #[test]
    fn something_is_due_at_first_and_after_each_interval() {
        let (now, interval) = (Instant::now(), Duration::from_secs(1));
        assert!(is_due(None, now, interval));
        assert!(!is_due(Some(now), now + interval / 2, interval));
        assert!(is_due(Some(now), now + interval, interval));
    }
}
