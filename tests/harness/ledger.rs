//! What clients were told, checked against what PostgreSQL holds.
//!
//! Every task that a load creates has a *mark*, the first words of its title,
//! which no other request uses; a rename keeps the mark. So a task that was
//! created twice shows even when its second row has another id, and one whose
//! request was never answered can be told from one that was.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use sqlx::Row;
use sqlx::postgres::PgConnection;
use uuid::Uuid;

/// Ends the mark within a title.
const MARK_END: char = '|';

/// Records requests and their answers; shared by all writers of a load.
#[derive(Debug)]
pub struct Ledger {
    run: String,
    tasks: Mutex<Vec<TaskRecord>>,
    answers: Mutex<BTreeMap<u16, u64>>,
    slowest: Mutex<Duration>,
}

/// Names one recorded task within its ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskNumber(usize);

#[derive(Debug, Clone)]
struct TaskRecord {
    /// Known once a create was acknowledged.
    id: Option<Uuid>,
    /// Of the newest acknowledged write; of the first request before that.
    title: String,
    /// A rename that was sent and not acknowledged (yet).
    unanswered_title: Option<String>,
    acknowledged: bool,
    deletion: Deletion,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deletion {
    /// Nobody asked for one.
    None,
    /// It was sent and not acknowledged (yet).
    Sent,
    Acknowledged,
}

/// What the comparison found. `missing`, `doubled` and `outdated` must be empty.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    /// Tasks whose creation was acknowledged, and whose deletion wasn't.
    pub acknowledged: usize,
    /// Tasks whose deletion was.
    pub deleted: usize,
    /// Those of them that are there exactly once, under their acknowledged id
    /// and with their newest acknowledged title.
    pub present_once: usize,
    /// Marks of acknowledged tasks that aren't there.
    pub missing: Vec<String>,
    /// Marks with more than one row, acknowledged or not.
    pub doubled: Vec<String>,
    /// Tasks that are there, but under another id or with another title than
    /// was acknowledged last, or although they were deleted.
    pub outdated: Vec<String>,
    /// Tasks that are there although no answer to their request came, which is
    /// allowed: nobody was told that they weren't accepted.
    pub unanswered_present: usize,
}

impl Ledger {
    /// An empty ledger whose marks begin with `run`, which no other ledger on
    /// the same database may use and which holds neither `|`, `%` nor `_`.
    pub fn new(run: &str) -> Self {
        Self {
            run: run.to_owned(),
            tasks: Mutex::default(),
            answers: Mutex::default(),
            slowest: Mutex::default(),
        }
    }

    /// Records that a task's creation is about to be requested; gives its
    /// number and its title.
    pub fn begin_task(&self) -> (TaskNumber, String) {
        let mut tasks = hold(&self.tasks);
        let number = tasks.len();
        let title = format!("{} {number}{MARK_END}", self.run);
        tasks.push(TaskRecord {
            id: None,
            title: title.clone(),
            unanswered_title: None,
            acknowledged: false,
            deletion: Deletion::None,
        });
        (TaskNumber(number), title)
    }

    /// Records a 2xx to a creation.
    pub fn acknowledge_task(&self, number: TaskNumber, id: Uuid) {
        let mut tasks = hold(&self.tasks);
        let task = &mut tasks[number.0];
        task.id = Some(id);
        task.acknowledged = true;
    }

    /// Records that a rename of an acknowledged task is about to be requested;
    /// gives the new title, which has the same mark and ends in `words`.
    pub fn begin_rename(&self, number: TaskNumber, words: &str) -> String {
        let mut tasks = hold(&self.tasks);
        let task = &mut tasks[number.0];
        let mark = task.title.split(MARK_END).next().unwrap_or_default();
        let title = format!("{mark}{MARK_END} {words}");
        task.unanswered_title = Some(title.clone());
        title
    }

    /// Records a 2xx to the rename that was begun last.
    pub fn acknowledge_rename(&self, number: TaskNumber) {
        let mut tasks = hold(&self.tasks);
        let task = &mut tasks[number.0];
        if let Some(title) = task.unanswered_title.take() {
            task.title = title;
        }
    }

    /// Records that the deletion of an acknowledged task is about to be
    /// requested.
    pub fn begin_deletion(&self, number: TaskNumber) {
        hold(&self.tasks)[number.0].deletion = Deletion::Sent;
    }

