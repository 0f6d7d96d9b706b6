//! What each kind of problem means and what to do about it: the texts of its page and of the API's description.

use super::problem::{Fault, Kind, Problem};

/// What people are told of a kind of problem. Markdown's backquotes mark code; there is no other markup.
#[derive(Debug, Clone, Copy)]
pub struct Advice {
    /// What has happened.
    pub meaning: &'static str,
    /// What a client's developer does about it.
    pub client: &'static str,
    /// What an operator does about it.
    pub operator: &'static str,
}

const fn advice(meaning: &'static str, client: &'static str, operator: &'static str) -> Advice {
    Advice {
        meaning,
        client,
        operator,
    }
}

/// For what only the client can set right.
const NOTHING_TO_OPERATE: &str =
    "Nothing: the node is well. `X-Request-Id` finds the request in the log at the level `debug`.";

impl Kind {
    /// What it means and what to do about it.
    pub fn advice(self) -> Advice {
        match self {
            Kind::MalformedRequest => advice(
                "What came is no HTTP/1.1 request: its line, a header, its length or its coding is malformed, or it \
                 does not name one host. The connection was closed.",
                "Use an HTTP library rather than a socket. If you do, something on the way changes the request.",
                "Look at proxies in front of the node. A client that speaks TLS to this port is told this too, and one \
                 that speaks HTTP/2 nothing: have the proxy speak plain HTTP/1.1 to it.",
            ),
            Kind::HeadersTooLarge => advice(
                "The request has more than 100 headers, or more than 32 KiB of them. The connection was closed.",
                "Send fewer or shorter headers: a token with very many claims, or cookies, are the usual cause.",
                NOTHING_TO_OPERATE,
            ),
            Kind::MalformedJson => advice(
                "The body is not JSON, or it is empty.",
                "Send one JSON document in UTF-8. `detail` says near which line and column reading stopped.",
                NOTHING_TO_OPERATE,
            ),
            Kind::UnreadableBody => advice(
                "The body broke off before its announced end, or its chunks were malformed.",
                "Send the request again. If it happens again, something on the way cuts it.",
                "Look at proxies in front of the node: they may close connections while a body is under way.",
            ),
            Kind::BadParameter => advice(
                "A query parameter is unknown, repeated, or has a value that is not taken; `detail` names it.",
                "Correct that parameter. A `cursor` is taken only from `next_cursor` of the same list in the same order.",
                NOTHING_TO_OPERATE,
            ),
            Kind::BadHeader => advice(
                "A header is repeated, or has a value that is not taken; `detail` names it.",
                "Correct that header.",
                NOTHING_TO_OPERATE,
            ),
            Kind::Unauthorized => advice(
                "There is no token, or one that does not let its bearer in: it is malformed, expired, signed by somebody \
                 else, or its session was revoked. `WWW-Authenticate` says which.",
                "Get a new token and send it as `Authorization: Bearer TOKEN`. Repeating with the same token does not help.",
                "If every token is refused, compare `JWT_SECRET`, `JWT_PUBLIC_KEY_FILE` or `JWT_JWKS_FILE`, `JWT_ISSUER`, \
                 `JWT_AUDIENCE` and the node's clock with those of the issuer.",
            ),
            Kind::NotFound => advice(
                "There is nothing under this path, or nothing for this user: what belongs to others can't be told from \
                 what isn't there.",
                "Check the id. What was just written is found at once through the same node; a write that was answered \
                 `202` may have ended `dead`: its operation tells.",
                NOTHING_TO_OPERATE,
            ),
            Kind::MethodNotAllowed => advice(
                "The path exists, but not with this method.",
                "Use one of the methods in the header `Allow`.",
                NOTHING_TO_OPERATE,
            ),
            Kind::BodyTimeout => advice(
                "The body was not finished in 30 seconds. Nothing was changed, and the connection was closed.",
                "Send the request again, on a better connection.",
                "Nothing, unless many clients meet it: then look at the network and at proxies in front of the node.",
            ),
            Kind::KeyInUse => advice(
                "The first request with this `Idempotency-Key` is still under way.",
                "Wait as long as `Retry-After` says and repeat the request: it then gets the first one's answer.",
                "Nothing, unless it lasts: then requests hang; look at the latency of PostgreSQL in `/health`.",
            ),
            Kind::Gone => advice(
                "What had this id was deleted. Deletes are final, and ids are never used again.",
                "Create it under a new id, or with a new `Idempotency-Key`.",
                NOTHING_TO_OPERATE,
            ),
            Kind::PreconditionFailed => advice(
                "The resource is not in the state that `If-Match` or `If-None-Match` asks for: it has changed meanwhile, \
                 is not there, or is there already. Nothing was changed.",
                "Read it again, merge your change into what you find, and repeat with the new `ETag`.",
                NOTHING_TO_OPERATE,
            ),
            Kind::BodyTooLarge => advice(
                "The body is larger than 65536 bytes, by its announced length or as it came. The connection was closed.",
                "Send less: the largest valid task takes about 45 KiB in UTF-8, though more with its letters written as `\\u…`.",
                NOTHING_TO_OPERATE,
            ),
            Kind::UnsupportedMediaType => advice(
                "The body was sent as something else than this route takes, in another charset than UTF-8, or compressed.",
                "Set `Content-Type` to what `detail` names (`application/json`; for `PATCH` also \
                 `application/merge-patch+json`), and send no `Content-Encoding`.",
                NOTHING_TO_OPERATE,
            ),
            Kind::InvalidFields => advice(
                "Fields of the body break the contract. `errors` lists every fault, each with a JSON Pointer to its place.",
                "Show each `detail` at the field its `pointer` names, and send the corrected document. Unknown fields and \
                 those the server sets are refused too.",
                NOTHING_TO_OPERATE,
            ),
            Kind::KeyReused => advice(
                "This `Idempotency-Key` was used for another request, that is with another method, path or body.",
                "Use a new key for each new write, and the same one only to repeat a write unchanged.",
                NOTHING_TO_OPERATE,
            ),
            Kind::TooManyRequests => advice(
                "This user has sent more requests of late than the node takes from one user in a minute.",
                "Wait as long as `Retry-After` says. Requests are then taken again, evenly over the minute.",
                "`RATE_LIMIT_PER_MINUTE` sets the limit; 0 is none. It counts per node.",
            ),
            Kind::Internal => advice(
                "The node met a defect of its own.",
                "Repeat the request later, a write with the same `Idempotency-Key`; if it stays, report the `request_id`.",
                "The log has what happened under this `request_id`, at the level `error`. Please report it.",
            ),
            Kind::Unavailable => advice(
                "A store is away, and this node does not know the answer by itself, or can't take the write either.",
                "Wait as long as `Retry-After` says and repeat. Writes with an `Idempotency-Key`, and all `PUT` and \
                 `DELETE`, can be repeated without harm.",
                "`/health` and `syncd status` say which store is away and why. Service resumes by itself when it is back.",
            ),
            Kind::BufferFull => advice(
                "A store is away, and the buffer that takes writes meanwhile is full, or its disk is. Nothing of this \
                 write was kept; all that was accepted before is.",
                "Wait as long as `Retry-After` says and repeat.",
                "Bring the store back: `/health` says why it is away. If its disk is full, make room: writes are taken \
                 again without a restart. `BUFFER_MAX_SIZE` sets how many writes may wait.",
            ),
            Kind::StrictNotMet => advice(
                "The write could only have been accepted into the buffer, and `Prefer: handling=strict` asked for it to be \
                 refused then. `detail` says whether this request wrote nothing or its outcome is unknown.",
                "Wait as long as `Retry-After` says and repeat, or leave `Prefer` out: the write is then kept safely and \
                 answered `202`. After an unknown outcome a repeat with the same `Idempotency-Key`, once the \
                 store answers, tells what has happened; until then the first request may still take effect.",
                "`/health` says which store is away, or how much still waits in the buffer.",
            ),
            Kind::TooManyConnections => advice(
                "This node has as many connections as it takes. The request was not looked at, and the connection was \
                 closed.",
                "Wait as long as `Retry-After` says and repeat. Use few connections, and use them again.",
                "Raise `MAX_CONNECTIONS` and the limit of open files (`LimitNOFILE`) if the clients are real; probes are \
                 answered all the same.",
            ),
            Kind::NotReady => advice(
                "PostgreSQL is away and the buffer can't be used, so this node can serve nothing.",
                "Use another node, or wait as long as `Retry-After` says.",
                "See why in `/health` and in the log: the buffer's directory may be gone, read-only, or on a failing disk; \
                 `syncd verify` checks the file.",
            ),
            Kind::TimedOut => advice(
                "No answer was found in 75 seconds. A write may still take effect.",
                "Read what you were about to change, or repeat the write with the same `Idempotency-Key`.",
                "It should not happen. Look for disks or stores that hang, and report it with the log lines of this \
                 request.",
            ),
        }
    }

