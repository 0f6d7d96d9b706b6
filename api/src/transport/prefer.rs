//! `Prefer` (RFC 7240): a client's wishes. One is heeded here, `handling=strict`: refuse a write rather than accept
//! it into the buffer. Others, and malformed ones, are ignored, as that RFC asks.

use holdfast_shared::repository::Handling;
use http::{HeaderMap, HeaderValue};

use super::header::{PREFER, PREFERENCE_APPLIED};
use super::problem::Problem;
use warp::reply::Response;

/// What `Preference-Applied` says where the wish was heeded.
const STRICT: HeaderValue = HeaderValue::from_static("handling=strict");

/// How a write is to be handled.
pub fn handling(headers: &HeaderMap) -> Handling {
    let values = headers.get_all(PREFER).iter();
    let texts = values.filter_map(|value| value.to_str().ok());
    let mut preferences = texts.flat_map(|text| outside_quotes(text, ','));
    // Of a preference that is given twice the first counts (§2).
    match preferences.find_map(handling_word) {
        Some(word) if word.eq_ignore_ascii_case("strict") => Handling::Strict,
        _ => Handling::Lenient,
    }
}

/// Says in an answer that the write was handled strictly.
pub fn note_strict(answer: &mut Response) {
    answer.headers_mut().insert(PREFERENCE_APPLIED, STRICT);
}

/// The same in a problem.
pub fn noted_strict(problem: Problem) -> Problem {
    problem.with_header(PREFERENCE_APPLIED, STRICT)
}

/// The word of the preference `handling`; `None` of any other.
fn handling_word(preference: &str) -> Option<&str> {
    let (name, value) = outside_quotes(preference, ';').next()?.split_once('=')?;
    name.trim()
        .eq_ignore_ascii_case("handling")
        .then(|| value.trim().trim_matches('"'))
}

/// Splits a text, but not within quotes.
fn outside_quotes(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    text.split(move |character| {
        if !std::mem::take(&mut is_escaped) {
            is_quoted ^= character == '"';
            is_escaped = is_quoted && character == '\\';
        }
        character == separator && !is_quoted
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handled(values: &[&str]) -> Handling {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(PREFER, HeaderValue::from_str(value).expect("a valid value"));
        }
        handling(&headers)
    }

    #[test]
    fn only_a_wish_for_strict_handling_is_strict() {
        for strict in [
            &["handling=strict"][..],
            &["Handling = \"STRICT\" ; because=\"a, b\""],
            &["respond-async, wait=10, handling=strict;x"],
            &["respond-async", "handling=strict"],
            &["foo=\"a, handling=lenient, b\", handling=strict"],
            &["handling=strict, handling=lenient"],
            &[", ,handling=strict"],
        ] {
            assert_eq!(handled(strict), Handling::Strict, "{strict:?}");
        }
        for lenient in [
            &[][..],
            &[""],
            &["handling"],
            &["handling="],
            &["handling=lenient"],
            &["handling=stricter"],
            &["handling=lenient, handling=strict"],
            &["strict"],
            &["foo=\"handling=strict\""],
            &["foo=\"a\\\", handling=strict, b\""],
            &["foo=\"a, handling=strict"],
            &["x;handling=strict"],
        ] {
            assert_eq!(handled(lenient), Handling::Lenient, "{lenient:?}");
        }
    }
}
