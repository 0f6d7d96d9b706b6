//! Conditional requests (RFC 9110 §13): entity tags in `If-Match` and `If-None-Match`.

use holdfast_shared::domain::{ETag, Precondition};
use http::header::{IF_MATCH, IF_NONE_MATCH};
use http::{HeaderMap, HeaderName};

use super::problem::{Kind, Problem};

/// What one of the two headers lists.
#[derive(Debug, Clone, PartialEq, Eq)]
enum TagList {
    Any,
    Tags(Vec<ClientTag>),
}

/// An entity tag as a client sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ClientTag {
    is_weak: bool,
    tag: String,
}

/// The condition of a write, to be judged where the write is applied.
///
/// # Errors
/// 400 when a header is malformed, or `If-None-Match` is other than `*`, which no write here needs; 412 when both are
/// given, since what has a tag is there.
pub fn of_write(headers: &HeaderMap) -> Result<Option<Precondition>, Problem> {
    match (list(headers, &IF_MATCH)?, list(headers, &IF_NONE_MATCH)?) {
        (None, None) => Ok(None),
        (Some(TagList::Any), None) => Ok(Some(Precondition::Exists)),
        (Some(TagList::Tags(tags)), None) => Ok(Some(Precondition::Match(strong(tags)))),
        (None, Some(TagList::Any)) => Ok(Some(Precondition::Absent)),
        (_, Some(TagList::Tags(_))) => Err(Problem::header(
            IF_NONE_MATCH.as_str(),
            "can only be * on a write",
        )),
        (Some(_), Some(TagList::Any)) => Err(Problem::new(
            Kind::PreconditionFailed,
            "If-Match and If-None-Match: * exclude each other, so nothing meets both",
        )),
    }
}

/// What a read with conditions is to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadVerdict {
    /// The resource.
    Whole,
    /// 304: the client has it already.
    NotModified,
}

/// Judges the conditions of a read of something that is there and has this tag.
///
/// # Errors
/// 400 when a header is malformed, 412 when `If-Match` doesn't hold.
pub fn judge_read(headers: &HeaderMap, current: &ETag) -> Result<ReadVerdict, Problem> {
    if let Some(TagList::Tags(tags)) = list(headers, &IF_MATCH)?
        && !strong(tags).contains(current)
    {
        return Err(failed());
    }
    let is_known = match list(headers, &IF_NONE_MATCH)? {
        None => false,
        Some(TagList::Any) => true,
        Some(TagList::Tags(tags)) => tags.iter().any(|known| known.tag == current.as_str()),
    };
    Ok(if is_known {
        ReadVerdict::NotModified
    } else {
        ReadVerdict::Whole
    })
}

/// 412.
pub fn failed() -> Problem {
    Problem::new(
        Kind::PreconditionFailed,
        "it has changed meanwhile, or is not in the state the request asks for",
    )
}

/// Tags that can match strongly (RFC 9110 §8.8.3.2): a weak one never does.
fn strong(tags: Vec<ClientTag>) -> Vec<ETag> {
    tags.into_iter()
        .filter(|tag| !tag.is_weak)
        .map(|tag| ETag::from_client(&tag.tag))
        .collect()
}

/// What a header lists; `None` where it isn't there. A list may be empty: then it has no tag that matches.
fn list(headers: &HeaderMap, name: &HeaderName) -> Result<Option<TagList>, Problem> {
    if !headers.contains_key(name) {
        return Ok(None);
    }
    let mut tags = Vec::new();
    let mut any = false;
    for value in headers.get_all(name) {
        let text = value.to_str().map_err(|_| malformed(name))?.trim();
        if text == "*" {
            any = true;
        } else {
            tags.extend(parse_tags(text).ok_or_else(|| malformed(name))?);
        }
    }
    match (any, tags.is_empty()) {
        (true, true) => Ok(Some(TagList::Any)),
        (true, false) => Err(malformed(name)),
        (false, _) => Ok(Some(TagList::Tags(tags))),
    }
}

fn malformed(name: &HeaderName) -> Problem {
    Problem::header(
        name.as_str(),
        "must be * or a list of entity tags such as \"a\", \"b\"",
    )
}

