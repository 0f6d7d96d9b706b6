//! The orders that come from outside: leave, look now, read the settings again.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};

/// Exit code of a process that SIGINT ended, as shells count.
const INTERRUPTED: i32 = 130;

/// The orders, as others wait for them.
#[derive(Debug, Clone)]
pub struct Orders {
    /// Turns true when it is time to leave.
    pub stop: watch::Receiver<bool>,
    /// Someone wants a cycle now.
    pub look: Arc<Notify>,
    /// Someone wants the settings read again.
    pub reload: Arc<Notify>,
}

impl Orders {
    /// Orders that are given by hand, with the end that gives the order to leave.
    pub fn by_hand() -> (watch::Sender<bool>, Self) {
        let (give_stop, stop) = watch::channel(false);
        (
            give_stop,
            Orders {
                stop,
                look: Arc::default(),
                reload: Arc::default(),
            },
        )
    }

    /// Orders that signals give: SIGTERM and SIGINT to leave (a second SIGINT ends the process at once), SIGUSR1 to
    /// look, SIGHUP to reload. Call it within the runtime.
    ///
    /// # Errors
    /// When a handler can't be installed.
    pub fn by_signals() -> io::Result<Self> {
        end_at_second_interrupt()?;
        let (give_stop, orders) = Orders::by_hand();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut look = signal(SignalKind::user_defined1())?;
        let mut reload = signal(SignalKind::hangup())?;
        let heard = orders.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => drop(give_stop.send_replace(true)),
                    _ = interrupt.recv() => drop(give_stop.send_replace(true)),
                    _ = look.recv() => heard.look.notify_one(),
                    _ = reload.recv() => heard.reload.notify_one(),
                }
            }
        });
        Ok(orders)
    }
}

/// Waits for the order to stop; a giver that is gone counts as one.
pub async fn told_to_stop(stop: &mut watch::Receiver<bool>) {
    // The value itself is a lock guard, which mustn't be held on.
    let _told = stop.wait_for(|stop| *stop).await.is_ok();
}

/// Has SIGUSR1 do nothing to this process, which it would end otherwise: for a command that takes the daemon's lock,
/// whose holder `syncd drain` wakes. It has nothing to be woken for.
///
/// # Errors
/// When the handler can't be installed.
pub fn ignore_wakes() -> io::Result<()> {
    flag::register(SIGUSR1, Arc::new(AtomicBool::new(false)))?;
    Ok(())
}

/// Arms, at the first order to leave, the handler that ends the process at the next SIGINT. The order of registration
/// matters: at the first SIGINT the exit has to look before the flag is set.
fn end_at_second_interrupt() -> io::Result<()> {
    let leaving = Arc::new(AtomicBool::new(false));
    flag::register_conditional_shutdown(SIGINT, INTERRUPTED, Arc::clone(&leaving))?;
    flag::register(SIGINT, Arc::clone(&leaving))?;
    flag::register(SIGTERM, leaving)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::{Signal, raise};

    use super::*;

    #[test]
    fn a_wake_does_nothing_to_a_command_that_ignores_them() {
        ignore_wakes().expect("installed");
        raise(Signal::SIGUSR1).expect("sent");
    }
}
