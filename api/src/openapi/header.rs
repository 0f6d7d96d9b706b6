//! Headers of answers.

use holdfast_shared::repository::SyncState;
use serde_json::{Value, json};
use utoipa::openapi::extensions::Extensions;
use utoipa::openapi::header::{Header, HeaderBuilder};
use utoipa::openapi::schema::{Object, ObjectBuilder};

use super::example;
use super::schema::{count, string, word};
use crate::transport::response::BASE_PATH;
use crate::transport::view::sync_word;

/// A header of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answered {
    /// `X-Request-Id`.
    RequestId,
    /// `Cache-Control`.
    CacheControl,
    /// `Location`.
    Location,
    /// `ETag`.
    ETag,
    /// `Sync-State`.
    SyncState,
    /// `Age`.
    Age,
    /// `Operation-Location`.
    OperationLocation,
    /// `Idempotency-Replayed`.
    IdempotencyReplayed,
    /// `Retry-After`.
    RetryAfter,
    /// `WWW-Authenticate`.
    WwwAuthenticate,
    /// `Allow`.
    Allow,
    /// `Accept-Patch`.
    AcceptPatch,
    /// `Vary`.
    Vary,
    /// `Preference-Applied`.
    PreferenceApplied,
    /// `RateLimit`.
    RateLimit,
    /// `RateLimit-Policy`.
    RateLimitPolicy,
}

/// What is said of a header.
struct Text {
    name: &'static str,
    schema: Object,
    description: &'static str,
    example: Value,
}

impl Answered {
    /// Every one.
    pub const ALL: [Answered; 16] = [
        Answered::RequestId,
        Answered::CacheControl,
        Answered::Location,
        Answered::ETag,
        Answered::SyncState,
        Answered::Age,
        Answered::OperationLocation,
        Answered::IdempotencyReplayed,
        Answered::RetryAfter,
        Answered::WwwAuthenticate,
        Answered::Allow,
        Answered::AcceptPatch,
        Answered::Vary,
        Answered::PreferenceApplied,
        Answered::RateLimit,
        Answered::RateLimitPolicy,
    ];

    /// Its name, as it is usually written.
    pub fn name(self) -> &'static str {
        self.text().name
    }

    /// Where its definition is, for answers that always have it.
    pub fn place(self) -> String {
        format!("#/components/headers/{}", self.name())
    }

    /// Its definition, for answers that always have it.
    pub fn always(self) -> Header {
        // utoipa's header knows no `required`; its extensions are written out as they are.
        let required = Extensions::from_iter([("required", true)]);
        HeaderBuilder::from(self.sometimes())
            .extensions(Some(required))
            .build()
    }

    /// Its definition, for answers that may have it.
    pub fn sometimes(self) -> Header {
        let text = self.text();
        HeaderBuilder::new()
            .schema(Some(text.schema))
            .description(Some(text.description))
            .example(Some(text.example))
            .build()
    }

    fn text(self) -> Text {
        match self {
            Answered::RequestId => Text::new("X-Request-Id", string())
                .says("The request's name in logs and problems: the client's own, or one made here.", json!(example::REQUEST_ID)),
            Answered::CacheControl => Text::new("Cache-Control", string())
                .says("Who may keep the answer, and how long.", json!("no-store")),
            Answered::Location => Text::new("Location", place())
                .says("Where the resource is.", json!(format!("{BASE_PATH}/tasks/{}", example::TASK_ID))),
            Answered::ETag => Text::new("ETag", string())
                .says(
                    "The resource's tag. It changes with every change of any field, and stays the same when a pending \
                     write has been applied.",
                    json!(example::etag()),
                ),
            Answered::SyncState => Text::new("Sync-State", word(SyncState::ALL.map(sync_word)))
                .says(
                    "Where the answer comes from: `synced`; `pending`: a write of it waits in the buffer; `stale`: from \
                     this node's memory, while the store is away. Of a list, the weakest of its items.",
                    json!("synced"),
                ),
            Answered::Age => Text::new("Age", count())
                .says("How many seconds ago what is `stale` was last known to be right.", json!(12)),
            Answered::OperationLocation => Text::new("Operation-Location", place())
                .says(
                    "Where to ask what became of this write.",
                    json!(format!("{BASE_PATH}/operations/{}", example::OPERATION_ID)),
                ),
            Answered::IdempotencyReplayed => Text::new("Idempotency-Replayed", word(["true"]))
                .says("Present on the answer to a repeat: nothing was changed by it.", json!("true")),
            Answered::RetryAfter => Text::new("Retry-After", count())
                .says("In how many seconds a repeat may do better, by what this node has measured.", json!(2)),
            Answered::WwwAuthenticate => Text::new("WWW-Authenticate", string())
                .says(
                    "What is asked for, and what is wrong with the token that was sent (RFC 6750).",
                    json!("Bearer realm=\"holdfast\", error=\"invalid_token\", error_description=\"the token has expired\""),
                ),
            Answered::Allow => Text::new("Allow", string())
                .says("The methods this path takes.", json!("GET, HEAD, POST")),
            Answered::AcceptPatch => Text::new("Accept-Patch", string())
                .says("What `PATCH` takes (RFC 5789).", json!("application/merge-patch+json, application/json")),
            Answered::Vary => Text::new("Vary", string())
                .says("The request headers the answer depends on.", json!("accept-encoding")),
            Answered::PreferenceApplied => Text::new("Preference-Applied", word(["handling=strict"]))
                .says("Present where `Prefer: handling=strict` was heeded.", json!("handling=strict")),
            Answered::RateLimit => Text::new("RateLimit", string())
                .says(
                    "Where requests are limited: how many more would be taken now (`r`), and in how many seconds there \
                     will be one more (`t`).",
                    json!("\"user\";r=57;t=1"),
                ),
            Answered::RateLimitPolicy => Text::new("RateLimit-Policy", string())
                .says(
                    "Where requests are limited: how many (`q`) a user may send in how many seconds (`w`).",
                    json!("\"user\";q=60;w=60"),
                ),
        }
    }
}

impl Text {
    fn new(name: &'static str, schema: ObjectBuilder) -> Self {
        Text {
            name,
            schema: schema.build(),
            description: "",
            example: Value::Null,
        }
    }

    fn says(self, description: &'static str, example: Value) -> Self {
        Text {
            description,
            example,
            ..self
        }
    }
}

fn place() -> ObjectBuilder {
    string().format(Some(utoipa::openapi::SchemaFormat::Custom(
        "uri-reference".to_owned(),
    )))
}
