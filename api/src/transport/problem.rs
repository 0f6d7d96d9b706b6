//! Failures as clients are told them (RFC 9457). One closed table of kinds, so that `type` stays stable and nothing
//! of the inside ever shows.

use std::time::Duration;

use holdfast_shared::repository::Awaited;
use http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, StatusCode};
use serde::Serialize;
use warp::reply::Response;

/// Most faults of one document that are told: enough for every field, and a bound for a body full of unknown ones.
pub const MAX_FAULTS: usize = 50;

/// A problem's media type (RFC 9457 §3).
pub const MEDIA_TYPE: &str = "application/problem+json";

/// What every `type` begins with: where the pages about problems are.
pub const TYPE_PREFIX: &str = "/problems/";

/// When a repeat may do better where nobody has measured.
const LEAST_RETRY_AFTER: Duration = Duration::from_secs(1);

/// What kind of failure it is. Each has a fixed `type`, title and status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What was sent isn't HTTP, or not as it has to be.
    MalformedRequest,
    /// The request's line and headers are larger than is taken.
    HeadersTooLarge,
    /// The body isn't JSON.
    MalformedJson,
    /// The body couldn't be read to its end.
    UnreadableBody,
    /// A query parameter is unknown, repeated or has a bad value.
    BadParameter,
    /// A header has a bad value.
    BadHeader,
    /// No token, or one that doesn't let its bearer in.
    Unauthorized,
    /// There is no such thing, or it is another user's.
    NotFound,
    /// The path is there, but not with this method.
    MethodNotAllowed,
    /// The body wasn't finished in time.
    BodyTimeout,
    /// The first request with this idempotency key still runs.
    KeyInUse,
    /// It was deleted, and ids are never used again.
    Gone,
    /// The client's condition isn't met.
    PreconditionFailed,
    /// The body is larger than is taken.
    BodyTooLarge,
    /// The body is in a form that isn't understood here.
    UnsupportedMediaType,
    /// Fields of the body break the contract; `errors` says which.
    InvalidFields,
    /// The idempotency key was used for another request.
    KeyReused,
    /// The user has sent too many requests of late.
    TooManyRequests,
    /// A defect of ours.
    Internal,
    /// The store is away, and this node doesn't know.
    Unavailable,
    /// The store is away, and the buffer is full.
    BufferFull,
    /// The write would have to be buffered, and the client doesn't want that.
    StrictNotMet,
    /// There are as many connections as may be.
    TooManyConnections,
    /// Neither store nor buffer can be used.
    NotReady,
    /// It took too long.
    TimedOut,
}

impl Kind {
    /// Every kind: what the documentation of problems lists.
    pub const ALL: [Kind; 25] = [
        Kind::MalformedRequest,
        Kind::HeadersTooLarge,
        Kind::MalformedJson,
        Kind::UnreadableBody,
        Kind::BadParameter,
        Kind::BadHeader,
        Kind::Unauthorized,
        Kind::NotFound,
        Kind::MethodNotAllowed,
        Kind::BodyTimeout,
        Kind::KeyInUse,
        Kind::Gone,
        Kind::PreconditionFailed,
        Kind::BodyTooLarge,
        Kind::UnsupportedMediaType,
        Kind::InvalidFields,
        Kind::KeyReused,
        Kind::TooManyRequests,
        Kind::Internal,
        Kind::Unavailable,
        Kind::BufferFull,
        Kind::StrictNotMet,
        Kind::TooManyConnections,
        Kind::NotReady,
        Kind::TimedOut,
    ];

