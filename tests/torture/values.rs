//! How a token is spelt in the fields of a task or a profile, and read again.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::history::{ALIEN, FIELDS, Seen, Sync, Thing, Token};

/// `due_at` is this many seconds after 1970 and as many more as the token says.
const DUE_BASE: i64 = 2_000_000_000;

const TASK_FIELDS: [&str; FIELDS] = ["title", "description", "tags", "due_at"];
const PROFILE_FIELDS: [&str; FIELDS] = ["display_name", "bio", "avatar_url", "preferences"];

/// The body that sets these fields of a thing.
pub fn body(is_task: bool, token: Token, sets: impl Fn(usize) -> bool) -> Value {
    let names = if is_task { TASK_FIELDS } else { PROFILE_FIELDS };
    let fields = (0..FIELDS).filter(|field| sets(*field));
    let body: Map<String, Value> = fields
        .map(|field| (String::from(names[field]), value(is_task, field, token)))
        .collect();
    Value::Object(body)
}

fn value(is_task: bool, field: usize, token: Token) -> Value {
    match (is_task, field) {
        (true, 2) => json!([format!("w{token}")]),
        (true, 3) => json!(due_at(token)),
        (false, 2) => json!(format!("https://example.org/w{token}")),
        (false, 3) => json!({"w": token}),
        _ => json!(format!("w{token}")),
    }
}

fn due_at(token: Token) -> String {
    let time = DateTime::from_timestamp(DUE_BASE, 0).unwrap_or_default();
    (time + TimeDelta::seconds(i64::from(token))).to_rfc3339()
}

/// What an answer shows of a task or a profile; `None` when it is neither.
pub fn seen(json: &Value) -> Option<Seen> {
    let sync = match json["sync_state"].as_str()? {
        "synced" => Sync::Synced,
        "pending" => Sync::Pending,
        "stale" => Sync::Stale,
        _ => return None,
    };
    let is_task = json.get("title").is_some();
    let names = if is_task { TASK_FIELDS } else { PROFILE_FIELDS };
    let thing = if is_task {
        Thing::Task(Uuid::parse_str(json["id"].as_str()?).ok()?)
    } else {
        Thing::Profile
    };
    let tokens = std::array::from_fn(|field| token_of(is_task, field, &json[names[field]]));
    Some(Seen {
        thing,
        tokens,
        sync,
    })
}

/// Whose write a field's value is.
pub fn token_of(is_task: bool, field: usize, value: &Value) -> Token {
    let found = match (is_task, field) {
        _ if is_unset(value) => Some(0),
        (true, 2) => value[0].as_str().and_then(spelt),
        (true, 3) => value.as_str().and_then(token_of_due),
        (false, 2) => value
            .as_str()
            .and_then(|url| spelt(url.strip_prefix("https://example.org/")?)),
        (false, 3) => value["w"].as_u64().and_then(|token| token.try_into().ok()),
        // The profile begins with the name that the user's token claims.
        (false, 0)
            if value
                .as_str()
                .is_some_and(|name| name.ends_with(" Example")) =>
        {
            Some(0)
        }
        _ => value.as_str().and_then(spelt),
    };
    found.unwrap_or(ALIEN)
}

fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// The token of a text such as `w12`.
pub fn spelt(text: &str) -> Option<Token> {
    text.strip_prefix('w')?.parse().ok()
}

fn token_of_due(text: &str) -> Option<Token> {
    let time = DateTime::parse_from_rfc3339(text).ok()?;
    let seconds = time.with_timezone(&Utc).timestamp() - DUE_BASE;
    Token::try_from(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_spells_its_token() {
        for is_task in [true, false] {
            let mut json = body(is_task, 77, |_| true);
            json["sync_state"] = json!("pending");
            json["id"] = json!("0196f000-0000-7000-8000-000000000001");
            let seen = seen(&json).expect("a resource");
            assert_eq!(seen.tokens, [77; FIELDS]);
            assert_eq!(seen.sync, Sync::Pending);
        }
    }

    #[test]
    fn what_nobody_wrote_is_0_and_what_nobody_can_have_written_is_alien() {
        assert_eq!(token_of(true, 0, &json!("")), 0);
        assert_eq!(token_of(true, 3, &Value::Null), 0);
        assert_eq!(token_of(false, 0, &json!("u1 Example")), 0);
        assert_eq!(token_of(true, 0, &json!("something else")), ALIEN);
    }
}
