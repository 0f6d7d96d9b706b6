//! Opaque places in lists: what `next_cursor` says and `cursor` takes. Texts of our own in base64url, checked like
//! any other input; a made-up one only begins a page somewhere else in the user's own list.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use holdfast_shared::domain::{Cursor, OperationId, SortField, SortKey, TaskId};

/// First part of a place in a list of tasks; another form gets another letter.
const TASKS: &str = "t";
/// First part of a place in a list of operations.
const OPERATIONS: &str = "o";

/// A place after this task in a list sorted so.
pub fn of_task(sort: SortField, descending: bool, place: &Cursor) -> String {
    let key = place.key.map(|key| key.to_string()).unwrap_or_default();
    encode(&[
        TASKS,
        &sort_word(sort, descending),
        &key,
        &place.id.to_string(),
    ])
}

/// The place in a list sorted so; `None` when the text is no cursor, or one of another list.
pub fn parse_task(text: &str, sort: SortField, descending: bool) -> Option<Cursor> {
    let decoded = decode(text)?;
    let [TASKS, word, key, id] = parts(&decoded)? else {
        return None;
    };
    if word != sort_word(sort, descending) {
        return None;
    }
    Some(Cursor {
        key: parse_key(key)?,
        id: TaskId::parse(id)?,
    })
}

/// A place after this operation.
pub fn of_operation(id: OperationId) -> String {
    encode(&[OPERATIONS, &id.to_string()])
}

/// The operation a list of operations goes on after; `None` when the text is no cursor, or one of another list.
pub fn parse_operation(text: &str) -> Option<OperationId> {
    let decoded = decode(text)?;
    let [OPERATIONS, id] = parts(&decoded)? else {
        return None;
    };
    OperationId::parse(id)
}

/// The contract's `sort`: a field's word, with `-` before it for descending.
pub fn sort_word(sort: SortField, descending: bool) -> String {
    let word = SortField::ALL
        .iter()
        .find(|(field, _)| *field == sort)
        .map(|(_, word)| *word);
    format!(
        "{}{}",
        if descending { "-" } else { "" },
        word.unwrap_or_default()
    )
}

fn parse_key(text: &str) -> Option<SortKey> {
    if text.is_empty() {
        Some(None)
    } else {
        text.parse().ok().map(Some)
    }
}

fn encode(parts: &[&str]) -> String {
    URL_SAFE_NO_PAD.encode(parts.join("|"))
}

fn decode(text: &str) -> Option<String> {
    String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()
}

fn parts<const N: usize>(text: &str) -> Option<[&str; N]> {
    text.split('|').collect::<Vec<_>>().try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_task_cursor_comes_back_as_it_was(key: Option<i64>, id: u128, field in 0..4usize, descending: bool) {
            let place = Cursor { key, id: TaskId::from_uuid(uuid::Uuid::from_u128(id)) };
            let sort = SortField::ALL[field].0;
            let text = of_task(sort, descending, &place);
            prop_assert_eq!(parse_task(&text, sort, descending), Some(place));
            prop_assert_eq!(parse_task(&text, sort, !descending), None);
            prop_assert_eq!(parse_operation(&text), None);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text: String) {
            let _ = parse_task(&text, SortField::CreatedAt, true);
            let _ = parse_operation(&text);
            let encoded = URL_SAFE_NO_PAD.encode(&text);
            let _ = parse_task(&encoded, SortField::CreatedAt, true);
        }
    }

    #[test]
    fn an_operation_cursor_comes_back_as_it_was() {
        let id = OperationId::generate();
        let text = of_operation(id);
        assert_eq!(parse_operation(&text), Some(id));
        assert_eq!(parse_task(&text, SortField::CreatedAt, true), None);
        assert!(
            text.bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')),
            "{text}"
        );
    }

    #[test]
    fn made_up_cursors_are_refused() {
        for text in [
            "",
            "x",
            "!!!",
            "dA",
            "b3x4",
            &encode(&["t", "-created_at", "nine", "x"]),
        ] {
            assert_eq!(parse_task(text, SortField::CreatedAt, true), None, "{text}");
        }
    }
}
