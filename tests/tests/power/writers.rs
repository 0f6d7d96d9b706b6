//! Clients that write until the power goes, and note only what was acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use holdfast_tests::{Client, tokens};
use serde_json::json;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::records::Records;

/// Several, so that groups of requests share commits.
const WRITERS: usize = 6;
/// Every so manieth write renames the writer's newest task.
const RENAME_EVERY: usize = 4;

/// Writers at work; [`Writers::stop`] ends them.
#[derive(Debug)]
pub struct Writers {
    stopping: Arc<AtomicBool>,
    at_work: Vec<JoinHandle<()>>,
}

/// The user of a writer.
pub fn token_of(writer: usize) -> String {
    tokens::valid(&format!("writer-{writer}"))
}

impl Writers {
    /// Starts them against the API at `origin`.
    pub fn start(origin: &str, records: &Arc<Records>) -> Self {
        let stopping = Arc::new(AtomicBool::new(false));
        let at_work = (0..WRITERS)
            .map(|number| {
                let writer = Writer {
                    number,
                    client: Client::new(origin, &token_of(number)),
                    records: Arc::clone(records),
                    stopping: Arc::clone(&stopping),
                };
                tokio::spawn(writer.work())
            })
            .collect();
        Self { stopping, at_work }
    }

    /// Ends them, once each has had its answer or lost its connection.
    ///
    /// # Errors
    /// When one has panicked.
    pub async fn stop(self) -> Result<()> {
        self.stopping.store(true, Ordering::Relaxed);
        for writer in self.at_work {
            writer.await.context("a writer has panicked")?;
        }
        Ok(())
    }
}

struct Writer {
    number: usize,
    client: Client,
    records: Arc<Records>,
    stopping: Arc<AtomicBool>,
}

impl Writer {
    /// Ends with the first write that isn't acknowledged: from then on nothing
    /// is known of it, and a repeat would hide what became of it.
    async fn work(self) {
        let mut writes = 0;
        while !self.stopping.load(Ordering::Relaxed) {
            let renames = usize::from(writes % RENAME_EVERY == 0);
            if self.write(writes, renames).await.is_none() {
                return;
            }
            writes += 1;
        }
    }

    async fn write(&self, number: usize, renames: usize) -> Option<()> {
        let ledger = &self.records.ledger;
        let (task, title) = ledger.begin_task();
        let id = Uuid::new_v4();
        let path = format!("/tasks/{id}");
        let answer = self.client.put(&path, &json!({"title": title})).await;
        let answer = answer.ok().filter(|answer| answer.is_success())?;
        ledger.acknowledge_task(task, id);
        self.records.acknowledge(self.number, id, &answer);
        for _ in 0..renames {
            let title = ledger.begin_rename(task, &format!("renamed {number}"));
            let answer = self.client.patch(&path, &json!({"title": title})).await;
            let answer = answer.ok().filter(|answer| answer.is_success())?;
            ledger.acknowledge_rename(task);
            self.records.acknowledge(self.number, id, &answer);
        }
        Some(())
    }
}
