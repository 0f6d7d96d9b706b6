//! Headers with a meaning of Holdfast's own: reading them checked, in one place for all routes.

use holdfast_shared::domain::{IdempotencyKey, Priority};
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::problem::{Kind, Problem};

/// `Idempotency-Key`: the client's name for a write, so that a repeat is recognised.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// `Idempotency-Replayed`: `true` on the answer to a repeat.
pub const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// `Sync-Priority`: a write's place in the queue, should it be buffered.
pub const SYNC_PRIORITY: HeaderName = HeaderName::from_static("sync-priority");
/// `Sync-State`: where what is answered comes from.
pub const SYNC_STATE: HeaderName = HeaderName::from_static("sync-state");
/// `Operation-Location`: where to ask what became of a buffered write.
pub const OPERATION_LOCATION: HeaderName = HeaderName::from_static("operation-location");
/// `Prefer` (RFC 7240): how a request would like to be handled.
pub const PREFER: HeaderName = HeaderName::from_static("prefer");
/// `Preference-Applied` (RFC 7240): which of that was heeded.
pub const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
/// `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-10): how much a user may send.
pub const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// `RateLimit` (the same draft): how much of that is left.
pub const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// `X-Request-Id`: the request's name in logs and problems.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// `traceparent` (W3C Trace Context): the trace the request belongs to.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// `Accept-Patch` (RFC 5789 §3.1): what `PATCH` takes.
pub const ACCEPT_PATCH: HeaderName = HeaderName::from_static("accept-patch");

/// Longest `X-Request-Id` that is taken from a client, in characters.
pub const MAX_REQUEST_ID: usize = 128;

/// What bodies a route takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyForm {
    /// A JSON document.
    Json,
    /// A JSON Merge Patch (RFC 7396), also under the type of plain JSON.
    MergePatch,
}

impl BodyForm {
    /// The media types it may be sent under, the preferred one first.
    pub fn media_types(self) -> &'static [&'static str] {
        match self {
            BodyForm::Json => &["application/json"],
            BodyForm::MergePatch => &["application/merge-patch+json", "application/json"],
        }
    }
}

/// The one value of a header; `None` where there is none.
///
/// # Errors
/// 400 when it is there more than once, or isn't UTF-8.
pub fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Problem> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(Problem::header(name.as_str(), "must be given once"));
    }
    match std::str::from_utf8(value.as_bytes()) {
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(Problem::header(name.as_str(), "must be UTF-8")),
    }
}

/// Reads `Idempotency-Key`.
///
/// # Errors
/// 400 when it isn't of 1 to 255 characters.
pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<IdempotencyKey>, Problem> {
    let Some(text) = single(headers, &IDEMPOTENCY_KEY)? else {
        return Ok(None);
    };
    let key = IdempotencyKey::parse(text);
    key.map(Some)
        .map_err(|violation| Problem::header(IDEMPOTENCY_KEY.as_str(), &violation.to_string()))
}

/// Reads `Sync-Priority`.
///
/// # Errors
/// 400 when it isn't 1 to 5.
pub fn sync_priority(headers: &HeaderMap) -> Result<Option<Priority>, Problem> {
    let Some(text) = single(headers, &SYNC_PRIORITY)? else {
        return Ok(None);
    };
    let priority = text
        .parse()
        .ok()
        .and_then(|number| Priority::parse(number).ok());
    match priority {
        Some(priority) => Ok(Some(priority)),
        None => Err(Problem::header(
            SYNC_PRIORITY.as_str(),
            "must be a whole number from 1 to 5",
        )),
    }
}

/// Accepts a body of this form by its `Content-Type` and `Content-Encoding`.
///
/// # Errors
/// 415, saying what is taken.
pub fn require_form(headers: &HeaderMap, form: BodyForm) -> Result<(), Problem> {
    let is_plain = headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .all(|value| value.as_bytes().eq_ignore_ascii_case(b"identity"));
    let content_type = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let is_taken = content_type.is_some_and(|text| is_taken_type(text, form.media_types()));
    if is_plain && is_taken {
        return Ok(());
    }
    let detail = format!(
        "the body must be sent as {}, in UTF-8 and not compressed",
        form.media_types().join(" or ")
    );
    let problem = Problem::new(Kind::UnsupportedMediaType, detail);
    Err(match form {
        BodyForm::Json => problem,
        BodyForm::MergePatch => problem.with_header(ACCEPT_PATCH, accepted_patches()),
    })
}

/// The value of [`ACCEPT_PATCH`] where `PATCH` is taken.
pub fn accepted_patches() -> HeaderValue {
    let taken = BodyForm::MergePatch.media_types().join(", ");
    HeaderValue::try_from(taken).expect("media types are ASCII")
}

fn is_taken_type(content_type: &str, taken: &[&str]) -> bool {
    let mut parts = content_type.split(';').map(str::trim);
    let essence = parts.next().unwrap_or_default();
    let is_utf8 = parts.all(|parameter| match parameter.split_once('=') {
        Some((name, value)) if name.trim().eq_ignore_ascii_case("charset") => {
            value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
        }
        _ => true,
    });
    is_utf8
        && taken
            .iter()
            .any(|taken| taken.eq_ignore_ascii_case(essence))
}

