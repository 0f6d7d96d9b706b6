//! Taking connections, and letting them end well.
//!
//! warp's own server has no limit on connections, no time limit on headers and no deadline for its end, so warp's
//! service runs under hyper's here.
//!
//! When there are as many connections as may be, a few more are taken, for one request and seconds each: probes are
//! answered on them as ever, and everything else is told at once to come back. A node that is merely busy must not look
//! dead to whoever probes it, and be killed for it. Beyond those, connections wait in the system's queue.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::client_stream::ClientStream;
use crate::lifecycle::{self, Phase, PhaseWatch};
use crate::middleware::exchange::{Berth, Peer};
use crate::web::Web;

/// How long a request's headers may take, and how long an idle connection is kept.
const HEADER_DEADLINE: Duration = Duration::from_secs(10);

/// Most bytes of a request's line and headers.
const MAX_HEADER_BYTES: usize = 32 * 1024;

/// Most bytes read from a connection ahead of what was asked for; with [`MAX_HEADER_BYTES`], what bounds the memory
/// of one.
const READ_BUFFER_BYTES: usize = 64 * 1024;

/// How long to wait before taking connections again when the system has no room for one (file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Least time between two log lines on the same lasting trouble.
const NOTICE_INTERVAL: Duration = Duration::from_secs(30);

/// Connections beyond the most there may be, for probes and refusals.
pub const SPARE_CONNECTIONS: usize = 256;

/// How long the request's headers may take on one of these: with all of them idle, that makes room for as many new ones
/// a second.
const SPARE_HEADER_DEADLINE: Duration = Duration::from_secs(1);

/// How long one of these is kept in all.
const SPARE_DEADLINE: Duration = Duration::from_secs(5);

/// How a server is bounded.
#[derive(Debug, Clone, Copy)]
pub struct ServerLimits {
    /// Most connections at once, at least one.
    pub max_connections: usize,
    /// How long the end waits for what is under way.
    pub drain_deadline: Duration,
}

impl ServerLimits {
    fn slots(&self) -> usize {
        self.max_connections + SPARE_CONNECTIONS
    }
}

/// Serves until `stop` is done, then ends: no connection is taken any more, what is under way is finished, and what
/// isn't at the deadline is closed.
pub async fn serve(
    listener: TcpListener,
    web: Web,
    limits: ServerLimits,
    phase: watch::Sender<Phase>,
    stop: impl Future<Output = ()>,
) {
    let slots = Arc::new(Semaphore::new(limits.slots()));
    tokio::select! {
        () = accept(&listener, &web, &slots, phase.subscribe()) => {}
        () = stop => {}
    }
    drop(listener);
    phase.send_replace(Phase::Draining);
    drain(&slots, limits).await;
    phase.send_replace(Phase::Closing);
}

/// Every connection, and every write under way, holds a slot: when all are back, nothing is left.
async fn drain(slots: &Semaphore, limits: ServerLimits) {
    let all = u32::try_from(limits.slots()).unwrap_or(u32::MAX);
    match tokio::time::timeout(limits.drain_deadline, slots.acquire_many(all)).await {
        Ok(_) => tracing::info!("all requests are answered"),
        Err(_) => {
            let left = limits.slots().saturating_sub(slots.available_permits());
            tracing::warn!(
                left,
                "closing connections that were not done by the deadline"
            );
        }
    }
}

/// Takes connections for ever, no more at once than there are slots; others wait in the system's queue.
async fn accept(listener: &TcpListener, web: &Web, slots: &Arc<Semaphore>, phase: PhaseWatch) {
    let (mut cap_notice, mut failure_notice) = (Notice::default(), Notice::default());
    loop {
        let slot = Arc::clone(slots)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, address)) => {
                let berth = berth(slots);
                if berth == Berth::Spare && cap_notice.is_due() {
                    tracing::warn!(
                        "as many connections as MAX_CONNECTIONS allows: new ones are told to come back"
                    );
                }
                let peer = Peer {
                    address,
                    slot: Arc::new(slot),
                    berth,
                };
                tokio::spawn(connection(stream, peer, web.clone(), phase.clone()));
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                if failure_notice.is_due() {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "can't take connections"
                    );
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// What a connection is taken for when this many slots are left without its own.
fn berth(slots: &Semaphore) -> Berth {
    if slots.available_permits() >= SPARE_CONNECTIONS {
        Berth::Ordinary
    } else {
        Berth::Spare
    }
}

/// Says at most now and then what would else fill the log while it lasts.
#[derive(Default)]
struct Notice(Option<Instant>);

impl Notice {
    fn is_due(&mut self) -> bool {
        let is_due = self.0.is_none_or(|last| last.elapsed() >= NOTICE_INTERVAL);
        if is_due {
            self.0 = Some(Instant::now());
        }
        is_due
    }
}

/// A client that was gone before its connection was taken.
fn is_of_one_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    )
}

/// Serves one connection until it ends, or has to.
async fn connection(stream: TcpStream, peer: Peer, web: Web, phase: PhaseWatch) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection ended before it began");
        return;
    }
    let Peer { address, berth, .. } = peer;
    let service = service_fn(move |request| web.clone().answer(request, peer.clone()));
    let io = TokioIo::new(ClientStream::new(stream));
    let mut serving = pin!(protocol(berth).serve_connection(io, service));
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = spare_deadline(berth) => Ok(()),
        () = lifecycle::draining(phase.clone()) => {
            serving.as_mut().graceful_shutdown();
            tokio::select! {
                ended = serving => ended,
                () = lifecycle::closing(phase) => Ok(()),
            }
        }
    };
    log_end(address, ended);
}

/// Ends when a spare connection has to; never for an ordinary one.
async fn spare_deadline(berth: Berth) {
    match berth {
        Berth::Ordinary => std::future::pending().await,
        Berth::Spare => tokio::time::sleep(SPARE_DEADLINE).await,
    }
}

fn protocol(berth: Berth) -> http1::Builder {
    let (header_deadline, keeps_alive) = match berth {
        Berth::Ordinary => (HEADER_DEADLINE, true),
        Berth::Spare => (SPARE_HEADER_DEADLINE, false),
    };
    let mut protocol = http1::Builder::new();
    protocol
        .timer(TokioTimer::new())
        .header_read_timeout(header_deadline)
        .keep_alive(keeps_alive)
        .max_header_size(MAX_HEADER_BYTES)
        .max_buf_size(READ_BUFFER_BYTES);
    protocol
}

/// Clients break off all the time; it only matters to somebody who looks for it.
fn log_end(peer: SocketAddr, ended: Result<(), hyper::Error>) {
    if let Err(error) = ended {
        tracing::debug!(%peer, error = &error as &dyn std::error::Error, "a connection broke off");
    }
}
