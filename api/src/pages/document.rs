//! One document that stays the same while the process runs.

use bytes::Bytes;
use holdfast_shared::domain::ETag;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, REFERRER_POLICY};
use http::{HeaderMap, HeaderValue, StatusCode};
use sha2::{Digest, Sha256};
use warp::reply::Response;

use crate::transport::condition::{self, ReadVerdict};
use crate::transport::problem::Problem;
use crate::transport::response;

/// To be kept, and asked about each time: another version of the process serves other ones under the same paths.
const REVALIDATE: HeaderValue = HeaderValue::from_static("no-cache");

/// A document without anything to load.
const NOTHING_ELSE: &str =
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Bytes of the hash that make a tag: as many as a UUID has.
const TAG_BYTES: usize = 16;

/// A document and what its answers say of it.
pub struct Document {
    media_type: HeaderValue,
    policy: HeaderValue,
    etag: ETag,
    body: Bytes,
}

impl Document {
    /// A document that loads nothing.
    pub fn new(media_type: &'static str, body: Bytes) -> Self {
        Document {
            media_type: HeaderValue::from_static(media_type),
            policy: HeaderValue::from_static(NOTHING_ELSE),
            etag: tag_of(&body),
            body,
        }
    }

    /// The document with sources of its own: what `default-src 'none'` doesn't let it do.
    #[must_use]
    pub fn allowing(mut self, sources: &str) -> Self {
        let policy = format!("{NOTHING_ELSE}; {sources}");
        self.policy = HeaderValue::try_from(policy).expect("policies are ASCII");
        self
    }

    /// The answer to a request with these headers.
    ///
    /// # Errors
    /// 400 when its conditions are malformed, 412 when there is an `If-Match` that doesn't hold.
    pub fn answer(&self, headers: &HeaderMap) -> Result<Response, Problem> {
        let mut answer = match condition::judge_read(headers, &self.etag)? {
            ReadVerdict::NotModified => response::empty(StatusCode::NOT_MODIFIED),
            ReadVerdict::Whole => self.whole(),
        };
        let answered = answer.headers_mut();
        answered.insert(CACHE_CONTROL, REVALIDATE);
        answered.insert(CONTENT_SECURITY_POLICY, self.policy.clone());
        answered.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        answered.insert(ETAG, self.weak_tag());
        Ok(answer)
    }

    /// Weak, since the same document may go out compressed or not.
    fn weak_tag(&self) -> HeaderValue {
        let tag = format!("W/\"{}\"", self.etag.as_str());
        HeaderValue::try_from(tag).expect("tags made here are hexadecimal")
    }

    fn whole(&self) -> Response {
        let mut whole = Response::new(self.body.clone().into());
        whole
            .headers_mut()
            .insert(CONTENT_TYPE, self.media_type.clone());
        whole
    }
}

fn tag_of(body: &[u8]) -> ETag {
    let hash = Sha256::digest(body);
    let hex: String = hash[..TAG_BYTES]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    ETag::from_client(&hex)
}

#[cfg(test)]
mod tests {
    use http::header::IF_NONE_MATCH;

    use super::*;

    #[test]
    fn a_document_is_kept_by_its_tag() {
        let document = Document::new("text/html", Bytes::from_static(b"<p>hello"));
        let first = document.answer(&HeaderMap::new()).expect("answered");
        assert_eq!(first.status(), StatusCode::OK);
        let mut again = HeaderMap::new();
        again.insert(IF_NONE_MATCH, first.headers()[ETAG].clone());
        let second = document.answer(&again).expect("answered");
        assert_eq!(second.status(), StatusCode::NOT_MODIFIED);
        assert_eq!(second.headers()[ETAG], first.headers()[ETAG]);
        let other = Document::new("text/html", Bytes::from_static(b"<p>hullo"));
        assert_eq!(
            other.answer(&again).expect("answered").status(),
            StatusCode::OK
        );
    }

    #[test]
    fn a_policy_allows_what_it_is_told_and_nothing_else() {
        let document = Document::new("text/html", Bytes::new()).allowing("img-src 'self'");
        let answer = document.answer(&HeaderMap::new()).expect("answered");
        let policy = answer.headers()[CONTENT_SECURITY_POLICY]
            .to_str()
            .expect("ASCII");
        assert!(policy.starts_with("default-src 'none';") && policy.ends_with("; img-src 'self'"));
    }
}
