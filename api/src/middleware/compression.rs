//! Compressing answers for clients that say they can read them so.
//!
//! An entity tag names a state of the resource, not the bytes of one answer, so it is the same however these are
//! encoded: what a client was sent compressed, it can name in `If-Match`. HTTP asks for another strong tag only to
//! keep stored parts of one encoding from being put together with those of another (RFC 9110 §8.8.3.3), and here
//! nothing is stored (`no-store`) and no ranges are served.

use http::header::{ACCEPT_ENCODING, VARY};
use http::{HeaderValue, Response, StatusCode};
use tower_http::compression::predicate::{And, NotForContentType, Predicate, SizeAbove};
use tower_http::compression::{CompressionLayer, CompressionLevel};

/// Least bytes of a body that is compressed: a smaller one fits into one packet either way.
const LEAST_BYTES: u64 = 1024;

/// The status an answer had before it was encoded.
#[derive(Clone, Copy)]
struct StatusBefore(StatusCode);

/// What compresses, fast rather than well: by zstd or gzip, whichever the client prefers. (A list of tasks shrinks to
/// a fifth at either's fastest level; more would cost a multiple of the time that made the list.)
pub fn layer() -> CompressionLayer<And<SizeAbove, NotForContentType>> {
    let predicate = SizeAbove::new(LEAST_BYTES).and(NotForContentType::IMAGES);
    CompressionLayer::new()
        .quality(CompressionLevel::Fastest)
        .compress_when(predicate)
}

/// Readies an answer to be encoded. Also the small ones vary: a cache can't know what was small.
pub fn prepare<B>(answer: &mut Response<B>) {
    let before = StatusBefore(answer.status());
    answer.extensions_mut().insert(before);
    answer
        .headers_mut()
        .append(VARY, HeaderValue::from(ACCEPT_ENCODING));
}

/// Undoes the layer's 406 to a client that takes no encoding at all, not even the plain one. By then the request has
/// been carried out, and a write that took effect must not look as if it hadn't; that client's header is disregarded
/// instead (RFC 9110 §12.1), and the answer is sent plain.
pub fn finish<B>(answer: &mut Response<B>) {
    if let Some(StatusBefore(status)) = answer.extensions_mut().remove() {
        *answer.status_mut() = status;
    }
}
