//! The phases of the process' life that connections and long polls follow.

use tokio::sync::watch;

/// How far the end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Requests are taken.
    Serving,
    /// No connection is taken any more; what is under way is finished.
    Draining,
    /// What is still open is closed.
    Closing,
}

/// Sees the phase change.
pub type PhaseWatch = watch::Receiver<Phase>;

/// Waits for the end to begin.
pub async fn draining(watch: PhaseWatch) {
    reached(watch, Phase::Draining).await;
}

/// Waits for the time when what is still open is closed.
pub async fn closing(watch: PhaseWatch) {
    reached(watch, Phase::Closing).await;
}

/// A process without anybody to announce phases has ended.
async fn reached(mut watch: PhaseWatch, phase: Phase) {
    let _sender_is_gone = watch.wait_for(|now| *now >= phase).await.is_err();
}
