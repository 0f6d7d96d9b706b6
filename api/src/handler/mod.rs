//! One module per resource: what each route does, from the request's head and body to an answer or a problem.
//!
//! Handlers are plain functions that return values; failures are [`Problem`]s, never rejections of the framework.

pub mod documents;
pub mod health;
pub mod operations;
pub mod profile;
pub mod sessions;
pub mod tasks;

use bytes::Bytes;
use holdfast_shared::domain::{Idempotency, Rejection, TaskId};
use holdfast_shared::repository::{
    Awaited, Handling, Hindrance, ReadError, Repository, WriteError, WritePath, Written,
};
use http::{HeaderMap, Method};
use metrics_exporter_prometheus::PrometheusHandle;
use sha2::{Digest, Sha256};
use warp::reply::Response;

use crate::lifecycle::PhaseWatch;
use crate::middleware::auth::{Caller, expect_in_force};
use crate::middleware::rate::RateLimit;
use crate::middleware::token::TokenVerifier;
use crate::pages::Documents;
use crate::transport::body::{self, BodyStream};
use crate::transport::header::{self, BodyForm};
use crate::transport::problem::{Kind, Problem};
use crate::transport::response::{self, Resource, Verb};
use crate::transport::{condition, prefer};
use crate::usecase::Terms;

/// What all handlers share.
pub struct App {
    /// Everything that is kept.
    pub repository: Repository,
    /// Who is let in.
    pub verifier: TokenVerifier,
    /// How much a user may send, where that is limited.
    pub rate_limit: Option<RateLimit>,
    /// What `/metrics` shows.
    pub metrics: PrometheusHandle,
    /// What tells people and tools what this API is.
    pub documents: Documents,
    /// Whether the process is about to end.
    pub phase: PhaseWatch,
}

/// A request without its body.
#[derive(Debug)]
pub struct Head {
    /// Its method.
    pub method: Method,
    /// Its path, as sent.
    pub path: String,
    /// What stands for the parameter of the route's template, decoded; empty where it has none.
    pub parameter: String,
    /// Its query, as sent; empty where it has none.
    pub query: String,
    /// Its headers.
    pub headers: HeaderMap,
}

impl Head {
    /// The task the path names.
    ///
    /// # Errors
    /// 404 when it can't be a task's id.
    fn task_id(&self) -> Result<TaskId, Problem> {
        TaskId::parse(&self.parameter).ok_or_else(Problem::not_found)
    }

    /// Reads a body that has to be of this form. That may take a while, in which the caller's session may be revoked.
    ///
    /// # Errors
    /// 415, those of [`body::read`], and 401.
    async fn read_body(
        &self,
        app: &App,
        caller: &Caller,
        form: BodyForm,
        body: BodyStream,
    ) -> Result<Bytes, Problem> {
        header::require_form(&self.headers, form)?;
        let body = body::read(&self.headers, body).await?;
        expect_in_force(&app.repository, caller)?;
        Ok(body)
    }

    /// The terms of a write that has nothing to compare with, such as the creation of something new.
    ///
    /// # Errors
    /// 400 naming a bad header.
    fn terms(&self, caller: &Caller) -> Result<Terms, Problem> {
        Ok(Terms {
            user: caller.user.clone(),
            handling: prefer::handling(&self.headers),
            priority: header::sync_priority(&self.headers)?,
            precondition: None,
            idempotency: None,
        })
    }

    /// The terms of a write to something that may be there.
    ///
    /// # Errors
    /// 400 naming a bad header.
    fn conditional_terms(&self, caller: &Caller) -> Result<Terms, Problem> {
        Ok(Terms {
            precondition: condition::of_write(&self.headers)?,
            ..self.terms(caller)?
        })
    }

    /// What `Idempotency-Key` promises of this request.
    ///
    /// # Errors
    /// 400 when the key is bad.
    fn idempotency(&self, body: &[u8]) -> Result<Option<Idempotency>, Problem> {
        let key = header::idempotency_key(&self.headers)?;
        Ok(key.map(|key| Idempotency {
            key,
            fingerprint: self.fingerprint(body),
        }))
    }