/// The client's `X-Request-Id`, if it is one that can be passed on: up to 128 printable ASCII characters.
pub fn request_id(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(X_REQUEST_ID)?.to_str().ok()?;
    let is_printable = text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    (is_printable && (1..=MAX_REQUEST_ID).contains(&text.len())).then_some(text)
}

/// The trace id of a valid `traceparent`: 32 lower-case hexadecimal digits, not all zero.
pub fn trace_id(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(TRACEPARENT)?.to_str().ok()?;
    let mut parts = text.split('-');
    let (version, trace, parent, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let known_version = version == "00" && parts.next().is_none();
    let later_version = is_hex(version, 2) && version != "00" && version != "ff";
    let is_valid = (known_version || later_version)
        && is_hex(trace, 32)
        && is_hex(parent, 16)
        && is_hex(flags, 2)
        && trace.bytes().any(|byte| byte != b'0')
        && parent.bytes().any(|byte| byte != b'0');
    is_valid.then_some(trace)
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(
                *name,
                HeaderValue::from_bytes(value.as_bytes()).expect("a valid value"),
            );
        }
        headers
    }

    #[test]
    fn media_types_are_compared_without_case_and_with_their_charset() {
        let taken = |text, form| require_form(&headers(&[(&CONTENT_TYPE, text)]), form).is_ok();
        for good in [
            "application/json",
            "Application/JSON; charset=UTF-8",
            "application/json;charset=\"utf-8\";v=1",
        ] {
            assert!(taken(good, BodyForm::Json), "{good}");
        }
        for bad in [
            "text/plain",
            "application/json; charset=latin1",
            "application/jsonx",
            "",
            "application/merge-patch+json",
        ] {
            assert!(!taken(bad, BodyForm::Json), "{bad}");
        }
        assert!(taken("application/merge-patch+json", BodyForm::MergePatch));
        assert!(taken("application/json", BodyForm::MergePatch));
        assert!(require_form(&HeaderMap::new(), BodyForm::Json).is_err());
    }

    #[test]
    fn a_compressed_body_is_415() {
        let compressed = headers(&[
            (&CONTENT_TYPE, "application/json"),
            (&CONTENT_ENCODING, "gzip"),
        ]);
        let problem = require_form(&compressed, BodyForm::Json).expect_err("compressed");
        assert_eq!(problem.kind(), Kind::UnsupportedMediaType);
    }

    #[test]
    fn a_priority_is_one_to_five() {
        let priority = |text| sync_priority(&headers(&[(&SYNC_PRIORITY, text)]));
        assert_eq!(priority("1").expect("valid").map(Priority::number), Some(1));
        for bad in ["0", "6", "-1", "1.0", "", "high"] {
            assert_eq!(
                priority(bad).expect_err("refused").kind(),
                Kind::BadHeader,
                "{bad}"
            );
        }
        assert!(sync_priority(&headers(&[(&SYNC_PRIORITY, "1"), (&SYNC_PRIORITY, "2")])).is_err());
    }

    #[test]
    fn an_idempotency_key_has_1_to_255_characters() {
        let key = |text: &str| idempotency_key(&headers(&[(&IDEMPOTENCY_KEY, text)]));
        assert!(key(&"k".repeat(255)).expect("valid").is_some());
        assert!(key("schlüssel").expect("valid").is_some());
        assert!(key("").is_err() && key(&"k".repeat(256)).is_err());
        assert_eq!(idempotency_key(&HeaderMap::new()).expect("none"), None);
    }

    #[test]
    fn a_request_id_is_echoed_only_when_it_is_short_and_printable() {
        let id = |text: &str| request_id(&headers(&[(&X_REQUEST_ID, text)])).map(str::to_owned);
        assert_eq!(id("abc-1 2").as_deref(), Some("abc-1 2"));
        assert_eq!(id(&"x".repeat(128)), Some("x".repeat(128)));
        for bad in ["", "ü", "a\tb", &"x".repeat(129)] {
            assert_eq!(id(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn only_a_valid_traceparent_has_a_trace_id() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let id = |text: &str| trace_id(&headers(&[(&TRACEPARENT, text)])).map(str::to_owned);
        assert_eq!(
            id(&format!("00-{trace}-00f067aa0ba902b7-01")).as_deref(),
            Some(trace)
        );
        assert_eq!(
            id(&format!("01-{trace}-00f067aa0ba902b7-01-more")).as_deref(),
            Some(trace)
        );
        for bad in [
            format!("ff-{trace}-00f067aa0ba902b7-01"),
            format!("00-{trace}-00f067aa0ba902b7-01-more"),
            format!("00-{trace}-0000000000000000-01"),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-{}-00f067aa0ba902b7-01", trace.to_uppercase()),
            "00".to_owned(),
        ] {
            assert_eq!(id(&bad), None, "{bad}");
        }
    }
}
