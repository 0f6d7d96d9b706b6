//! `/api/v1/sessions`.

use holdfast_shared::domain::Entity;
use http::StatusCode;

use super::buffered_delete;
use crate::openapi::answer::Answer;
use crate::openapi::description::{Description, Tag};
use crate::openapi::example;
use crate::openapi::header::Answered;
use crate::openapi::parameter;
use crate::openapi::schema::named;
use crate::transport::problem::Kind;

/// `GET`.
pub fn list() -> Description {
    Description {
        id: "listSessions",
        tag: Tag::Sessions,
        summary: "List my sessions",
        text: "Where the user is logged in: every session that was seen and whose token has not expired.",
        parameters: Vec::new(),
        body: None,
        answers: vec![Answer::json(
            StatusCode::OK,
            "The sessions.",
            named("SessionPage"),
            vec![("one", "The one that asks", example::session_page())],
        )],
        problems: Vec::new(),
    }
}

/// `DELETE` of the one that asks.
pub fn log_out() -> Description {
    Description {
        id: "logOut",
        tag: Tag::Sessions,
        summary: "Log out",
        text: "Ends the session that asks. Its tokens are refused from then on.",
        parameters: Vec::new(),
        body: None,
        answers: ended(),
        problems: vec![Kind::BufferFull],
    }
}

/// `DELETE` of any.
pub fn revoke() -> Description {
    Description {
        id: "revokeSession",
        tag: Tag::Sessions,
        summary: "End a session",
        text: "Ends one of the user's sessions. Its tokens are refused from then on: here at once, on other nodes within a \
               second while Redis answers.",
        parameters: vec![parameter::session()],
        body: None,
        answers: ended(),
        problems: vec![Kind::NotFound, Kind::BufferFull],
    }
}

fn ended() -> Vec<Answer> {
    vec![
        Answer::empty(StatusCode::NO_CONTENT, "Ended, here and everywhere.")
            .always(&[Answered::SyncState]),
        buffered_delete(
            Entity::Session,
            "Ended on this node; other nodes learn of it when Redis is back.",
        ),
    ]
}
