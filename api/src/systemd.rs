//! What the process tells systemd, when that has started it: that it is ready, that it ends, that it is alive.
//! Elsewhere all of this does nothing.

use std::io;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use listenfd::ListenFd;
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::time::MissedTickBehavior;

/// The socket systemd listens on for us, if it does.
///
/// # Errors
/// When what was passed is no TCP socket.
pub fn passed_listener() -> Result<Option<TcpListener>> {
    let passed = ListenFd::from_env()
        .take_tcp_listener(0)
        .context("the socket that was passed is no TCP socket")?;
    let Some(listener) = passed else {
        return Ok(None);
    };
    listener
        .set_nonblocking(true)
        .context("can't use the socket that was passed")?;
    let listener =
        TcpListener::from_std(listener).context("can't use the socket that was passed")?;
    Ok(Some(listener))
}

/// Tells that requests are taken.
pub fn ready(address: SocketAddr) {
    tell(&[
        NotifyState::Ready,
        NotifyState::Status(&format!("taking requests on {address}")),
    ]);
}

/// Tells that the end has begun.
pub fn stopping() {
    tell(&[
        NotifyState::Stopping,
        NotifyState::Status("finishing what is under way"),
    ]);
}

/// Tells for ever that the process is alive, twice per interval of the watchdog, if there is one. It is a task like
/// any other, so a runtime that makes no progress stops telling.
pub async fn keep_alive() {
    let Some(interval) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut ticks = tokio::time::interval(interval / 2);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}

fn tell(states: &[NotifyState<'_>]) {
    let told: io::Result<()> = sd_notify::notify(states);
    if let Err(error) = told {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "can't reach systemd's notification socket"
        );
    }
}