    /// The problem's `type`, title and status.
    pub fn describe(self) -> (&'static str, &'static str, StatusCode) {
        match self {
            Kind::MalformedRequest => (
                "/problems/malformed-request",
                "Malformed request",
                StatusCode::BAD_REQUEST,
            ),
            Kind::HeadersTooLarge => (
                "/problems/headers-too-large",
                "Headers too large",
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            ),
            Kind::MalformedJson => (
                "/problems/malformed-json",
                "Malformed JSON",
                StatusCode::BAD_REQUEST,
            ),
            Kind::UnreadableBody => (
                "/problems/unreadable-body",
                "Unreadable body",
                StatusCode::BAD_REQUEST,
            ),
            Kind::BadParameter => (
                "/problems/bad-parameter",
                "Bad query parameter",
                StatusCode::BAD_REQUEST,
            ),
            Kind::BadHeader => (
                "/problems/bad-header",
                "Bad header",
                StatusCode::BAD_REQUEST,
            ),
            Kind::Unauthorized => (
                "/problems/unauthorized",
                "Unauthorized",
                StatusCode::UNAUTHORIZED,
            ),
            Kind::NotFound => ("/problems/not-found", "Not found", StatusCode::NOT_FOUND),
            Kind::MethodNotAllowed => (
                "/problems/method-not-allowed",
                "Method not allowed",
                StatusCode::METHOD_NOT_ALLOWED,
            ),
            Kind::BodyTimeout => (
                "/problems/body-timeout",
                "Body not finished in time",
                StatusCode::REQUEST_TIMEOUT,
            ),
            Kind::KeyInUse => (
                "/problems/key-in-use",
                "Idempotency key in use",
                StatusCode::CONFLICT,
            ),
            Kind::Gone => ("/problems/gone", "Deleted", StatusCode::GONE),
            Kind::PreconditionFailed => (
                "/problems/precondition-failed",
                "Precondition failed",
                StatusCode::PRECONDITION_FAILED,
            ),
            Kind::BodyTooLarge => (
                "/problems/body-too-large",
                "Body too large",
                StatusCode::PAYLOAD_TOO_LARGE,
            ),
            Kind::UnsupportedMediaType => (
                "/problems/unsupported-media-type",
                "Unsupported media type",
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ),
            Kind::InvalidFields => (
                "/problems/invalid-fields",
                "Invalid fields",
                StatusCode::UNPROCESSABLE_ENTITY,
            ),
            Kind::KeyReused => (
                "/problems/key-reused",
                "Idempotency key reused",
                StatusCode::UNPROCESSABLE_ENTITY,
            ),
            Kind::TooManyRequests => (
                "/problems/too-many-requests",
                "Too many requests",
                StatusCode::TOO_MANY_REQUESTS,
            ),
            Kind::Internal => (
                "/problems/internal",
                "Internal error",
                StatusCode::INTERNAL_SERVER_ERROR,
            ),
            Kind::Unavailable => (
                "/problems/unavailable",
                "Not available now",
                StatusCode::SERVICE_UNAVAILABLE,
            ),
            Kind::BufferFull => (
                "/problems/buffer-full",
                "Buffer full",
                StatusCode::SERVICE_UNAVAILABLE,
            ),
            Kind::StrictNotMet => (
                "/problems/strict-not-met",
                "Strict handling not possible now",
                StatusCode::SERVICE_UNAVAILABLE,
            ),
            Kind::TooManyConnections => (
                "/problems/too-many-connections",
                "Too many connections",
                StatusCode::SERVICE_UNAVAILABLE,
            ),
            Kind::NotReady => (
                "/problems/not-ready",
                "Not ready",
                StatusCode::SERVICE_UNAVAILABLE,
            ),
            Kind::TimedOut => (
                "/problems/timed-out",
                "Took too long",
                StatusCode::SERVICE_UNAVAILABLE,
            ),
        }
    }

    /// The last part of its `type`, which names its page.
    pub fn name(self) -> &'static str {
        self.describe().0.trim_start_matches(TYPE_PREFIX)
    }

    /// What a repeat has to wait for to do better, where it may.
    pub fn awaited(self) -> Option<Awaited> {
        match self {
            Kind::KeyInUse | Kind::TimedOut | Kind::TooManyConnections => Some(Awaited::Moment),
            Kind::Unavailable | Kind::NotReady | Kind::StrictNotMet => Some(Awaited::Postgres),
            Kind::BufferFull => Some(Awaited::Room),
            _ => None,
        }
    }

    /// Whether the rest of the request can't be told from a next one, so that the connection ends with the answer.
    fn ends_connection(self) -> bool {
        matches!(
            self,
            Kind::BodyTimeout
                | Kind::BodyTooLarge
                | Kind::UnreadableBody
                | Kind::MalformedRequest
                | Kind::HeadersTooLarge
                | Kind::TooManyConnections
        )
    }
}

/// What is wrong with one place of a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The place, as a JSON Pointer (RFC 6901).
    pub pointer: String,
    /// The rule that is broken.
    pub detail: String,
}

impl Fault {
    /// At the place with this pointer, which is escaped already.
    pub fn new(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Fault {
            pointer: pointer.into(),
            detail: detail.into(),
        }
    }
}

/// A failure, ready to be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    kind: Kind,
    detail: String,
    faults: Vec<Fault>,
    headers: Vec<(HeaderName, HeaderValue)>,
    awaited: Option<Awaited>,
    retry_after: Duration,
}

/// A problem as clients see it (RFC 9457).
#[derive(Serialize)]
pub struct ProblemDocument<'a> {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: &'a str,
    request_id: &'a str,
    #[serde(skip_serializing_if = "<[Fault]>::is_empty")]
    errors: &'a [Fault],
}

