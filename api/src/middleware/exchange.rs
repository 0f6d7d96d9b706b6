//! One request and its answer, as logs and metrics know them: its id, its trace, its route, its time.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use holdfast_shared::telemetry::metric;
use http::header::{CACHE_CONTROL, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use metrics::histogram;
use tokio::sync::OwnedSemaphorePermit;
use tracing::Span;
use uuid::Uuid;

use super::rate::Standing;
use crate::transport::header::{X_REQUEST_ID, request_id, trace_id};

/// The label of requests that no route is for, so that made-up paths don't make metrics without end.
const UNMATCHED: &str = "unmatched";

/// One of the connections the process takes, held by whatever is still done for it. When all are given back, nothing
/// is under way any more.
pub type ConnectionSlot = Arc<OwnedSemaphorePermit>;

/// A connection's other end.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// Its place among the connections.
    pub slot: ConnectionSlot,
    /// What it is taken for.
    pub berth: Berth,
}

/// What a connection is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Berth {
    /// Any number of requests of any kind.
    Ordinary,
    /// One probe, since there are as many ordinary connections as may be; anything else is refused.
    Spare,
}

/// A request under way.
#[derive(Debug)]
pub struct Exchange {
    request_id: String,
    method: Method,
    started: Instant,
    route: OnceLock<&'static str>,
    standing: OnceLock<Standing>,
    peer: Peer,
}

impl Exchange {
    /// Begins with a request whose headers have been read.
    pub fn begin<B>(request: &Request<B>, peer: Peer) -> Self {
        let own_id = || Uuid::new_v4().to_string();
        Exchange {
            request_id: request_id(request.headers()).map_or_else(own_id, str::to_owned),
            method: request.method().clone(),
            started: Instant::now(),
            route: OnceLock::new(),
            standing: OnceLock::new(),
            peer,
        }
    }

    /// The span all logs of this request are in.
    pub fn span(&self, headers: &HeaderMap) -> Span {
        let span = tracing::info_span!(
            "request",
            request_id = self.request_id.as_str(),
            trace_id = tracing::field::Empty,
            user_id = tracing::field::Empty,
        );
        if let Some(trace_id) = trace_id(headers) {
            span.record("trace_id", trace_id);
        }
        span
    }

    /// The request's id: the client's, or one made here.
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    /// Notes which route it is for, by its template.
    pub fn set_route(&self, template: &'static str) {
        self.route.get_or_init(|| template);
    }

    /// Notes how its user stands with the limit of requests.
    pub fn set_standing(&self, standing: Standing) {
        self.standing.get_or_init(|| standing);
    }

    /// What its connection is taken for.
    pub fn berth(&self) -> Berth {
        self.peer.berth
    }

    /// The connection's slot.
    pub fn slot(&self) -> ConnectionSlot {
        Arc::clone(&self.peer.slot)
    }

    /// Ends with an answer: adds the headers every answer has, logs it and counts it.
    pub fn finish<B>(&self, response: &mut Response<B>) {
        let headers = response.headers_mut();
        // Answers are one user's alone, and an error may change any moment; documents say themselves how they are kept.
        headers
            .entry(CACHE_CONTROL)
            .or_insert(HeaderValue::from_static("no-store"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        let id = HeaderValue::try_from(&self.request_id).expect("an id is printable ASCII");
        headers.insert(X_REQUEST_ID, id);
        if let Some(standing) = self.standing.get() {
            standing.tell(headers);
        }
        self.observe(response.status());
    }

    fn observe(&self, status: StatusCode) {
        let elapsed = self.started.elapsed();
        let method = method_label(&self.method);
        let route = self.route.get().copied().unwrap_or(UNMATCHED);
        histogram!(
            metric::HTTP_REQUEST_SECONDS,
            "method" => method, "route" => route, "status" => status.as_str().to_owned()
        )
        .record(elapsed);
        let latency_ms = elapsed.as_secs_f64() * 1e3;
        let (status, peer) = (status.as_u16(), self.peer.address);
        tracing::debug!(method, route, status, latency_ms, %peer, "answered a request");
    }
}

/// Methods that clients make up share one label.
fn method_label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "OTHER",
    }
}
