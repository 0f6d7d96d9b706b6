//! Taking connections, and letting them end well.
//!
//! warp's own server has no limit on connections, no time limit on headers and no deadline for its end, so warp's
//! service runs under hyper's here.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tower::Service;
use tracing::Instrument;
use warp::filters::BoxedFilter;
use warp::reply::Response;

use crate::client_stream::ClientStream;
use crate::lifecycle::{self, Phase, PhaseWatch};
use crate::middleware::exchange::{Exchange, Peer};
use crate::middleware::guard::guard;

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

/// How a server is bounded.
#[derive(Debug, Clone, Copy)]
pub struct ServerLimits {
    /// Most connections at once, at least one.
    pub max_connections: usize,
    /// How long the end waits for what is under way.
    pub drain_deadline: Duration,
}

/// Serves until `stop` is done, then ends: no connection is taken any more, what is under way is finished, and what
/// isn't at the deadline is closed.
pub async fn serve(
    listener: TcpListener,
    routes: BoxedFilter<(Response,)>,
    limits: ServerLimits,
    phase: watch::Sender<Phase>,
    stop: impl Future<Output = ()>,
) {
    let slots = Arc::new(Semaphore::new(limits.max_connections));
    tokio::select! {
        () = accept(&listener, &routes, &slots, phase.subscribe()) => {}
        () = stop => {}
    }
    drop(listener);
    phase.send_replace(Phase::Draining);
    drain(&slots, limits).await;
    phase.send_replace(Phase::Closing);
}

/// Every connection, and every write under way, holds a slot: when all are back, nothing is left.
async fn drain(slots: &Semaphore, limits: ServerLimits) {
    let all = u32::try_from(limits.max_connections).unwrap_or(u32::MAX);
    match tokio::time::timeout(limits.drain_deadline, slots.acquire_many(all)).await {
        Ok(_) => tracing::info!("all requests are answered"),
        Err(_) => {
            let left = limits
                .max_connections
                .saturating_sub(slots.available_permits());
            tracing::warn!(
                left,
                "closing connections that were not done by the deadline"
            );
        }
    }
}

/// Takes connections for ever, no more at once than there are slots; others wait in the system's queue.
async fn accept(
    listener: &TcpListener,
    routes: &BoxedFilter<(Response,)>,
    slots: &Arc<Semaphore>,
    phase: PhaseWatch,
) {
    let (mut cap_notice, mut failure_notice) = (Notice::default(), Notice::default());
    loop {
        if slots.available_permits() == 0 && cap_notice.is_due() {
            tracing::warn!("as many connections as MAX_CONNECTIONS allows: new ones wait");
        }
        let slot = Arc::clone(slots)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, address)) => {
                let peer = Peer {
                    address,
                    slot: Arc::new(slot),
                };
                tokio::spawn(connection(stream, peer, routes.clone(), phase.clone()));
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
async fn connection(
    stream: TcpStream,
    peer: Peer,
    routes: BoxedFilter<(Response,)>,
    phase: PhaseWatch,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection ended before it began");
        return;
    }
    let address = peer.address;
    let service = service_fn(move |request| answer(routes.clone(), request, peer.clone()));
    let io = TokioIo::new(ClientStream::new(stream));
    let mut serving = pin!(protocol().serve_connection(io, service));
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
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

fn protocol() -> http1::Builder {
    let mut protocol = http1::Builder::new();
    protocol
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
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

type Answering = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

/// Answers one request, whatever happens.
fn answer(
    routes: BoxedFilter<(Response,)>,
    mut request: Request<Incoming>,
    peer: Peer,
) -> Answering {
    let exchange = Arc::new(Exchange::begin(&request, peer));
    let span = exchange.span(request.headers());
    request.extensions_mut().insert(Arc::clone(&exchange));
    let answering = async move {
        let routed = async {
            let Ok(response) = warp::service(routes).call(request).await;
            response
        };
        let mut response = guard(routed, exchange.request_id()).await;
        exchange.finish(&mut response);
        Ok(response)
    };
    Box::pin(answering.instrument(span))
}
