//! What is served for people and tools that want to know the API.

use http::StatusCode;
use serde_json::json;
use utoipa::openapi::path::Parameter;

use super::not_modified;
use crate::openapi::answer::Answer;
use crate::openapi::description::{Description, Tag};
use crate::openapi::header::Answered;
use crate::openapi::parameter;
use crate::openapi::schema::{object, string};
use crate::pages::docs::ASSETS;
use crate::transport::problem::Kind;

/// `/openapi.json`.
pub fn openapi() -> Description {
    let whole = Answer::json(
        StatusCode::OK,
        "The description.",
        object("An OpenAPI 3.1 document."),
        vec![(
            "head",
            "Its first lines",
            json!({"openapi": "3.1.0", "info": {"title": "Holdfast"}, "paths": {}}),
        )],
    );
    document(
        "openapi",
        "This description, for tools",
        "The API as an OpenAPI 3.1 document, made from the code that serves.",
        whole,
    )
}

/// `/docs`.
pub fn docs() -> Description {
    page(
        "docs",
        "This description, for people",
        "The API to read and to try out. Nothing on the page comes from elsewhere.",
    )
}

/// `/docs/`.
pub fn docs_directory() -> Description {
    page("docsDirectory", "The same as /docs", "The same as `/docs`.")
}

/// `/docs/{asset}`.
pub fn docs_asset() -> Description {
    let file = |media_type| (media_type, string());
    let whole = [file("text/javascript"), file("text/css"), file("image/png")]
        .into_iter()
        .fold(
            Answer::empty(StatusCode::OK, "The file."),
            |answer, (media_type, schema)| answer.with_body(media_type, schema, vec![]),
        );
    let asset = parameter::one_of("asset", ASSETS, "The file's name.");
    Description {
        parameters: with_condition(asset),
        problems: vec![Kind::BadHeader, Kind::NotFound, Kind::PreconditionFailed],
        ..document(
            "docsAsset",
            "What /docs is made of",
            "Scripts, styles and pictures of `/docs`.",
            whole,
        )
    }
}

/// `/problems`.
pub fn problems() -> Description {
    page(
        "problems",
        "All problems",
        "A page that lists every problem the API can answer, each with a link to its own.",
    )
}

/// `/problems/`.
pub fn problems_directory() -> Description {
    page(
        "problemsDirectory",
        "The same as /problems",
        "The same as `/problems`.",
    )
}

/// `/problems/{name}`.
pub fn problem() -> Description {
    let name = parameter::one_of(
        "name",
        Kind::ALL.map(Kind::name),
        "The last part of the problem's `type`.",
    );
    Description {
        parameters: with_condition(name),
        problems: vec![Kind::BadHeader, Kind::NotFound, Kind::PreconditionFailed],
        ..page(
            "problem",
            "What a problem means",
            "What has happened, and what to do about it.",
        )
    }
}

fn page(id: &'static str, summary: &'static str, text: &'static str) -> Description {
    let whole = Answer::empty(StatusCode::OK, "The page.").with_body(
        "text/html",
        string(),
        vec![(
            "page",
            "Its first lines",
            json!("<!doctype html>\n<html lang=\"en\">\n…"),
        )],
    );
    document(id, summary, text, whole)
}

fn document(
    id: &'static str,
    summary: &'static str,
    text: &'static str,
    whole: Answer,
) -> Description {
    Description {
        id,
        tag: Tag::Documentation,
        summary,
        text,
        parameters: parameter::of_conditional_read(),
        body: None,
        answers: vec![
            whole.always(&[Answered::ETag]),
            not_modified().always(&[Answered::ETag]),
        ],
        problems: vec![Kind::BadHeader, Kind::PreconditionFailed],
    }
}

fn with_condition(own: Parameter) -> Vec<Parameter> {
    [vec![own], parameter::of_conditional_read()].concat()
}
