//! What is said of each route, one module per resource, as the handlers are.

pub mod documents;
pub mod health;
pub mod operations;
pub mod profile;
pub mod sessions;
pub mod tasks;

use holdfast_shared::domain::{Entity, Kind as OperationKind, OperationState};
use http::StatusCode;

use super::answer::{Answer, Example};
use super::example;
use super::header::Answered;
use super::parameter::capitalised;
use super::resource::either;
use crate::transport::problem::Kind;

/// What every buffered write is answered: the resource as it will be where the node knows it, else the operation.
fn buffered(entity: Entity, kind: OperationKind, shown: Example) -> Answer {
    let operation = example::operation(entity, kind, OperationState::Pending);
    let resource = capitalised(entity.as_str());
    let examples = vec![
        shown,
        (
            "operation",
            "The node doesn't know all of it: the operation",
            operation,
        ),
    ];
    Answer::json(
        StatusCode::ACCEPTED,
        "Accepted while the store is away: kept safely here, and applied when it is back. The body is the resource as it \
         will be or, where the node can't know that, the operation.",
        either(&resource),
        examples,
    )
    .always(&[Answered::SyncState, Answered::OperationLocation])
    .sometimes(&[Answered::ETag])
}

/// What a buffered delete is answered.
fn buffered_delete(entity: Entity, description: &str) -> Answer {
    let operation = example::operation(entity, OperationKind::Delete, OperationState::Pending);
    Answer::json(
        StatusCode::ACCEPTED,
        description,
        super::schema::named("Operation"),
        vec![("operation", "The operation", operation)],
    )
    .always(&[Answered::SyncState, Answered::OperationLocation])
    .leads_to("readOperation", &[("id", "$response.body#/id")])
}

/// What a patch in another form than those taken is answered.
fn no_patch() -> Answer {
    Answer::problem(&[Kind::UnsupportedMediaType]).always(&[Answered::AcceptPatch])
}

/// What a read with `If-None-Match` of something unchanged is answered.
fn not_modified() -> Answer {
    Answer::empty(StatusCode::NOT_MODIFIED, "You have it already.")
}