impl Problem {
    /// A problem of this kind; `detail` is for the client's developer.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Problem {
            kind,
            detail: detail.into(),
            faults: Vec::new(),
            headers: Vec::new(),
            awaited: kind.awaited(),
            retry_after: LEAST_RETRY_AFTER,
        }
    }

    /// A document that breaks these rules: at least one.
    pub fn invalid(mut faults: Vec<Fault>) -> Self {
        let count = faults.len();
        faults.truncate(MAX_FAULTS);
        let detail = match count {
            1 => "one field is not as it has to be".to_owned(),
            2..=MAX_FAULTS => format!("{count} fields are not as they have to be"),
            _ => format!(
                "{count} fields are not as they have to be; these are the first {MAX_FAULTS}"
            ),
        };
        Problem {
            faults,
            ..Problem::new(Kind::InvalidFields, detail)
        }
    }

    /// The query parameter `name` is wrong; `rule` completes the sentence.
    pub fn parameter(name: &str, rule: &str) -> Self {
        Problem::new(
            Kind::BadParameter,
            format!("the query parameter {name} {rule}"),
        )
    }

    /// The header `name` is wrong; `rule` completes the sentence.
    pub fn header(name: &str, rule: &str) -> Self {
        Problem::new(Kind::BadHeader, format!("the header {name} {rule}"))
    }

    /// There is nothing here, or nothing for this user.
    pub fn not_found() -> Self {
        Problem::new(
            Kind::NotFound,
            "there is nothing here under this path for this user",
        )
    }

    /// A defect of ours; what it is stands in the log under the request's id.
    pub fn internal() -> Self {
        Problem::new(
            Kind::Internal,
            "something went wrong here; the request id finds it in the log",
        )
    }

    /// The store is away, and this node doesn't know the answer.
    pub fn unavailable() -> Self {
        Problem::new(
            Kind::Unavailable,
            "the store is away and this node does not know the answer; try again later",
        )
    }

    /// Adds a header to the answer.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// A repeat has to wait for this.
    #[must_use]
    pub fn awaiting(mut self, awaited: Awaited) -> Self {
        self.awaited = Some(awaited);
        self
    }

    /// What a repeat has to wait for; `None` where it would do no better.
    pub fn awaited(&self) -> Option<Awaited> {
        self.awaited
    }

    /// How long that may take: whole seconds. Told only where a repeat may do better.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = wait;
        self
    }

    /// What kind it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What it tells the client.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// What is wrong with the document, where that is the problem.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// What is answered, to be written as JSON.
    pub fn document<'a>(&'a self, request_id: &'a str) -> ProblemDocument<'a> {
        let (r#type, title, status) = self.kind.describe();
        ProblemDocument {
            r#type,
            title,
            status: status.as_u16(),
            detail: &self.detail,
            request_id,
            errors: &self.faults,
        }
    }

    /// The same, written.
    pub fn to_json(&self, request_id: &str) -> Vec<u8> {
        serde_json::to_vec(&self.document(request_id))
            .expect("a document of texts and numbers can be written")
    }

    /// The answer.
    pub fn into_response(self, request_id: &str) -> Response {
        let mut response = Response::new(self.to_json(request_id).into());
        *response.status_mut() = self.kind.describe().2;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        if self.awaited.is_some() {
            headers.insert(RETRY_AFTER, HeaderValue::from(self.retry_after.as_secs()));
        }
        if self.kind.ends_connection() {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        for (name, value) in self.headers {
            headers.insert(name, value);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_kind_has_a_type_of_its_own() {
        let types: HashSet<&str> = Kind::ALL
            .into_iter()
            .map(|kind| kind.describe().0)
            .collect();
        assert_eq!(types.len(), Kind::ALL.len());
        for kind in Kind::ALL {
            let (r#type, title, status) = kind.describe();
            assert!(
                r#type.starts_with("/problems/") && !title.is_empty(),
                "{kind:?}"
            );
            assert!(
                status.is_client_error() || status.is_server_error(),
                "{kind:?}"
            );
        }
    }

    #[test]
    fn every_503_says_when_to_come_back() {
        for kind in Kind::ALL {
            let is_503 = kind.describe().2 == StatusCode::SERVICE_UNAVAILABLE;
            let response = Problem::new(kind, "x").into_response("r-1");
            assert!(
                !is_503 || response.headers().contains_key(RETRY_AFTER),
                "{kind:?}"
            );
        }
    }

    #[test]
    fn the_number_of_faults_told_is_bounded() {
        let faults = (0..500)
            .map(|number| Fault::new(format!("/{number}"), "x"))
            .collect();
        let problem = Problem::invalid(faults);
        assert_eq!(problem.faults().len(), MAX_FAULTS);
        assert!(
            problem.detail().starts_with("500 fields"),
            "{}",
            problem.detail()
        );
    }
}