    /// Records a 2xx to that.
    pub fn acknowledge_deletion(&self, number: TaskNumber) {
        hold(&self.tasks)[number.0].deletion = Deletion::Acknowledged;
    }

    /// Counts an answer, whichever it was, and the time it took.
    pub fn count_answer(&self, status: u16, elapsed: Duration) {
        *hold(&self.answers).entry(status).or_default() += 1;
        let mut slowest = hold(&self.slowest);
        *slowest = elapsed.max(*slowest);
    }

    /// Answers so far by status code.
    pub fn answers(&self) -> BTreeMap<u16, u64> {
        hold(&self.answers).clone()
    }

    /// The longest time that an answer took.
    pub fn slowest(&self) -> Duration {
        *hold(&self.slowest)
    }

    /// The acknowledged ids.
    pub fn acknowledged_ids(&self) -> Vec<Uuid> {
        hold(&self.tasks)
            .iter()
            .filter(|task| task.acknowledged)
            .filter_map(|task| task.id)
            .collect()
    }

    /// Compares with the table `tasks`, task by task.
    ///
    /// # Errors
    /// When the table can't be read.
    pub async fn compare(&self, connection: &mut PgConnection) -> Result<Findings> {
        let rows = sqlx::query("SELECT id, title FROM tasks WHERE title LIKE $1")
            .bind(format!("{} %", self.run))
            .fetch_all(connection)
            .await
            .context("cannot read the tasks")?;
        let mut by_mark: BTreeMap<String, Vec<(Uuid, String)>> = BTreeMap::new();
        for row in rows {
            let id: Uuid = row.try_get("id").context("tasks.id")?;
            let title: String = row.try_get("title").context("tasks.title")?;
            by_mark
                .entry(mark_of(&title))
                .or_default()
                .push((id, title));
        }
        Ok(self.judge(&by_mark))
    }

    fn judge(&self, by_mark: &BTreeMap<String, Vec<(Uuid, String)>>) -> Findings {
        let mut findings = Findings::default();
        let mut unknown: BTreeSet<&String> = by_mark.keys().collect();
        for task in hold(&self.tasks).iter() {
            let mark = mark_of(&task.title);
            unknown.remove(&mark);
            let rows = by_mark.get(&mark).map(Vec::as_slice).unwrap_or_default();
            findings.count(task, &mark, rows);
        }
        // Rows under our run that nobody asked for.
        findings.doubled.extend(unknown.into_iter().cloned());
        findings
    }
}

impl Findings {
    fn count(&mut self, task: &TaskRecord, mark: &str, rows: &[(Uuid, String)]) {
        match (rows, task.deletion) {
            (_, Deletion::None) => self.count_living(task, mark, rows),
            // A tombstone has no title any more.
            ([], Deletion::Acknowledged) => self.deleted += 1,
            ([(id, title), ..], Deletion::Acknowledged) => {
                self.outdated.push(format!("{id}: {title} (deleted)"));
            }
            ([], Deletion::Sent) => {}
            (_, Deletion::Sent) => self.count_living(task, mark, rows),
        }
    }

    fn count_living(&mut self, task: &TaskRecord, mark: &str, rows: &[(Uuid, String)]) {
        if task.acknowledged {
            self.acknowledged += 1;
        }
        match (rows, task.acknowledged) {
            ([], true) => self.missing.push(mark.to_owned()),
            ([], false) => {}
            ([_], false) => self.unanswered_present += 1,
            ([(id, title)], true) if task.allows(*id, title) => self.present_once += 1,
            ([(id, title)], true) => self.outdated.push(format!("{id}: {title}")),
            (_, _) => self.doubled.push(mark.to_owned()),
        }
    }

    /// One sentence per broken promise; none when all were kept.
    pub fn broken_promises(&self) -> Vec<String> {
        let kinds = [
            ("missing", &self.missing),
            ("doubled", &self.doubled),
            ("outdated", &self.outdated),
        ];
        let broken = kinds.iter().filter(|(_, marks)| !marks.is_empty());
        broken
            .map(|(kind, marks)| {
                let some: Vec<&str> = marks.iter().take(5).map(String::as_str).collect();
                format!("{} {kind}, such as {}", marks.len(), some.join(", "))
            })
            .collect()
    }
}