    /// SHA-256 of method, path and body. Neither method nor path can hold a line feed.
    fn fingerprint(&self, body: &[u8]) -> [u8; 32] {
        let mut hash = Sha256::new();
        for part in [
            self.method.as_str().as_bytes(),
            b"\n",
            self.path.as_bytes(),
            b"\n",
            body,
        ] {
            hash.update(part);
        }
        hash.finalize().into()
    }
}

/// The answer to a write of a task or a profile.
fn answer_write(
    written: Result<Written, WriteError>,
    handling: Handling,
    resource: Resource<'_>,
    verb: Verb,
) -> Result<Response, Problem> {
    let written = written.map_err(|error| write_problem(error, verb))?;
    let mut answer = response::written(&written, resource, verb);
    if written.path == WritePath::Direct {
        note_direct(handling, &mut answer);
    }
    Ok(answer)
}

/// Where nothing was buffered, a wish for strict handling was met.
fn note_direct(handling: Handling, answer: &mut Response) {
    if handling == Handling::Strict {
        prefer::note_strict(answer);
    }
}

/// A write that wasn't accepted, as the client of this verb is told.
fn write_problem(error: WriteError, verb: Verb) -> Problem {
    match error {
        WriteError::Rejected(rejection) => rejection_problem(rejection, verb),
        WriteError::KeyInUse => Problem::new(
            Kind::KeyInUse,
            "the first request with this Idempotency-Key is still under way",
        ),
        WriteError::Full => Problem::new(
            Kind::BufferFull,
            "the store is away and the buffer takes no more; try again later",
        ),
        WriteError::Unavailable => Problem::new(
            Kind::Unavailable,
            "neither the store nor the buffer takes writes now; try again later",
        ),
        WriteError::NotDirect(hindrance) => strict_problem(hindrance),
    }
}

/// A write that was to be handled strictly and could not be made in its store.
fn strict_problem(hindrance: Hindrance) -> Problem {
    let (detail, awaited) = match hindrance {
        Hindrance::StoreAway => (
            "the store is away, and strict handling was asked for: this request wrote nothing",
            Awaited::Postgres,
        ),
        Hindrance::EarlierWaits => (
            "earlier writes of this wait in the buffer, and strict handling was asked for: this request wrote nothing",
            Awaited::Drain,
        ),
        Hindrance::NotMade => (
            "the store failed, and strict handling was asked for: this request wrote nothing",
            Awaited::Postgres,
        ),
        Hindrance::OutcomeUnknown => (
            "the store did not answer in time, and strict handling was asked for: the write may have taken effect, \
             or may still; read it, or repeat it with the same Idempotency-Key",
            Awaited::Postgres,
        ),
    };
    prefer::noted_strict(Problem::new(Kind::StrictNotMet, detail).awaiting(awaited))
}

fn rejection_problem(rejection: Rejection, verb: Verb) -> Problem {
    match rejection {
        Rejection::Deleted if verb == Verb::Replace => {
            Problem::new(Kind::Gone, "this was deleted; use a new id for a new one")
        }
        // Only a key gives a new task an id that may have been used.
        Rejection::Deleted if verb == Verb::Create => Problem::new(
            Kind::Gone,
            "the task of this Idempotency-Key was deleted; use a new key for a new one",
        ),
        Rejection::NotFound | Rejection::NotOwner | Rejection::Deleted => Problem::not_found(),
        Rejection::PreconditionFailed => condition::failed(),
        Rejection::KeyReused => Problem::new(
            Kind::KeyReused,
            "this Idempotency-Key was used for another request; use a new one",
        ),
        Rejection::TooOld => Problem::new(
            Kind::PreconditionFailed,
            "the condition is too old to be judged; read again and repeat",
        ),
    }
}

/// A read without an answer.
fn read_problem(error: ReadError) -> Problem {
    match error {
        ReadError::Unavailable => Problem::unavailable(),
    }
}
