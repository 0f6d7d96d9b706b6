//! `/api/v1/tasks`.

use holdfast_shared::domain::{Entity, Kind as OperationKind};
use holdfast_shared::repository::SyncState;
use http::StatusCode;

use super::{buffered, buffered_delete, no_patch, not_modified};
use crate::openapi::answer::{Answer, Example};
use crate::openapi::description::{BODY_PROBLEMS, Description, Tag, body};
use crate::openapi::example;
use crate::openapi::header::Answered;
use crate::openapi::parameter;
use crate::openapi::resource::either;
use crate::openapi::schema::named;
use crate::transport::header::BodyForm;
use crate::transport::problem::Kind;

/// `POST`.
pub fn create() -> Description {
    Description {
        id: "createTask",
        tag: Tag::Tasks,
        summary: "Create a task",
        text: "Creates a task under a new id. With an `Idempotency-Key` the request can be repeated until it is answered: \
               it makes one task, whichever nodes the repeats reach.",
        parameters: [parameter::of_write(), vec![parameter::idempotency()]].concat(),
        body: Some(given()),
        answers: vec![
            leading(
                Answer::json(
                    StatusCode::CREATED,
                    "Created. (To a repeat, if the task has been deleted meanwhile, the operation.)",
                    either("Task"),
                    vec![shown(SyncState::Synced)],
                )
                .always(&[Answered::Location, Answered::SyncState])
                .sometimes(&[
                    Answered::ETag,
                    Answered::IdempotencyReplayed,
                    Answered::PreferenceApplied,
                ]),
            ),
            leading(
                buffered(Entity::Task, OperationKind::Create, shown(SyncState::Pending))
                    .always(&[Answered::Location])
                    .sometimes(&[Answered::IdempotencyReplayed]),
            ),
        ],
        problems: [
            &BODY_PROBLEMS[..],
            &[
                Kind::BadHeader,
                Kind::KeyInUse,
                Kind::KeyReused,
                Kind::Gone,
                Kind::BufferFull,
                Kind::StrictNotMet,
            ],
        ]
        .concat(),
    }
}

/// `GET` of the list.
pub fn list() -> Description {
    Description {
        id: "listTasks",
        tag: Tag::Tasks,
        summary: "List my tasks",
        text: "A page of the user's tasks. Every filter that is given has to hold.",
        parameters: parameter::of_tasks(),
        body: None,
        answers: vec![
            Answer::json(
                StatusCode::OK,
                "A page.",
                named("TaskPage"),
                vec![
                    (
                        "synced",
                        "While the store answers",
                        example::task_page(SyncState::Synced),
                    ),
                    (
                        "stale",
                        "While it is away: what this node knows",
                        example::task_page(SyncState::Stale),
                    ),
                ],
            )
            .always(&[Answered::SyncState])
            .sometimes(&[Answered::Age]),
        ],
        problems: vec![Kind::BadParameter],
    }
}

/// `GET` of one.
pub fn read() -> Description {
    Description {
        id: "readTask",
        tag: Tag::Tasks,
        summary: "Read a task",
        text: "One of the user's tasks, what is waiting merged into what is stored.",
        parameters: [
            vec![parameter::task_id("The task's id.")],
            parameter::of_conditional_read(),
        ]
        .concat(),
        body: None,
        answers: vec![
            Answer::json(
                StatusCode::OK,
                "The task.",
                named("Task"),
                vec![shown(SyncState::Synced), shown(SyncState::Stale)],
            )
            .always(&[Answered::ETag, Answered::SyncState])
            .sometimes(&[Answered::Age]),
            not_modified()
                .always(&[Answered::ETag, Answered::SyncState])
                .sometimes(&[Answered::Age]),
        ],
        problems: vec![Kind::BadHeader, Kind::NotFound, Kind::PreconditionFailed],
    }
}

