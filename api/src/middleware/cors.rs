//! Letting pages of other origins call the API from a browser (CORS, as the Fetch standard has it), where
//! `CORS_ORIGINS` names them.
//!
//! Tokens travel in `Authorization`, never in cookies, so no credentials are allowed and any page may be let in. The
//! layer stands outside everything that answers, so that a browser can read an error as well as a success. (What a browser
//! sends can be parsed; refusals of what can't be don't pass here.)

use std::time::Duration;

use http::header::{
    ACCESS_CONTROL_REQUEST_METHOD, AGE, ALLOW, AUTHORIZATION, CONTENT_TYPE, ETAG, IF_MATCH,
    IF_NONE_MATCH, LOCATION, ORIGIN, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{HeaderName, HeaderValue, Method, Request};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::transport::header::{
    ACCEPT_PATCH, IDEMPOTENCY_KEY, IDEMPOTENCY_REPLAYED, OPERATION_LOCATION, PREFER,
    PREFERENCE_APPLIED, RATELIMIT, RATELIMIT_POLICY, SYNC_PRIORITY, SYNC_STATE, TRACEPARENT,
    X_REQUEST_ID,
};

/// How long a browser may go without asking again. The longest that Chromium takes; Firefox takes a day.
const MAX_AGE: Duration = Duration::from_secs(2 * 60 * 60);

/// Methods that pages may use: all that any route has.
const METHODS: [Method; 6] = [
    Method::GET,
    Method::HEAD,
    Method::POST,
    Method::PUT,
    Method::PATCH,
    Method::DELETE,
];

/// Headers that pages may send besides those a browser sends anyway: all that are read here.
const SENT: [HeaderName; 9] = [
    AUTHORIZATION,
    CONTENT_TYPE,
    IF_MATCH,
    IF_NONE_MATCH,
    IDEMPOTENCY_KEY,
    SYNC_PRIORITY,
    PREFER,
    X_REQUEST_ID,
    TRACEPARENT,
];

/// Headers of answers that pages may read besides those they may anyway: all that have a meaning here.
const SHOWN: [HeaderName; 14] = [
    ETAG,
    LOCATION,
    OPERATION_LOCATION,
    SYNC_STATE,
    AGE,
    RETRY_AFTER,
    IDEMPOTENCY_REPLAYED,
    PREFERENCE_APPLIED,
    RATELIMIT,
    RATELIMIT_POLICY,
    X_REQUEST_ID,
    ALLOW,
    ACCEPT_PATCH,
    WWW_AUTHENTICATE,
];

/// What adds the headers for these origins, each as an `Origin` header has it, or `*` alone; `None` for none.
pub fn layer(origins: &[String]) -> Option<CorsLayer> {
    let allowed = match origins {
        [] => return None,
        [any] if any == "*" => AllowOrigin::any(),
        listed => AllowOrigin::list(
            listed
                .iter()
                .filter_map(|origin| HeaderValue::try_from(origin).ok()),
        ),
    };
    Some(
        CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods(METHODS)
            .allow_headers(SENT)
            .expose_headers(SHOWN)
            .max_age(MAX_AGE),
    )
}

/// Whether the layer has anything to do with a request. It takes every `OPTIONS` for a browser's question in advance,
/// but only one with these two headers is (Fetch §3.3.2); the others ask the route.
pub fn concerns<B>(request: &Request<B>) -> bool {
    let headers = request.headers();
    request.method() != Method::OPTIONS
        || (headers.contains_key(ORIGIN) && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_origin_is_no_layer() {
        assert!(layer(&[]).is_none());
        assert!(layer(&["*".to_owned()]).is_some());
    }

    #[test]
    fn only_a_browsers_question_in_advance_is_not_the_routes() {
        let request = |method: Method, headers: &[HeaderName]| {
            let mut request = Request::builder().method(method);
            for name in headers {
                request = request.header(name, "x");
            }
            request.body(()).expect("a request")
        };
        let both = [ORIGIN, ACCESS_CONTROL_REQUEST_METHOD];
        assert!(concerns(&request(Method::GET, &[])));
        assert!(concerns(&request(Method::OPTIONS, &both)));
        assert!(!concerns(&request(Method::OPTIONS, &both[..1])));
        assert!(!concerns(&request(Method::OPTIONS, &both[1..])));
    }
}
