//! What else is shown, as schemas: operations, sessions, how things stand, pages of lists, problems.

use holdfast_shared::domain::{
    Entity, IdempotencyKey, Kind as OperationKind, OperationState, SessionId,
};
use holdfast_shared::repository::{
    BufferReport, LISTED_SESSIONS_MAX, Mode, StoreReport, SyncState,
};
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, SchemaFormat};
use utoipa::openapi::{KnownFormat, RefOr, Schema, Type};

use super::schema::{
    Fields, Nullable, boolean, count, list, named, object, string, text, time, uuid, whole_number,
    word,
};
use super::{profile, task};
use crate::transport::problem::{Kind, MAX_FAULTS};
use crate::transport::query::MAX_LIMIT;
use crate::transport::view::{mode_word, sync_word};

/// Every named schema.
pub fn all() -> Vec<(&'static str, RefOr<Schema>)> {
    vec![
        ("Task", task::shown().into()),
        ("NewTask", task::given().into()),
        ("TaskPatch", task::patch().into()),
        ("TaskPage", task_page().into()),
        ("Profile", profile::shown().into()),
        ("NewProfile", profile::given().into()),
        ("ProfilePatch", profile::patch().into()),
        (profile::PREFERENCES, profile::preferences().into()),
        (profile::ANY_JSON, profile::any_json().into()),
        (profile::TIME_ZONE, profile::time_zones().into()),
        ("Operation", operation().into()),
        ("OperationPage", operation_page().into()),
        ("Session", session().into()),
        ("SessionPage", session_page().into()),
        ("Health", health().into()),
        ("Problem", problem().into()),
    ]
}

/// Where a resource comes from.
pub fn sync_state() -> ObjectBuilder {
    word(SyncState::ALL.map(sync_word)).description(Some(
        "`synced`; `pending`: a write of it waits in the buffer; or `stale`: from this node's memory, while the store \
         is away.",
    ))
}

/// The resource where the node knows it, else the operation.
pub fn either(resource: &str) -> OneOfBuilder {
    OneOfBuilder::new()
        .item(named(resource))
        .item(named("Operation"))
}

/// An operation's state.
pub fn operation_state() -> ObjectBuilder {
    word(OperationState::ALL.map(OperationState::as_str)).description(Some(
        "`pending`: it waits in the buffer. The others are final: `applied`; `superseded`: newer writes had set \
         everything it sets; `dead`: it was refused when it was applied, and `last_error` says why.",
    ))
}

/// A session's id, as a path or a body gives it.
pub fn session_id() -> ObjectBuilder {
    text(1..=SessionId::MAX_CHARACTERS)
}

/// The form of an idempotency key that every HTTP client can send.
pub fn idempotency_key() -> ObjectBuilder {
    string()
        .min_length(Some(1))
        .max_length(Some(IdempotencyKey::MAX_CHARACTERS))
        .pattern(Some("^[!-~]([ -~]*[!-~])?$"))
}

fn operation() -> ObjectBuilder {
    object("A write that was accepted: what it is about and what became of it. There is one of each write that was \
            buffered or has an `Idempotency-Key`.")
    .always("id", uuid().description(Some("Its id.")))
    .always("entity", word(Entity::ALL.map(Entity::as_str)).description(Some("The kind of thing it is about.")))
    .always("entity_id", string().description(Some("The id of the task, user or session it is about.")))
    .always("operation", word(OperationKind::ALL.map(OperationKind::as_str)).description(Some("What it does.")))
    .always("state", operation_state())
    .always("priority", task::priorities().description(Some("Its place in the queue: 1 goes first.")))
    .always(
        "retries",
        whole_number(0..=u64::from(u32::MAX))
            .description(Some("How often applying it has failed while the store was healthy.")),
    )
    .always(
        "last_error",
        string().description(Some("Why it failed last, or why it is dead.")).build().or_null(),
    )
    .always("accepted_at", time().description(Some("When it was accepted.")))
    .always(
        "finished_at",
        time().description(Some("When it reached its final state; null while it is pending.")).build().or_null(),
    )
}

fn session() -> ObjectBuilder {
    object("A session: one log in of the user's, by one or more tokens.")
        .always(
            "id",
            session_id().description(Some(
                "The token's `sid`, else its `jti`, else a hash of the token.",
            )),
        )
        .always("created_at", time().description(Some("When it began.")))
        .always(
            "last_seen_at",
            time().description(Some("When it was last seen, to the minute.")),
        )
        .always(
            "expires_at",
            time().description(Some("When its token expires.")),
        )
        .always(
            "user_agent",
            string()
                .description(Some("The client's `User-Agent`, cut to 200 characters."))
                .build()
                .or_null(),
        )
        .always(
            "current",
            boolean().description(Some("Whether it is the one that asks.")),
        )
}