/// `PUT`.
pub fn replace() -> Description {
    Description {
        id: "replaceTask",
        tag: Tag::Tasks,
        summary: "Create or replace a task",
        text: "Makes the task under an id of your own choice (a fresh UUID), or replaces every field of it. Can be repeated \
               as it is.",
        parameters: [
            vec![parameter::task_id(
                "The task's id. Choose a fresh UUID for a new task, of any version but 8: under these, which are those of \
                 tasks made with an `Idempotency-Key`, nothing is made here (404).",
            )],
            parameter::of_conditional_write(),
        ]
        .concat(),
        body: Some(given()),
        answers: vec![
            leading(written(StatusCode::OK, "Replaced.", named("Task"))),
            leading(
                written(StatusCode::CREATED, "Created.", named("Task"))
                    .always(&[Answered::Location]),
            ),
            buffered(
                Entity::Task,
                OperationKind::Create,
                shown(SyncState::Pending),
            ),
        ],
        problems: [&BODY_PROBLEMS[..], &conditional_problems(), &[Kind::Gone]].concat(),
    }
}

/// `PATCH`.
pub fn patch() -> Description {
    Description {
        id: "patchTask",
        tag: Tag::Tasks,
        summary: "Change fields of a task",
        text: "Sets what the patch mentions and leaves the rest alone, so that two clients that change different fields \
               don't hurt each other.",
        parameters: [
            vec![parameter::task_id("The task's id.")],
            parameter::of_conditional_write(),
            vec![parameter::idempotency()],
        ]
        .concat(),
        body: Some(body(
            BodyForm::MergePatch,
            "TaskPatch",
            ("done", "It is done, and has no due time any more", example::task_patch()),
        )),
        answers: vec![
            written(
                StatusCode::OK,
                "The task as it is now. (To a repeat, if it has been deleted meanwhile, the operation.)",
                either("Task"),
            )
            .sometimes(&[Answered::IdempotencyReplayed, Answered::Age]),
            buffered(Entity::Task, OperationKind::Update, shown(SyncState::Pending))
                .sometimes(&[Answered::IdempotencyReplayed]),
            no_patch(),
        ],
        problems: [
            &BODY_PROBLEMS[..],
            &conditional_problems(),
            &[Kind::KeyInUse, Kind::KeyReused],
        ]
        .concat(),
    }
}

/// `DELETE`.
pub fn delete() -> Description {
    Description {
        id: "deleteTask",
        tag: Tag::Tasks,
        summary: "Delete a task",
        text: "Deletes the task for good: its id is never used again. Deleting it again is answered alike.",
        parameters: [
            vec![parameter::task_id("The task's id.")],
            parameter::of_conditional_write(),
        ]
        .concat(),
        body: None,
        answers: vec![
            Answer::empty(StatusCode::NO_CONTENT, "Deleted.")
                .sometimes(&[Answered::SyncState, Answered::PreferenceApplied]),
            buffered_delete(
                Entity::Task,
                "Accepted while the store is away: from now on the task is gone here, and everywhere when the store is \
                 back.",
            ),
        ],
        problems: conditional_problems().to_vec(),
    }
}

/// What a write to a task that may be there can meet.
fn conditional_problems() -> [Kind; 5] {
    [
        Kind::BadHeader,
        Kind::NotFound,
        Kind::PreconditionFailed,
        Kind::BufferFull,
        Kind::StrictNotMet,
    ]
}

fn given() -> utoipa::openapi::request_body::RequestBody {
    body(
        BodyForm::Json,
        "NewTask",
        ("bread", "A task", example::new_task()),
    )
}

fn shown(sync_state: SyncState) -> Example {
    let (name, summary) = match sync_state {
        SyncState::Synced => ("synced", "As the store has it"),
        SyncState::Pending => ("pending", "As it will be"),
        SyncState::Stale => ("stale", "From this node's memory, while the store is away"),
    };
    (name, summary, example::task(sync_state))
}

fn written(
    status: StatusCode,
    description: &str,
    schema: impl Into<utoipa::openapi::RefOr<utoipa::openapi::Schema>>,
) -> Answer {
    Answer::json(status, description, schema, vec![shown(SyncState::Synced)])
        .always(&[Answered::SyncState])
        .sometimes(&[Answered::ETag, Answered::PreferenceApplied])
}

/// Where one can go from a task.
fn leading(answer: Answer) -> Answer {
    let id = [("id", "$response.body#/id")];
    ["readTask", "patchTask", "replaceTask", "deleteTask"]
        .into_iter()
        .fold(answer, |answer, operation| answer.leads_to(operation, &id))
}
