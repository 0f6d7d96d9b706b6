//! Parameters of requests: in paths, in queries, in headers. Their limits are those of the code that reads them.

use holdfast_shared::domain::{SortField, Status};
use serde_json::json;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::ObjectBuilder;
use utoipa::openapi::{RefOr, Required, Schema};

use super::resource::{idempotency_key, operation_state, session_id};
use super::schema::{string, text, time, uuid, whole_number, word};
use super::task;
use crate::transport::cursor::sort_word;
use crate::transport::header::{
    IDEMPOTENCY_KEY, MAX_REQUEST_ID, PREFER, SYNC_PRIORITY, TRACEPARENT, X_REQUEST_ID,
};
use crate::transport::query::{DEFAULT_LIMIT, MAX_LIMIT, MAX_TEXT, MAX_WAIT_SECONDS};

/// The headers that every request may have.
pub fn of_every_request() -> Vec<Parameter> {
    vec![
        header(
            X_REQUEST_ID.as_str(),
            string(),
            &format!(
                "A name for the request, echoed in the answer and in problems and found in logs: up to {MAX_REQUEST_ID} \
                 printable ASCII characters. Anything else is replaced by a name made here."
            ),
        ),
        header(
            TRACEPARENT.as_str(),
            string(),
            "The trace the request belongs to (W3C Trace Context). One that is malformed is ignored.",
        ),
    ]
}

/// The headers that every write may have.
pub fn of_write() -> Vec<Parameter> {
    let priority = header(
        SYNC_PRIORITY.as_str(),
        task::priorities(),
        "The write's place in the queue, should it be buffered: 1 goes first. By default 2 for a profile, 3 for a task. \
         A later write of the same resource never overtakes an earlier one.",
    );
    let handling = header(
        PREFER.as_str(),
        string().examples(["handling=strict"]),
        "`handling=strict`: refuse the write (503) rather than accept it into the buffer (202). `Preference-Applied` says \
         that the wish was heeded. Other preferences are ignored (RFC 7240).",
    );
    vec![priority, handling]
}

/// The headers of a write to something that may be there already.
pub fn of_conditional_write() -> Vec<Parameter> {
    let mut parameters = of_write();
    parameters.push(header(
        "If-Match",
        tags(),
        "Write only if the resource is there and has one of these tags (`*`: any), as its `ETag` said; else 412. Offline, \
         a resource the node doesn't know is judged when the write is applied.",
    ));
    parameters.push(header(
        "If-None-Match",
        word(["*"]),
        "Write only if there is no such resource yet; else 412.",
    ));
    parameters
}

/// The header that makes a write safe to repeat.
pub fn idempotency() -> Parameter {
    header(
        IDEMPOTENCY_KEY.as_str(),
        idempotency_key(),
        "A name of your own for this write, such as a UUID. A repeat with the same key and body within 90 days changes \
         nothing and gets the first one's status and the resource as it is now, with `Idempotency-Replayed: true`; it \
         holds across outages and nodes. With another body it is 422, while the first still runs 409.",
    )
}

/// The headers of a read of one resource.
pub fn of_conditional_read() -> Vec<Parameter> {
    let if_match = header(
        "If-Match",
        tags(),
        "Answer only if it has one of these tags (`*`: any); else 412.",
    );
    vec![if_none_match(), if_match]
}

/// The header by which a client keeps what it has.
pub fn if_none_match() -> Parameter {
    header(
        "If-None-Match",
        tags(),
        "Tags you have already (`*`: any), as `ETag` said. If one of them is the current one, the answer is 304 without a \
         body.",
    )
}

/// Entity tags as RFC 9110 §8.8.3 writes them. A pattern of ours would say less than the header's name, whose grammar
/// tools know.
fn tags() -> ObjectBuilder {
    string()
}

/// The task a path names.
pub fn task_id(description: &str) -> Parameter {
    path("id", uuid(), description)
}

/// The operation a path names.
pub fn operation_id() -> Parameter {
    path(
        "id",
        uuid(),
        "The operation's id, as `Operation-Location` names it.",
    )
}