    /// A problem of this kind as it may be met.
    pub fn example(self) -> Problem {
        let detail = match self {
            Kind::MalformedRequest => {
                "this is no HTTP/1.1 request: its line, a header or its length is malformed"
            }
            Kind::HeadersTooLarge => "a request has at most 100 headers, and 32 KiB of them",
            Kind::MalformedJson => "the body is not valid JSON near line 1, column 12",
            Kind::UnreadableBody => "the body broke off before its end",
            Kind::BadParameter => {
                return Problem::parameter("limit", "must be a whole number from 1 to 200");
            }
            Kind::BadHeader => {
                return Problem::header("sync-priority", "must be a whole number from 1 to 5");
            }
            Kind::Unauthorized => "the token has expired",
            Kind::NotFound => return Problem::not_found(),
            Kind::MethodNotAllowed => "this path takes GET, HEAD, POST",
            Kind::BodyTimeout => "the body was not finished in 30 seconds",
            Kind::KeyInUse => "the first request with this Idempotency-Key is still under way",
            Kind::Gone => "this was deleted; use a new id for a new one",
            Kind::PreconditionFailed => {
                "it has changed meanwhile, or is not in the state the request asks for"
            }
            Kind::BodyTooLarge => "the body is larger than 65536 bytes",
            Kind::UnsupportedMediaType => {
                "the body must be sent as application/json, in UTF-8 and not compressed"
            }
            Kind::InvalidFields => {
                return Problem::invalid(vec![
                    Fault::new("/title", "must not be empty"),
                    Fault::new("/tags/1", "must have at most 50 characters, has 73"),
                ]);
            }
            Kind::KeyReused => "this Idempotency-Key was used for another request; use a new one",
            Kind::TooManyRequests => "more than 600 requests in a minute; try again in 3 s",
            Kind::Internal => return Problem::internal(),
            Kind::Unavailable => return Problem::unavailable(),
            Kind::BufferFull => "the store is away and the buffer takes no more; try again later",
            Kind::StrictNotMet => {
                "the store is away, and strict handling was asked for: this request wrote nothing"
            }
            Kind::TooManyConnections => {
                "this node has as many connections as it takes; try again later"
            }
            Kind::NotReady => "PostgreSQL is away and the buffer can't be used",
            Kind::TimedOut => "no answer was found in time; a write may still take effect",
        };
        Problem::new(self, detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_says_what_to_do_about_it_in_whole_sentences() {
        for kind in Kind::ALL {
            let Advice {
                meaning,
                client,
                operator,
            } = kind.advice();
            for text in [meaning, client, operator] {
                assert!(
                    text.ends_with('.') && !text.contains("  "),
                    "{kind:?}: {text}"
                );
                assert_eq!(text.matches('`').count() % 2, 0, "{kind:?}: {text}");
            }
        }
    }

    #[test]
    fn each_kind_has_an_example_of_its_own_kind() {
        for kind in Kind::ALL {
            let example = kind.example();
            assert_eq!(example.kind(), kind);
            assert!(!example.detail().is_empty(), "{kind:?}");
            assert_eq!(
                example.faults().is_empty(),
                kind != Kind::InvalidFields,
                "{kind:?}"
            );
        }
    }
}
