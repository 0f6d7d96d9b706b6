//! What clients of the power cuts were told, and what is found of it afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use holdfast_tests::{Answer, Ledger, Node};
use sqlx::Row;
use sqlx::postgres::PgConnection;
use uuid::Uuid;

/// Most items that `syncd items list` shows.
pub const LISTED_MAX: usize = 50_000;

/// One acknowledged write, by what proves that it was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accepted {
    /// Answered 202: the operation waits or has been applied.
    Buffered {
        /// The writer whose operation it is.
        writer: usize,
        /// The operation's id.
        operation: String,
    },
    /// Answered 200 or 201: the task is in PostgreSQL.
    Direct {
        /// The task.
        task: Uuid,
    },
}

/// Everything that was acknowledged.
#[derive(Debug)]
pub struct Records {
    /// The tasks and their titles.
    pub ledger: Ledger,
    accepted: Mutex<Vec<Accepted>>,
}

impl Records {
    /// None yet; `run` marks the tasks.
    pub fn new(run: &str) -> Self {
        Self {
            ledger: Ledger::new(run),
            accepted: Mutex::default(),
        }
    }

    /// Notes the acknowledged write of a writer, by its answer.
    pub fn acknowledge(&self, writer: usize, task: Uuid, answer: &Answer) {
        let location = answer.header("operation-location").unwrap_or_default();
        let accepted = match location.rsplit_once('/') {
            Some((_, operation)) if answer.status() == 202 => Accepted::Buffered {
                writer,
                operation: operation.to_owned(),
            },
            _ => Accepted::Direct { task },
        };
        self.hold().push(accepted);
    }

    /// What was acknowledged from the `first` on.
    pub fn since(&self, first: usize) -> Vec<Accepted> {
        self.hold()[first..].to_vec()
    }

    /// How many writes were acknowledged.
    pub fn count(&self) -> usize {
        self.hold().len()
    }

    fn hold(&self) -> MutexGuard<'_, Vec<Accepted>> {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is there after a cut.
#[derive(Debug, Default)]
pub struct Found {
    waiting: BTreeMap<String, usize>,
    applied: BTreeSet<String>,
    tasks: BTreeSet<Uuid>,
    /// The ids under which a title is to be found; no two requests ask for one.
    by_title: BTreeMap<String, BTreeSet<Uuid>>,
}

/// How the acknowledged writes fared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// In the buffer, once.
    pub waiting: usize,
    /// In PostgreSQL.
    pub applied: usize,
    /// In neither.
    pub lost: usize,
    /// Twice in the buffer, or a task that was made twice.
    pub doubled: usize,
}

impl Found {
    /// Looks into the buffer as `syncd items` does, while no process has it open.
    ///
    /// # Errors
    /// When the buffer can't be read.
    pub async fn in_buffer(node: &Node) -> Result<Self> {
        let limit = LISTED_MAX.to_string();
        let listed = node
            .syncd(&["items", "list", "--json", "--limit", &limit])
            .await?;
        ensure!(listed.code == Some(0), "syncd items: {}", listed.stderr);
        ensure!(!listed.stderr.contains("cut off"), "{}", listed.stderr);
        let mut found = Self::default();
        for item in listed.json()?.as_array().context("no array of items")? {
            let id = item["id"].as_str().context("an item without an id")?;
            *found.waiting.entry(id.to_owned()).or_default() += 1;
            let (Some(title), Some(task)) =
                (item["fields"]["title"].as_str(), item["entity_id"].as_str())
            else {
                continue;
            };
            let tasks = found.by_title.entry(title.to_owned()).or_default();
            tasks.insert(task.parse().context("a task's id")?);
        }
        Ok(found)
    }

    /// Adds what PostgreSQL holds.
    ///
    /// # Errors
    /// When it can't be read.
    pub async fn and_in_postgres(mut self, connection: &mut PgConnection) -> Result<Self> {
        let operations = sqlx::query("SELECT id FROM applied_operations")
            .fetch_all(&mut *connection)
            .await
            .context("cannot read applied_operations")?;
        for row in operations {
            let id: Uuid = row.try_get("id").context("applied_operations.id")?;
            self.applied.insert(id.to_string());
        }
        let tasks = sqlx::query("SELECT id, title FROM tasks")
            .fetch_all(connection)
            .await
            .context("cannot read tasks")?;
        for row in tasks {
            let id: Uuid = row.try_get("id").context("tasks.id")?;
            let title: String = row.try_get("title").context("tasks.title")?;
            self.tasks.insert(id);
            self.by_title.entry(title).or_default().insert(id);
        }
        Ok(self)
    }

    /// Compares with what was acknowledged, one by one.
    pub fn tally(&self, accepted: &[Accepted]) -> Tally {
        let mut tally = Tally {
            doubled: self
                .by_title
                .values()
                .filter(|tasks| tasks.len() > 1)
                .count(),
            ..Tally::default()
        };
        tally.doubled += self.waiting.values().filter(|times| **times > 1).count();
        for write in accepted {
            let (waits, applied) = match write {
                Accepted::Buffered { operation, .. } => (
                    self.waiting.contains_key(operation),
                    self.applied.contains(operation),
                ),
                Accepted::Direct { task } => (false, self.tasks.contains(task)),
            };
            match (waits, applied) {
                (_, true) => tally.applied += 1,
                (true, false) => tally.waiting += 1,
                (false, false) => tally.lost += 1,
            }
        }
        tally
    }
}