/// The session a path names.
pub fn session() -> Parameter {
    path("id", session_id(), "The session's id, percent-encoded.")
}

/// One of a few things a path names.
pub fn one_of(
    name: &str,
    words: impl IntoIterator<Item = &'static str>,
    description: &str,
) -> Parameter {
    path(name, word(words), description)
}

/// What a list of tasks can be asked for.
pub fn of_tasks() -> Vec<Parameter> {
    let orders = SortField::ALL
        .iter()
        .flat_map(|(field, _)| [sort_word(*field, false), sort_word(*field, true)]);
    vec![
        query(
            "status",
            word(Status::ALL.map(Status::as_str)),
            "Only tasks with this status.",
        ),
        query(
            "priority",
            task::priorities(),
            "Only tasks with this priority.",
        ),
        query("tag", task::tag(), "Only tasks with this tag."),
        query(
            "due_before",
            time(),
            "Only tasks due at or before this time. Those without a due time are left out.",
        ),
        query(
            "due_after",
            time(),
            "Only tasks due at or after this time. Those without a due time are left out.",
        ),
        query(
            "q",
            text(0..=MAX_TEXT),
            "Only tasks with this text in their title or description, in any case.",
        ),
        query(
            "sort",
            string()
                .enum_values(Some(orders))
                .default(Some(json!(sort_word(SortField::default(), true)))),
            "The order, with `-` before it for descending. Ties are in order of id; tasks without a due time come last \
             in either direction of `due_at`.",
        ),
        limit(),
        cursor("tasks, asked for with the same `sort`"),
    ]
}

/// What a list of operations can be asked for.
pub fn of_operations() -> Vec<Parameter> {
    vec![
        query("state", operation_state(), "Only operations in this state."),
        limit(),
        cursor("operations"),
    ]
}

/// How long to wait for an operation's end.
pub fn wait() -> Parameter {
    query(
        "wait",
        whole_number(0..=MAX_WAIT_SECONDS).default(Some(json!(0))),
        "For how many seconds to wait for a final state before answering (long polling). Without it, or with 0, the \
         answer comes at once.",
    )
}

fn limit() -> Parameter {
    query(
        "limit",
        whole_number(1..=MAX_LIMIT as u64).default(Some(json!(DEFAULT_LIMIT))),
        "Most items of the page. One with very long texts may end earlier, after about a mebibyte of them.",
    )
}

fn cursor(list: &str) -> Parameter {
    query(
        "cursor",
        string().pattern(Some("^[A-Za-z0-9_-]+$")),
        &format!(
            "Where the page begins: `next_cursor` of the page before, of a list of {list}. Any other is 400."
        ),
    )
}

fn query(name: &str, schema: impl Into<RefOr<Schema>>, description: &str) -> Parameter {
    parameter(ParameterIn::Query, name, schema, description)
}

fn header(name: &str, schema: impl Into<RefOr<Schema>>, description: &str) -> Parameter {
    parameter(ParameterIn::Header, &usual(name), schema, description)
}

fn path(name: &str, schema: impl Into<RefOr<Schema>>, description: &str) -> Parameter {
    parameter(ParameterIn::Path, name, schema, description)
}

fn parameter(
    place: ParameterIn,
    name: &str,
    schema: impl Into<RefOr<Schema>>,
    description: &str,
) -> Parameter {
    let required = match place {
        ParameterIn::Path => Required::True,
        _ => Required::False,
    };
    ParameterBuilder::new()
        .name(name)
        .parameter_in(place)
        .required(required)
        .schema(Some(schema))
        .description(Some(description))
        .build()
}

/// A header's name as it is usually written; HTTP compares them without case.
fn usual(name: &str) -> String {
    if name == TRACEPARENT.as_str() {
        return name.to_owned();
    }
    name.split('-')
        .map(capitalised)
        .collect::<Vec<_>>()
        .join("-")
}

/// The word with a capital first letter.
pub fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    let first = letters.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(letters).collect()
}
