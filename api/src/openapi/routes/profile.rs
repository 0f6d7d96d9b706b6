//! `/api/v1/profile`.

use holdfast_shared::domain::{Entity, Kind as OperationKind};
use holdfast_shared::repository::SyncState;
use http::StatusCode;

use super::{buffered, no_patch, not_modified};
use crate::openapi::answer::{Answer, Example};
use crate::openapi::description::{BODY_PROBLEMS, Description, Tag, body};
use crate::openapi::example;
use crate::openapi::header::Answered;
use crate::openapi::parameter;
use crate::openapi::schema::named;
use crate::transport::header::BodyForm;
use crate::transport::problem::Kind;

/// What a write of the profile can meet besides what any body can.
const WRITE_PROBLEMS: [Kind; 4] = [
    Kind::BadHeader,
    Kind::PreconditionFailed,
    Kind::BufferFull,
    Kind::StrictNotMet,
];

/// `GET`.
pub fn read() -> Description {
    Description {
        id: "readProfile",
        tag: Tag::Profile,
        summary: "Read my profile",
        text: "The profile of the token's user. There always is one: it is made at first sight from the token's claims \
               `email`, `name`, `picture`, `locale` and `zoneinfo`.",
        parameters: parameter::of_conditional_read(),
        body: None,
        answers: vec![
            Answer::json(
                StatusCode::OK,
                "The profile.",
                named("Profile"),
                vec![shown(SyncState::Synced), shown(SyncState::Stale)],
            )
            .always(&[Answered::ETag, Answered::SyncState])
            .sometimes(&[Answered::Age]),
            not_modified()
                .always(&[Answered::ETag, Answered::SyncState])
                .sometimes(&[Answered::Age]),
        ],
        problems: vec![Kind::BadHeader, Kind::PreconditionFailed],
    }
}

/// `PUT`.
pub fn replace() -> Description {
    Description {
        id: "replaceProfile",
        tag: Tag::Profile,
        summary: "Replace my profile",
        text: "Sets every field: what the body leaves out is emptied. Can be repeated as it is.",
        parameters: parameter::of_conditional_write(),
        body: Some(body(
            BodyForm::Json,
            "NewProfile",
            ("ann", "A profile", example::new_profile()),
        )),
        answers: vec![
            written("Replaced."),
            buffered(
                Entity::Profile,
                OperationKind::Update,
                shown(SyncState::Pending),
            ),
        ],
        problems: [&BODY_PROBLEMS[..], &WRITE_PROBLEMS].concat(),
    }
}

/// `PATCH`.
pub fn patch() -> Description {
    Description {
        id: "patchProfile",
        tag: Tag::Profile,
        summary: "Change fields of my profile",
        text: "Sets what the patch mentions and leaves the rest alone. `preferences` is one field, replaced whole.",
        parameters: [
            parameter::of_conditional_write(),
            vec![parameter::idempotency()],
        ]
        .concat(),
        body: Some(body(
            BodyForm::MergePatch,
            "ProfilePatch",
            (
                "name",
                "Another name, and no words about oneself",
                example::profile_patch(),
            ),
        )),
        answers: vec![
            written("The profile as it is now.")
                .sometimes(&[Answered::IdempotencyReplayed, Answered::Age]),
            buffered(
                Entity::Profile,
                OperationKind::Update,
                shown(SyncState::Pending),
            )
            .sometimes(&[Answered::IdempotencyReplayed]),
            no_patch(),
        ],
        problems: [
            &BODY_PROBLEMS[..],
            &WRITE_PROBLEMS,
            &[Kind::KeyInUse, Kind::KeyReused],
        ]
        .concat(),
    }
}

fn written(description: &str) -> Answer {
    Answer::json(
        StatusCode::OK,
        description,
        named("Profile"),
        vec![shown(SyncState::Synced)],
    )
    .always(&[Answered::ETag, Answered::SyncState])
    .sometimes(&[Answered::PreferenceApplied])
}

fn shown(sync_state: SyncState) -> Example {
    let (name, summary) = match sync_state {
        SyncState::Synced => ("synced", "As the store has it"),
        SyncState::Pending => ("pending", "As it will be"),
        SyncState::Stale => ("stale", "From this node's memory, while the store is away"),
    };
    (name, summary, example::profile(sync_state))
}
