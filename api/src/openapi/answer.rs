//! Answers: what a status means here, its headers, its body with examples, and where to go from there.

use http::StatusCode;
use serde_json::{Value, json};
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::example::ExampleBuilder;
use utoipa::openapi::link::LinkBuilder;
use utoipa::openapi::schema::{AllOfBuilder, ObjectBuilder};
use utoipa::openapi::{Ref, RefOr, Response, ResponseBuilder, Schema, Type};

use super::example;
use super::header::Answered;
use super::schema::{named, object, word};
use crate::transport::problem::{Kind, MEDIA_TYPE};

/// A named example of a body: its name, a line about it, and itself.
pub type Example = (&'static str, &'static str, Value);

/// An answer under construction.
pub struct Answer {
    status: StatusCode,
    response: ResponseBuilder,
}

impl Answer {
    /// An answer without a body.
    pub fn empty(status: StatusCode, description: &str) -> Self {
        Answer {
            status,
            response: ResponseBuilder::new().description(description),
        }
    }

    /// An answer with a JSON body.
    pub fn json(
        status: StatusCode,
        description: &str,
        schema: impl Into<RefOr<Schema>>,
        examples: Vec<Example>,
    ) -> Self {
        Answer::empty(status, description).with_body("application/json", schema, examples)
    }

    /// An answer that tells of these kinds of problems, which have one status: at least one.
    pub fn problem(kinds: &[Kind]) -> Self {
        let status = kinds[0].describe().2;
        let meanings = kinds.iter().map(|kind| {
            let (r#type, title, _) = kind.describe();
            format!("- [{title}]({type}): {}", kind.advice().meaning)
        });
        let description = meanings.collect::<Vec<_>>().join("\n");
        let examples = kinds
            .iter()
            .map(|kind| (kind.name(), kind.describe().1, example::problem(*kind)))
            .collect();
        let answer = Answer::empty(status, &description)
            .with_body(MEDIA_TYPE, problem_schema(status, kinds), examples)
            .always(headers_of(kinds));
        if kinds.contains(&Kind::StrictNotMet) {
            return answer.sometimes(&[Answered::PreferenceApplied]);
        }
        answer
    }

    /// Adds a body of this media type.
    pub fn with_body(
        mut self,
        media_type: &str,
        schema: impl Into<RefOr<Schema>>,
        examples: Vec<Example>,
    ) -> Self {
        let content = ContentBuilder::new()
            .schema(Some(schema))
            .examples_from_iter(named_examples(examples));
        self.response = self.response.content(media_type, content);
        self
    }

    /// Adds headers that are always there.
    pub fn always(mut self, headers: &[Answered]) -> Self {
        for header in headers {
            let definition = Ref::new(header.place());
            self.response = self.response.header_ref(header.name(), definition);
        }
        self
    }

    /// Adds headers that may be there.
    pub fn sometimes(mut self, headers: &[Answered]) -> Self {
        for header in headers {
            self.response = self.response.header(header.name(), header.sometimes());
        }
        self
    }

    /// Adds a way from here to another operation of the API: `parameters` names those of that operation, each with
    /// where in this answer its value is.
    pub fn leads_to(mut self, operation: &str, parameters: &[(&str, &str)]) -> Self {
        let mut link = LinkBuilder::new().operation_id(operation);
        for (name, expression) in parameters {
            link = link.parameter(*name, json!(expression));
        }
        self.response = self.response.link(operation, RefOr::T(link.build()));
        self
    }

    /// The answer with the headers every answer has, under its status.
    pub fn finish(self) -> (StatusCode, Response) {
        let common = self.always(&[Answered::RequestId, Answered::CacheControl, Answered::Vary]);
        (common.status, common.response.build())
    }
}

/// Examples in the form OpenAPI has them.
pub fn named_examples(
    examples: Vec<Example>,
) -> impl Iterator<Item = (&'static str, ExampleBuilder)> {
    examples.into_iter().map(|(name, summary, value)| {
        let example = ExampleBuilder::new().summary(summary).value(Some(value));
        (name, example)
    })
}

/// What every problem looks like, with the types and the status of these.
fn problem_schema(status: StatusCode, kinds: &[Kind]) -> AllOfBuilder {
    let types: Vec<&'static str> = kinds.iter().map(|kind| kind.describe().0).collect();
    let status = ObjectBuilder::new()
        .schema_type(Type::Integer)
        .enum_values(Some([json!(status.as_u16())]));
    let narrowed = object("Of these kinds.")
        .property("type", word(types))
        .property("status", status);
    AllOfBuilder::new().item(named("Problem")).item(narrowed)
}

/// The headers that all problems of these kinds have.
fn headers_of(kinds: &[Kind]) -> &'static [Answered] {
    if kinds.iter().all(|kind| kind.awaited().is_some()) {
        return &[Answered::RetryAfter];
    }
    match kinds {
        [Kind::Unauthorized] => &[Answered::WwwAuthenticate],
        [Kind::TooManyRequests] => &[
            Answered::RetryAfter,
            Answered::RateLimit,
            Answered::RateLimitPolicy,
        ],
        [Kind::MethodNotAllowed] => &[Answered::Allow],
        _ => &[],
    }
}