/// Tags separated by commas, which a tag may hold itself. Empty elements count for nothing (RFC 9110 §5.6.1.2).
fn parse_tags(text: &str) -> Option<Vec<ClientTag>> {
    let mut tags = Vec::new();
    let mut text = skip_empty(text);
    while !text.is_empty() {
        let (is_weak, quoted) = match text.strip_prefix("W/") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (tag, rest) = quoted.strip_prefix('"')?.split_once('"')?;
        tags.push(ClientTag {
            is_weak,
            tag: tag.to_owned(),
        });
        let rest = rest.trim_start();
        if !rest.is_empty() && !rest.starts_with(',') {
            return None;
        }
        text = skip_empty(rest);
    }
    Some(tags)
}

fn skip_empty(text: &str) -> &str {
    text.trim_start_matches([',', ' ', '\t'])
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name, HeaderValue::from_str(value).expect("a valid value"));
        }
        headers
    }

    fn tag(text: &str) -> ETag {
        ETag::from_client(text)
    }

    #[test]
    fn the_conditions_of_writes() {
        let condition = |pairs: &[(HeaderName, &str)]| of_write(&headers(pairs));
        assert_eq!(condition(&[]), Ok(None));
        assert_eq!(
            condition(&[(IF_MATCH, "*")]),
            Ok(Some(Precondition::Exists))
        );
        assert_eq!(
            condition(&[(IF_NONE_MATCH, "*")]),
            Ok(Some(Precondition::Absent))
        );
        let several = condition(&[(IF_MATCH, "\"a,b\" , \"c\""), (IF_MATCH, "W/\"d\"")]);
        assert_eq!(
            several,
            Ok(Some(Precondition::Match(vec![tag("a,b"), tag("c")])))
        );
        assert_eq!(
            condition(&[(IF_MATCH, "W/\"d\"")]),
            Ok(Some(Precondition::Match(vec![])))
        );
    }

    #[test]
    fn malformed_conditions_are_400() {
        for text in ["a", "\"a", "\"a\" \"b\"", "w/\"a\"", "*, \"a\""] {
            let problem = of_write(&headers(&[(IF_MATCH, text)])).expect_err("refused");
            assert_eq!(problem.kind(), Kind::BadHeader, "{text:?}");
        }
        assert!(of_write(&headers(&[(IF_NONE_MATCH, "\"a\"")])).is_err());
    }

    #[test]
    fn what_is_there_and_is_not_there_is_412() {
        let both = headers(&[(IF_NONE_MATCH, "*"), (IF_MATCH, "*")]);
        let problem = of_write(&both).expect_err("refused");
        assert_eq!(problem.kind(), Kind::PreconditionFailed);
    }

    #[test]
    fn empty_elements_of_a_list_count_for_nothing() {
        let tags = |text| of_write(&headers(&[(IF_MATCH, text)]));
        assert_eq!(
            tags(", \"a\",, \"b\" ,"),
            Ok(Some(Precondition::Match(vec![tag("a"), tag("b")])))
        );
        for nothing in ["", ",", " , ,"] {
            assert_eq!(
                tags(nothing),
                Ok(Some(Precondition::Match(vec![]))),
                "{nothing:?}"
            );
        }
        let read = |text| judge_read(&headers(&[(IF_NONE_MATCH, text)]), &tag("now"));
        assert_eq!(read(""), Ok(ReadVerdict::Whole));
    }

    #[test]
    fn a_read_is_304_when_the_client_has_it() {
        let verdict = |pairs: &[(HeaderName, &str)]| judge_read(&headers(pairs), &tag("now"));
        assert_eq!(verdict(&[]), Ok(ReadVerdict::Whole));
        assert_eq!(
            verdict(&[(IF_NONE_MATCH, "\"old\", \"now\"")]),
            Ok(ReadVerdict::NotModified)
        );
        assert_eq!(
            verdict(&[(IF_NONE_MATCH, "W/\"now\"")]),
            Ok(ReadVerdict::NotModified)
        );
        assert_eq!(
            verdict(&[(IF_NONE_MATCH, "*")]),
            Ok(ReadVerdict::NotModified)
        );
        assert_eq!(
            verdict(&[(IF_NONE_MATCH, "\"old\"")]),
            Ok(ReadVerdict::Whole)
        );
        assert_eq!(verdict(&[(IF_MATCH, "\"now\"")]), Ok(ReadVerdict::Whole));
        assert_eq!(
            verdict(&[(IF_MATCH, "\"old\"")]).expect_err("412").kind(),
            Kind::PreconditionFailed
        );
        assert_eq!(
            verdict(&[(IF_MATCH, "W/\"now\"")]).expect_err("412").kind(),
            Kind::PreconditionFailed
        );
    }
}
