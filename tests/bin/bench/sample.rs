//! Tasks of about 500 bytes, as a client would send them, as the buffer keeps them, and as COPY reads them.
//!
//! The three are made from one number, so that what is drained and what is copied are rows of the same width.

use std::fmt::Write;

use holdfast_shared::domain::task::{Description, NewTask, Status, Tags, Title};
use holdfast_shared::domain::{
    Body, Kind, Operation, OperationId, Priority, Stamp, TaskId, Timestamp, UserId,
};
use serde_json::json;
use uuid::Uuid;

/// Users that the tasks of a backlog belong to.
const USERS: u64 = 500;

/// The words of descriptions.
const WORDS: [&str; 16] = [
    "invoice", "deliver", "before", "Tuesday", "the", "spare", "pump", "to", "workshop", "and",
    "ask", "for", "a", "signed", "receipt", "again",
];

/// Words of one description: with the other fields about 500 bytes.
const DESCRIPTION_WORDS: u64 = 62;

/// One made-up task.
#[derive(Debug, Clone)]
pub struct Sample {
    number: u64,
    title: String,
    description: String,
    tags: [&'static str; 3],
    due_at: Timestamp,
}

impl Sample {
    /// The task with this number, always the same.
    pub fn new(number: u64) -> Self {
        let word =
            |at: u64| WORDS[usize::try_from((number.wrapping_mul(31) + at * at) % 16).unwrap_or(0)];
        let mut description = String::new();
        for at in 0..DESCRIPTION_WORDS {
            description.push_str(word(at));
            description.push(' ');
        }
        Self {
            number,
            title: format!("{} {} {} no {number}", word(3), word(7), word(11)),
            description: description.trim_end().to_owned(),
            tags: [word(1), "field-service", "2026"],
            due_at: Timestamp::from_micros(
                1_800_000_000_000_000
                    + i64::try_from(number % 10_000_000).unwrap_or(0) * 60_000_000,
            ),
        }
    }

    /// The user it belongs to in a backlog.
    pub fn user(&self) -> String {
        user_of_backlog(self.number)
    }

    /// The body of a `POST`.
    pub fn json(&self) -> String {
        json!({
            "title": self.title,
            "description": self.description,
            "priority": 2,
            "due_at": self.due_at.to_string(),
            "tags": self.tags,
        })
        .to_string()
    }

    /// The operation that a `POST` of it becomes, with a new id.
    ///
    /// # Panics
    /// When the texts above break a rule of the domain.
    pub fn operation(&self, accepted_at: Timestamp) -> Operation {
        let task = NewTask {
            title: Title::parse(&self.title).expect("short"),
            description: Description::parse(&self.description).expect("short"),
            status: Status::Todo,
            priority: Priority::parse(2).expect("from 1 to 5"),
            due_at: Some(self.due_at),
            tags: Tags::new(self.tags.map(str::to_owned).to_vec()).expect("few"),
        };
        let mut change = task.into_change();
        change.created = Some(Stamp::ZERO);
        Operation {
            id: OperationId::generate(),
            stamp: Stamp::ZERO,
            user_id: UserId::parse(&self.user()).expect("a short name"),
            kind: Kind::Create,
            body: Body::Task {
                id: TaskId::generate(),
                change,
            },
            precondition: None,
            idempotency: None,
            accepted_at,
            priority: Priority::default(),
            buffered: false,
        }
    }

    /// Appends it as a line of COPY's text format, with the columns of [`COPY_COLUMNS`] and a new id.
    pub fn write_copy_line(&self, stamp: i64, line: &mut String) {
        let (id, user, due_at) = (Uuid::now_v7(), self.user(), self.due_at);
        let tags = self.tags.join(",");
        let written = writeln!(
            line,
            "{id}\t{user}\t{}\t{}\ttodo\t2\t{due_at}\t{{{tags}}}\t{stamp}\t0\t{stamp}\t{stamp}\t{stamp}\t{stamp}\t{stamp}\t{stamp}",
            self.title, self.description
        );
        written.expect("a string takes any text");
    }
}

/// The columns of `tasks` that a write sets, in the order of [`Sample::write_copy_line`].
pub const COPY_COLUMNS: &str = "id, user_id, title, description, status, priority, due_at, tags, created_stamp, \
     deleted_stamp, title_stamp, description_stamp, status_stamp, priority_stamp, due_at_stamp, tags_stamp";

/// The user of a backlog's task.
pub fn user_of_backlog(number: u64) -> String {
    format!("backlog-user-{:03}", number % USERS)
}