impl TaskRecord {
    fn allows(&self, id: Uuid, title: &str) -> bool {
        let title_allowed = self.title == title || self.unanswered_title.as_deref() == Some(title);
        self.id == Some(id) && title_allowed
    }
}

fn mark_of(title: &str) -> String {
    title.split(MARK_END).next().unwrap_or_default().to_owned()
}

/// A writer that panicked leaves records that are whole: each is one push or
/// one assignment.
fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(entries: &[(Uuid, &str)]) -> BTreeMap<String, Vec<(Uuid, String)>> {
        let mut by_mark: BTreeMap<String, Vec<(Uuid, String)>> = BTreeMap::new();
        for (id, title) in entries {
            by_mark
                .entry(mark_of(title))
                .or_default()
                .push((*id, String::from(*title)));
        }
        by_mark
    }

    #[test]
    fn acknowledged_and_present_is_fine() {
        let ledger = Ledger::new("run");
        let (number, title) = ledger.begin_task();
        let id = Uuid::new_v4();
        ledger.acknowledge_task(number, id);
        let findings = ledger.judge(&rows(&[(id, &title)]));
        assert_eq!(findings.present_once, 1);
        assert!(findings.broken_promises().is_empty());
    }

    #[test]
    fn acknowledged_and_absent_is_missing() {
        let ledger = Ledger::new("run");
        let (number, _) = ledger.begin_task();
        ledger.acknowledge_task(number, Uuid::new_v4());
        assert_eq!(ledger.judge(&rows(&[])).missing, ["run 0"]);
    }

    #[test]
    fn two_rows_of_one_request_are_doubled() {
        let ledger = Ledger::new("run");
        let (number, title) = ledger.begin_task();
        let id = Uuid::new_v4();
        ledger.acknowledge_task(number, id);
        let findings = ledger.judge(&rows(&[(id, &title), (Uuid::new_v4(), &title)]));
        assert_eq!(findings.doubled, ["run 0"]);
        assert_eq!(findings.present_once, 0);
    }

    #[test]
    fn an_older_title_than_acknowledged_is_outdated() {
        let ledger = Ledger::new("run");
        let (number, title) = ledger.begin_task();
        let id = Uuid::new_v4();
        ledger.acknowledge_task(number, id);
        let renamed = ledger.begin_rename(number, "second");
        let unanswered = ledger.judge(&rows(&[(id, &renamed)]));
        assert_eq!(unanswered.present_once, 1);
        ledger.acknowledge_rename(number);
        assert_eq!(ledger.judge(&rows(&[(id, &renamed)])).present_once, 1);
        assert_eq!(ledger.judge(&rows(&[(id, &title)])).outdated.len(), 1);
    }

    #[test]
    fn a_deleted_task_that_is_there_is_outdated() {
        let ledger = Ledger::new("run");
        let (number, title) = ledger.begin_task();
        let id = Uuid::new_v4();
        ledger.acknowledge_task(number, id);
        ledger.begin_deletion(number);
        let there = rows(&[(id, &title)]);
        assert_eq!(ledger.judge(&there).present_once, 1);
        assert!(ledger.judge(&rows(&[])).broken_promises().is_empty());
        ledger.acknowledge_deletion(number);
        assert_eq!(ledger.judge(&there).outdated.len(), 1);
        let gone = ledger.judge(&rows(&[]));
        assert_eq!((gone.acknowledged, gone.deleted), (0, 1));
        assert!(gone.broken_promises().is_empty());
    }

    #[test]
    fn unanswered_and_present_is_reported_apart() {
        let ledger = Ledger::new("run");
        let (_, title) = ledger.begin_task();
        let findings = ledger.judge(&rows(&[(Uuid::new_v4(), &title)]));
        assert_eq!(findings.unanswered_present, 1);
        assert!(findings.broken_promises().is_empty());
    }

    #[test]
    fn a_row_that_nobody_asked_for_is_doubled() {
        let ledger = Ledger::new("run");
        let findings = ledger.judge(&rows(&[(Uuid::new_v4(), "run 7|")]));
        assert_eq!(findings.doubled, ["run 7"]);
    }
}
