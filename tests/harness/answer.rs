//! An HTTP answer, and what every answer of Holdfast's must look like.

use std::time::Duration;

use reqwest::header::HeaderMap;
use serde_json::Value;

/// Words that would show a driver, a language or a stack through an error.
const LEAKS: [&str; 9] = [
    "sqlx",
    "redb",
    "panicked",
    "postgres://",
    "redis://",
    "os error",
    "src/",
    "SQLSTATE",
    "<html",
];

/// One answer with its body read.
#[derive(Debug, Clone)]
pub struct Answer {
    status: u16,
    headers: HeaderMap,
    body: String,
    json: Value,
    elapsed: Duration,
}

impl Answer {
    pub(crate) fn new(status: u16, headers: HeaderMap, body: String, elapsed: Duration) -> Self {
        let json = serde_json::from_str(&body).unwrap_or(Value::Null);
        Self {
            status,
            headers,
            body,
            json,
            elapsed,
        }
    }

    /// The status code.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Whether the status is 2xx.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// A header's value; `None` where it is missing or not text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The values of all headers of this name, separated by commas.
    pub fn header_list(&self, name: &str) -> String {
        let values = self.headers.get_all(name).iter();
        let texts: Vec<&str> = values.filter_map(|value| value.to_str().ok()).collect();
        texts.join(", ")
    }

    /// The body as JSON; null where it is empty or something else.
    pub fn json(&self) -> &Value {
        &self.json
    }

    /// The body as it came.
    pub fn text(&self) -> &str {
        &self.body
    }

    /// From the request's start until the body was read.
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// The body's `id`.
    ///
    /// # Panics
    /// When it has none.
    #[track_caller]
    pub fn id(&self) -> &str {
        let id = self.json["id"].as_str();
        id.unwrap_or_else(|| panic!("no id in the {} answer: {}", self.status, self.body))
    }

    /// Asserts the status.
    ///
    /// # Panics
    /// When it is another; shows the answer.
    #[track_caller]
    pub fn expect(&self, status: u16) -> &Self {
        self.expect_in(&[status])
    }

    /// Asserts that the status is one of `statuses`.
    ///
    /// # Panics
    /// When it isn't; shows the answer.
    #[track_caller]
    pub fn expect_in(&self, statuses: &[u16]) -> &Self {
        assert!(
            statuses.contains(&self.status),
            "status {} instead of {statuses:?}: {}",
            self.status,
            self.body
        );
        self
    }

    /// Asserts that a header is there; gives its value.
    ///
    /// # Panics
    /// When it isn't.
    #[track_caller]
    pub fn expect_header(&self, name: &str) -> &str {
        let value = self.header(name);
        value.unwrap_or_else(|| panic!("no {name} header; there are {:?}", self.headers))
    }

    /// Asserts a problem document (RFC 9457) with this status: its content
    /// type, its members, that `request_id` is the one in the header, and that
    /// nothing of the inside shows through.
    ///
    /// # Panics
    /// When any of this isn't so; shows the answer.
    #[track_caller]
    pub fn expect_problem(&self, status: u16) -> &Self {
        self.expect(status);
        let content_type = self.expect_header("content-type");
        assert!(
            content_type.starts_with("application/problem+json"),
            "content type {content_type}: {}",
            self.body
        );
        let member = |name: &str| self.json[name].as_str().unwrap_or_default();
        assert!(
            member("type").starts_with("/problems/"),
            "type: {}",
            self.body
        );
        assert!(!member("title").is_empty(), "title: {}", self.body);
        assert_eq!(self.json["status"], status, "status: {}", self.body);
        let request_id = self.expect_header("x-request-id");
        assert_eq!(
            member("request_id"),
            request_id,
            "request_id: {}",
            self.body
        );
        for leak in LEAKS {
            assert!(
                !self.body.contains(leak),
                "the problem leaks {leak:?}: {}",
                self.body
            );
        }
        self
    }

    /// Asserts a 422 problem whose `errors` point at exactly these fields.
    ///
    /// # Panics
    /// When it is anything else; shows the answer.
    #[track_caller]
    pub fn expect_invalid(&self, pointers: &[&str]) -> &Self {
        self.expect_problem(422);
        let errors = self.json["errors"].as_array().cloned().unwrap_or_default();
        let mut found: Vec<&str> = errors
            .iter()
            .filter_map(|error| error["pointer"].as_str())
            .collect();
        found.sort_unstable();
        found.dedup();
        let mut wanted = pointers.to_vec();
        wanted.sort_unstable();
        assert_eq!(found, wanted, "pointers in {}", self.body);
        for error in &errors {
            let detail = error["detail"].as_str().unwrap_or_default();
            assert!(
                !detail.is_empty(),
                "an error without a detail: {}",
                self.body
            );
        }
        self
    }
}
