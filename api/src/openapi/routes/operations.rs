//! `/api/v1/operations`.

use holdfast_shared::domain::{Entity, Kind as OperationKind, OperationState};
use http::StatusCode;

use crate::openapi::answer::Answer;
use crate::openapi::description::{Description, Tag};
use crate::openapi::example;
use crate::openapi::parameter;
use crate::openapi::schema::named;
use crate::transport::problem::Kind;

/// `GET` of one.
pub fn read() -> Description {
    let shown = |state| example::operation(Entity::Task, OperationKind::Update, state);
    Description {
        id: "readOperation",
        tag: Tag::Operations,
        summary: "What became of a write",
        text: "Tells what became of a write that was answered `202`, or that has an `Idempotency-Key`. With `wait` it is \
               answered as soon as the operation ends, or when the time is over.",
        parameters: vec![parameter::operation_id(), parameter::wait()],
        body: None,
        answers: vec![Answer::json(
            StatusCode::OK,
            "The operation.",
            named("Operation"),
            vec![
                (
                    "pending",
                    "It waits for the store",
                    shown(OperationState::Pending),
                ),
                ("applied", "It took effect", shown(OperationState::Applied)),
                (
                    "superseded",
                    "Newer writes had set all that it sets",
                    shown(OperationState::Superseded),
                ),
                (
                    "dead",
                    "It was refused when it was applied",
                    shown(OperationState::Dead),
                ),
            ],
        )],
        problems: vec![Kind::BadParameter, Kind::NotFound],
    }
}

/// `GET` of the list.
pub fn list() -> Description {
    Description {
        id: "listOperations",
        tag: Tag::Operations,
        summary: "List my operations",
        text: "A page of the user's operations, newest first.",
        parameters: parameter::of_operations(),
        body: None,
        answers: vec![Answer::json(
            StatusCode::OK,
            "A page.",
            named("OperationPage"),
            vec![("pending", "One write waits", example::operation_page())],
        )],
        problems: vec![Kind::BadParameter],
    }
}
