//! How stores fail, sorted by what the caller can do about it.

use std::borrow::Cow;
use std::error::Error;

/// What a failure of a store calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureClass {
    /// The store can't be used by anybody now: keep the work, and wait until it is back.
    Unavailable,
    /// The store lives, but other work was in the way: put this off, and go on with other resources.
    Contended,
    /// The store refuses this very work: it counts as a try.
    Item,
    /// Nothing will work until somebody mends the deployment (a missing migration, a wrong password): stop, and say
    /// so.
    Systemic,
}

/// A call to a store that failed. Its text is our own, without addresses, secrets or data; what the driver said is
/// its [source](Error::source), for logs only.
#[derive(Debug, thiserror::Error)]
#[error("{summary}")]
pub struct StoreError {
    summary: Cow<'static, str>,
    class: FailureClass,
    answer: Answer,
    spoils_connection: bool,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// What the store itself said.
#[derive(Debug)]
enum Answer {
    /// It was not asked.
    NotAsked,
    /// It said no, with this code.
    Refusal { sqlstate: Option<String> },
    /// It may have done what it was asked to; the answer got lost.
    Lost,
}

impl StoreError {
    /// A failure with this meaning, before the store was asked to write anything.
    pub fn new(class: FailureClass, summary: impl Into<Cow<'static, str>>) -> Self {
        StoreError {
            summary: summary.into(),
            class,
            answer: Answer::NotAsked,
            spoils_connection: false,
            source: None,
        }
    }

    /// What it calls for.
    pub fn class(&self) -> FailureClass {
        self.class
    }

    /// PostgreSQL's code for it, when it was PostgreSQL that said no.
    pub fn sqlstate(&self) -> Option<&str> {
        match &self.answer {
            Answer::Refusal { sqlstate } => sqlstate.as_deref(),
            Answer::NotAsked | Answer::Lost => None,
        }
    }

    /// Whether the work may have been done all the same: the answer got lost after the request had been sent.
    pub fn outcome_unknown(&self) -> bool {
        matches!(self.answer, Answer::Lost)
    }

    /// The store did not answer within the call's deadline.
    pub(super) fn answer_late(store: &str) -> Self {
        StoreError::new(
            FailureClass::Unavailable,
            format!("{store} did not answer in time"),
        )
        .with_answer_lost()
    }

    /// The store did not let anybody in within the deadline.
    pub(super) fn connection_late(store: &str) -> Self {
        StoreError::new(
            FailureClass::Unavailable,
            format!("{store} did not accept a connection in time"),
        )
    }

    /// No connection of our own came free within the deadline, so the store was not even asked. If it hangs, those
    /// who hold the connections say so.
    pub(super) fn no_connection_free(store: &str) -> Self {
        StoreError::new(
            FailureClass::Contended,
            format!("all connections to {store} are busy"),
        )
    }

    pub(super) fn caused_by(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same, said of another than the store itself.
    pub(super) fn of(mut self, whom: &str) -> Self {
        self.summary = format!("of {whom}: {}", self.summary).into();
        self
    }

    pub(super) fn with_refusal(mut self, sqlstate: Option<&str>) -> Self {
        self.answer = Answer::Refusal {
            sqlstate: sqlstate.map(str::to_owned),
        };
        self
    }

    pub(super) fn with_answer_lost(mut self) -> Self {
        self.answer = Answer::Lost;
        self
    }

    /// The connection would go on failing like this, though the store answered in order.
    pub(super) fn with_connection_spoiled(mut self) -> Self {
        self.spoils_connection = true;
        self
    }

    /// Whether the store answered in order, so that the connection can be used again.
    pub(super) fn leaves_connection_sound(&self) -> bool {
        matches!(self.answer, Answer::Refusal { .. }) && !self.spoils_connection
    }
}
