//! What probes and scrapers ask.

use holdfast_shared::repository::{BufferReport, Mode};
use http::StatusCode;
use serde_json::json;

use crate::openapi::answer::Answer;
use crate::openapi::description::{Description, Tag};
use crate::openapi::example;
use crate::openapi::schema::{Fields, named, object, string, word};
use crate::transport::problem::{Kind, MEDIA_TYPE};

/// `/livez`.
pub fn livez() -> Description {
    probe(
        "livez",
        "Is the process alive?",
        "Answers as long as the process runs, whatever its stores do: for a liveness probe.",
        "alive",
    )
}

/// `/readyz`.
pub fn readyz() -> Description {
    Description {
        problems: vec![Kind::NotReady],
        ..probe(
            "readyz",
            "Can it serve?",
            "503 only when PostgreSQL is away and the buffer can't be used: for a readiness probe. A full buffer stays \
             ready.",
            "ready",
        )
    }
}

/// `/health`.
pub fn health() -> Description {
    let report = |status, description, examples| {
        Answer::json(status, description, named("Health"), examples)
    };
    Description {
        id: "health",
        tag: Tag::Health,
        summary: "How things stand",
        text: "The stores, the buffer and the daemon as this node sees them.",
        parameters: Vec::new(),
        body: None,
        answers: vec![
            report(
                StatusCode::OK,
                "The node can serve.",
                vec![
                    (
                        "online",
                        "All is well",
                        example::health(Mode::Online, BufferReport::OK),
                    ),
                    ("offline", "PostgreSQL is away; writes are buffered", example::health(Mode::Offline, BufferReport::OK)),
                ],
            ),
            report(
                StatusCode::SERVICE_UNAVAILABLE,
                "The node can't serve: PostgreSQL is away and the buffer can't be used. The same report. (A problem when \
                 even that could not be found out in time.)",
                vec![(
                    "unavailable",
                    "Neither PostgreSQL nor the buffer can be used",
                    example::health(Mode::Offline, BufferReport::UNAVAILABLE),
                )],
            )
            .with_body(
                MEDIA_TYPE,
                named("Problem"),
                vec![("timed-out", "Took too long", example::problem(Kind::TimedOut))],
            ),
        ],
        problems: Vec::new(),
    }
}

/// `/metrics`.
pub fn metrics() -> Description {
    Description {
        id: "metrics",
        tag: Tag::Health,
        summary: "Metrics for Prometheus",
        text: "All metrics of the process in Prometheus' text format.",
        parameters: Vec::new(),
        body: None,
        answers: vec![Answer::empty(StatusCode::OK, "The metrics.").with_body(
            "text/plain",
            string(),
            vec![(
                "some",
                "Some of them",
                json!("# TYPE holdfast_store_up gauge\nholdfast_store_up{store=\"postgres\"} 1\n"),
            )],
        )],
        problems: Vec::new(),
    }
}

fn probe(
    id: &'static str,
    summary: &'static str,
    text: &'static str,
    status: &'static str,
) -> Description {
    let schema = object("Yes.").always("status", word([status]));
    Description {
        id,
        tag: Tag::Health,
        summary,
        text,
        parameters: Vec::new(),
        body: None,
        answers: vec![Answer::json(
            StatusCode::OK,
            "Yes.",
            schema,
            vec![("yes", "Yes", json!({"status": status}))],
        )],
        problems: Vec::new(),
    }
}
