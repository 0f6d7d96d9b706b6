//! How each request is answered, whatever it asks: named and timed, held to its bounds, routed, compressed, and made
//! readable to pages of other origins. From the outside in: `exchange`, `cors`, `compression`, `guard`, the router.

use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{HOST, TRANSFER_ENCODING};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Request, Version};
use hyper::body::{Body, Incoming};
use tower::{Layer, Service, service_fn};
use tower_http::cors::CorsLayer;
use tracing::Instrument;
use warp::filters::BoxedFilter;
use warp::reply::Response;

use crate::middleware::exchange::{Exchange, Peer};
use crate::middleware::guard::guard;
use crate::middleware::{compression, cors};
use crate::transport::problem::{Kind, Problem};

/// What answers requests. Cheap to clone.
#[derive(Clone)]
pub struct Web {
    routes: BoxedFilter<(Response,)>,
    cors: Option<CorsLayer>,
}

impl Web {
    /// Answers by these routes, and lets pages of these origins read the answers.
    pub fn new(routes: BoxedFilter<(Response,)>, cors_origins: &[String]) -> Self {
        Web {
            routes,
            cors: cors::layer(cors_origins),
        }
    }

    /// Answers one request, whatever happens.
    pub fn answer(
        self,
        mut request: Request<Incoming>,
        peer: Peer,
    ) -> impl Future<Output = Result<http::Response<impl AnswerBody>, Infallible>> + Send {
        let exchange = Arc::new(Exchange::begin(&request, peer));
        let span = exchange.span(request.headers());
        request.extensions_mut().insert(Arc::clone(&exchange));
        let answering = async move {
            let mut answer = self.encoded(request, &exchange).await;
            compression::finish(&mut answer);
            exchange.finish(&mut answer);
            Ok(answer)
        };
        Box::pin(answering.instrument(span))
    }

    async fn encoded(
        self,
        request: Request<Incoming>,
        exchange: &Arc<Exchange>,
    ) -> http::Response<impl AnswerBody + use<>> {
        let routes = self.routes;
        let name = Arc::clone(exchange);
        let plain = service_fn(move |request| {
            let (routes, name) = (routes.clone(), Arc::clone(&name));
            async move {
                let routed = routed(routes, request, name.request_id());
                let mut answer = guard(routed, name.request_id()).await;
                compression::prepare(&mut answer);
                Ok::<_, Infallible>(answer)
            }
        });
        let mut compressed = compression::layer().layer(plain);
        let Ok(answer) = match self.cors {
            Some(cors) if cors::concerns(&request) => cors.layer(compressed).call(request).await,
            _ => compressed.call(request).await,
        };
        answer
    }
}

/// The body of an answer.
pub trait AnswerBody:
    Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static
{
}

impl<B> AnswerBody for B where
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static
{
}

async fn routed(
    routes: BoxedFilter<(Response,)>,
    request: Request<Incoming>,
    request_id: &str,
) -> Response {
    if !names_one_host(&request) {
        let detail = "an HTTP/1.1 request has one Host header, with a host and perhaps a port";
        return Problem::new(Kind::MalformedRequest, detail).into_response(request_id);
    }
    if !is_only_chunked(request.headers()) {
        let detail = "a body may be sent in chunks, but with no other transfer coding";
        return Problem::new(Kind::MalformedRequest, detail).into_response(request_id);
    }
    // CONNECT names no path, and warp's filter for paths panics then.
    if request.uri().path_and_query().is_none() {
        return Problem::not_found().into_response(request_id);
    }
    let Ok(answer) = warp::service(routes).call(request).await;
    answer
}

/// What RFC 9112 §3.2 asks of a server: a request with several hosts may have been meant for another one by whoever
/// passed it on. Nothing here is chosen by it.
fn names_one_host<B>(request: &Request<B>) -> bool {
    let mut hosts = request.headers().get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => request.version() < Version::HTTP_11,
        (Some(host), None) => is_host(host),
        (Some(_), Some(_)) => false,
    }
}

/// hyper undoes the chunks and passes over any other coding, so what comes out isn't what was meant.
fn is_only_chunked(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    codings.all(|value| value.as_bytes().eq_ignore_ascii_case(b"chunked"))
}

fn is_host(value: &HeaderValue) -> bool {
    let bytes = value.as_bytes();
    bytes.is_empty() || (!bytes.contains(&b'@') && Authority::try_from(bytes).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names_one(version: Version, hosts: &[&str]) -> bool {
        let mut request = Request::builder().version(version);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        names_one_host(&request.body(()).expect("a request"))
    }

    #[test]
    fn a_request_names_one_host() {
        for host in [
            "example.org",
            "example.org:8080",
            "[::1]:80",
            "127.0.0.1",
            "",
        ] {
            assert!(names_one(Version::HTTP_11, &[host]), "{host}");
        }
        assert!(names_one(Version::HTTP_10, &[]));
        assert!(!names_one(Version::HTTP_11, &[]));
        for version in [Version::HTTP_10, Version::HTTP_11] {
            assert!(!names_one(version, &["a", "a"]));
            for bad in ["a b", "ann@a", "a/b", "a:b:c"] {
                assert!(!names_one(version, &[bad]), "{bad}");
            }
        }
    }
}
