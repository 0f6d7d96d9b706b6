//! What is said of one route beyond what its place in the table says already.

use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::path::Parameter;
use utoipa::openapi::request_body::{RequestBody, RequestBodyBuilder};
use utoipa::openapi::{Content, Required};

use super::answer::{Answer, Example, named_examples};
use super::schema::named;
use crate::transport::body::MAX_BODY_BYTES;
use crate::transport::header::BodyForm;
use crate::transport::problem::Kind;

/// What operations are grouped by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    /// Tasks.
    Tasks,
    /// The profile.
    Profile,
    /// What became of writes.
    Operations,
    /// Sessions.
    Sessions,
    /// Probes and metrics.
    Health,
    /// This description itself.
    Documentation,
}

impl Tag {
    /// Every one, in the order they are shown.
    pub const ALL: [Tag; 6] = [
        Tag::Tasks,
        Tag::Profile,
        Tag::Operations,
        Tag::Sessions,
        Tag::Health,
        Tag::Documentation,
    ];

    /// Its name and what it is about.
    pub fn text(self) -> (&'static str, &'static str) {
        match self {
            Tag::Tasks => ("Tasks", "What is to be done. Nobody sees another user's."),
            Tag::Profile => (
                "Profile",
                "Who the token's user is; made at first sight from the token's claims.",
            ),
            Tag::Operations => (
                "Operations",
                "What became of writes that were buffered, or that have an `Idempotency-Key`.",
            ),
            Tag::Sessions => ("Sessions", "Where the user is logged in, and ending that."),
            Tag::Health => (
                "Health",
                "How things stand: for probes, scrapers and people. Open to everybody.",
            ),
            Tag::Documentation => (
                "Documentation",
                "This description, and a page about each problem. Open to everybody.",
            ),
        }
    }
}

/// What is said of one route.
pub struct Description {
    /// Its name in generated clients.
    pub id: &'static str,
    /// Its group.
    pub tag: Tag,
    /// What it does, in a few words.
    pub summary: &'static str,
    /// What it does, in Markdown.
    pub text: &'static str,
    /// Its parameters, but for those that every request has.
    pub parameters: Vec<Parameter>,
    /// The body it takes.
    pub body: Option<RequestBody>,
    /// What it answers when all goes well.
    pub answers: Vec<Answer>,
    /// What it answers else, but for what any request may meet.
    pub problems: Vec<Kind>,
}

/// What any body may meet.
pub const BODY_PROBLEMS: [Kind; 6] = [
    Kind::MalformedJson,
    Kind::UnreadableBody,
    Kind::BodyTimeout,
    Kind::BodyTooLarge,
    Kind::UnsupportedMediaType,
    Kind::InvalidFields,
];

/// A body of this form and schema, that has to be there.
pub fn body(form: BodyForm, schema: &str, example: Example) -> RequestBody {
    let content = || -> Content {
        ContentBuilder::new()
            .schema(Some(named(schema)))
            .examples_from_iter(named_examples(vec![example.clone()]))
            .build()
    };
    let described = RequestBodyBuilder::new()
        .description(Some(format!("Up to {MAX_BODY_BYTES} bytes, in UTF-8.")))
        .required(Some(Required::True));
    let taken = form.media_types().iter();
    taken
        .fold(described, |body, media_type| {
            body.content(*media_type, content())
        })
        .build()
}