fn task_page() -> ObjectBuilder {
    page("A page of tasks.", "Task").always(
        "complete",
        boolean().description(Some(
            "Whether the node knows all of the user's tasks. While PostgreSQL is away it shows those it knows, and says \
             `false`.",
        )),
    )
}

fn operation_page() -> ObjectBuilder {
    page("A page of operations, newest first.", "Operation")
}

fn session_page() -> ObjectBuilder {
    object("The user's sessions, the one seen last first, all on one page.")
        .always(
            "items",
            list(named("Session")).max_items(Some(LISTED_SESSIONS_MAX)),
        )
        .always("next_cursor", next_cursor())
}

fn page(description: &str, items: &str) -> ObjectBuilder {
    object(description)
        .always("items", list(named(items)).max_items(Some(MAX_LIMIT)))
        .always("next_cursor", next_cursor())
}

fn next_cursor() -> RefOr<Schema> {
    let cursor = string().description(Some(
        "The `cursor` of the next page, in the same order; null on the last one.",
    ));
    cursor.build().or_null().into()
}

fn health() -> ObjectBuilder {
    object("How things stand on this node.")
        .always(
            "status",
            word(Mode::ALL.map(mode_word)).description(Some(
                "`embedded`: no database is configured, and the buffer is the store; `online`; `offline`: a store is not \
                 usable; `catching_up`: all are, and the buffer is not empty.",
            )),
        )
        .always("stores", object("The stores.").always("postgres", store()).always("redis", store()))
        .always("buffer", buffer())
        .always(
            "syncd",
            object("The daemon that drains the buffer.")
                .always("running", boolean().description(Some("Whether one holds this buffer."))),
        )
        .always("version", string().description(Some("The version of the API process.")))
}

fn store() -> ObjectBuilder {
    object("A store.")
        .always(
            "state",
            word(StoreReport::STATES).description(Some("Whether it takes writes.")),
        )
        .always(
            "since",
            time()
                .description(Some("Since when; null where it is disabled."))
                .build()
                .or_null(),
        )
        .always(
            "latency_ms",
            ObjectBuilder::new()
                .schema_type(Type::Number)
                .format(Some(SchemaFormat::KnownFormat(KnownFormat::Double)))
                .description(Some("How long the last probe took, in milliseconds."))
                .build()
                .or_null(),
        )
        .always(
            "error",
            string()
                .description(Some("Why it is down."))
                .build()
                .or_null(),
        )
}

fn buffer() -> ObjectBuilder {
    object("The buffer: the file that takes writes while a store is away.")
        .always(
            "state",
            word(BufferReport::STATES).description(Some(
                "`full`: no new write is taken until there is room; `unavailable`: the file can't be read.",
            )),
        )
        .always("pending", count().description(Some("Writes that wait.")))
        .always("dead", count().description(Some("Writes that were refused for good and are kept to be looked at.")))
        .always("oldest_age_seconds", count().description(Some("The age of the oldest write that waits.")))
        .always("bytes", count().description(Some("The size of the file.")))
        .always("max_items", count().description(Some("How many writes may wait.")))
        .always("damaged_items", count().description(Some("Writes set aside because their bytes are damaged.")))
        .always("damaged_files", count().description(Some("Damaged buffer files that were set aside.")))
}

fn problem() -> ObjectBuilder {
    let types = Kind::ALL.map(|kind| kind.describe().0);
    object("A problem document (RFC 9457). Decide by `type`; `detail` is for people.")
        .always(
            "type",
            word(types)
                .format(Some(SchemaFormat::Custom("uri-reference".to_owned())))
                .description(Some(
                    "What kind of problem it is: the address of the page that explains it.",
                )),
        )
        .always(
            "title",
            string().description(Some("The kind in a few words.")),
        )
        .always(
            "status",
            whole_number(400..=599).description(Some("The HTTP status.")),
        )
        .always(
            "detail",
            string().description(Some("What is wrong this time.")),
        )
        .always(
            "request_id",
            string().description(Some(
                "As in `X-Request-Id`; it finds the request in the log.",
            )),
        )
        .property(
            "errors",
            list(fault())
                .min_items(Some(1))
                .max_items(Some(MAX_FAULTS))
                .description(Some(
                    "What is wrong with the body, of `/problems/invalid-fields` only.",
                )),
        )
}

fn fault() -> ObjectBuilder {
    object("What is wrong with one place of the body.")
        .always(
            "pointer",
            string()
                .format(Some(SchemaFormat::KnownFormat(KnownFormat::JsonPointer)))
                .description(Some(
                    "The place, as a JSON Pointer (RFC 6901); empty for the whole body.",
                )),
        )
        .always(
            "detail",
            string().description(Some("The rule that is broken.")),
        )
}
