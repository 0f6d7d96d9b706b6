//! What can't even be parsed is refused in the contract's form too.
//!
//! hyper answers such a request by itself, with a head and no body, before any service is asked, and has no hook for
//! that (1.x: `Server::on_error`). But all it writes goes through the connection's stream, where its own answers can be
//! told from ours by their lack of an `X-Request-Id`. So there the head gets what is missing, and the body follows.

use bytes::Bytes;
use uuid::Uuid;

use crate::transport::header::X_REQUEST_ID;
use crate::transport::problem::{Kind, MEDIA_TYPE, Problem};

/// Where every head ends.
const HEAD_END: &[u8] = b"\r\n\r\n";

/// What hyper says of the body it doesn't send.
const NO_BODY: &str = "content-length: 0\r\n";

/// What is to be sent instead of `written`; `None` unless that is an answer of hyper's own, whole and alone.
pub fn instead_of(written: &[u8]) -> Option<Bytes> {
    // First what tells nearly everything else apart: this is asked of every write.
    let kind = match written.get(..13)? {
        b"HTTP/1.1 400 " | b"HTTP/1.0 400 " => Kind::MalformedRequest,
        b"HTTP/1.1 431 " | b"HTTP/1.0 431 " => Kind::HeadersTooLarge,
        _ => return None,
    };
    let head = std::str::from_utf8(written.strip_suffix(HEAD_END)?).ok()?;
    if head.contains(X_REQUEST_ID.as_str()) || !head.contains(NO_BODY) {
        return None;
    }
    Some(refusal(kind, &head.replacen(NO_BODY, "", 1)))
}

fn refusal(kind: Kind, head: &str) -> Bytes {
    let detail = match kind {
        Kind::HeadersTooLarge => "a request has at most 100 headers, and 32 KiB of them",
        _ => "this is no HTTP/1.1 request: its line, a header or its length is malformed",
    };
    let id = Uuid::new_v4().to_string();
    let body = Problem::new(kind, detail).to_json(&id);
    tracing::debug!(request_id = id, ?kind, "refused what could not be parsed");
    let mut answer = format!(
        "{head}\r\ncontent-type: {MEDIA_TYPE}\r\ncontent-length: {}\r\ncache-control: no-store\r\n\
         vary: accept-encoding\r\nx-content-type-options: nosniff\r\nx-request-id: {id}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    answer.extend(body);
    answer.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str =
        "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\ndate: now\r\n\r\n";

    #[test]
    fn an_answer_of_hypers_own_gets_a_body() {
        let sent = instead_of(OWN.as_bytes()).expect("replaced");
        let text = std::str::from_utf8(&sent).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\nconnection: close\r\ndate: now\r\n"));
        assert!(head.contains(&format!("\r\ncontent-length: {}\r\n", body.len())));
        assert_eq!(head.matches("content-length").count(), 1);
        let document: serde_json::Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(document["status"], 400);
        let id = document["request_id"].as_str().expect("an id");
        assert!(head.contains(&format!("x-request-id: {id}")), "{head}");
    }

    #[test]
    fn nothing_else_is_touched() {
        let ours = OWN.replace("date: now", "x-request-id: a");
        let with_more = format!("{OWN}more");
        for other in [
            "",
            "HTTP/1.1 400",
            &ours,
            &with_more,
            &OWN.replace("400", "200"),
            &OWN.replace("length: 0", "length: 7"),
            "{\"title\":\"HTTP/1.1 400 Bad Request\"}",
        ] {
            assert_eq!(instead_of(other.as_bytes()), None, "{other}");
        }
    }
}
