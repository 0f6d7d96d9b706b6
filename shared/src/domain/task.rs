//! Tasks: their fields, the rules of each, and the record they merge as.

use serde::{Deserialize, Serialize};

use super::record::{ETag, Register};
use super::stamp::{Stamp, Timestamp};
use super::text::{Violation, check_text};

/// A task's title: 1 to 200 characters after trimming.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Title(String);

impl Title {
    /// Most characters.
    pub const MAX_CHARACTERS: usize = 200;

    /// Trims and checks.
    ///
    /// # Errors
    /// A [`Violation`] naming the rule.
    pub fn parse(text: &str) -> Result<Self, Violation> {
        let trimmed = text.trim();
        check_text(trimmed, 1, Title::MAX_CHARACTERS)?;
        Ok(Title(trimmed.to_owned()))
    }

    /// From a store, which holds only what was checked.
    pub fn from_stored(text: String) -> Self {
        Title(text)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A task's description: up to 10 000 characters, empty by default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description(String);

impl Description {
    /// Most characters.
    pub const MAX_CHARACTERS: usize = 10_000;

    /// Checks.
    ///
    /// # Errors
    /// A [`Violation`] naming the rule.
    pub fn parse(text: &str) -> Result<Self, Violation> {
        check_text(text, 0, Description::MAX_CHARACTERS)?;
        Ok(Description(text.to_owned()))
    }

    /// From a store, which holds only what was checked.
    pub fn from_stored(text: String) -> Self {
        Description(text)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Where a task stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Status {
    /// Not begun.
    #[default]
    Todo,
    /// Begun.
    InProgress,
    /// Finished.
    Done,
    /// Given up.
    Cancelled,
}

impl Status {
    /// Every status, in the contract's order.
    pub const ALL: [Status; 4] = [
        Status::Todo,
        Status::InProgress,
        Status::Done,
        Status::Cancelled,
    ];

    /// The contract's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Todo => "todo",
            Status::InProgress => "in_progress",
            Status::Done => "done",
            Status::Cancelled => "cancelled",
        }
    }

    /// Parses the contract's word.
    ///
    /// # Errors
    /// A [`Violation`] that lists the words.
    pub fn parse(text: &str) -> Result<Self, Violation> {
        Status::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| Violation::new("must be one of todo, in_progress, done, cancelled"))
    }
}

/// How urgent something is: 1 (first) to 5. Of a task, what its owner says; of an operation, its place in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Priority(u8);

impl Priority {
    /// Every priority, the most urgent first.
    pub const ALL: [Priority; 5] = [
        Priority(1),
        Priority(2),
        Priority(3),
        Priority(4),
        Priority(5),
    ];

    /// Checks the range.
    ///
    /// # Errors
    /// A [`Violation`] naming the range.
    pub fn parse(number: i64) -> Result<Self, Violation> {
        match u8::try_from(number) {
            Ok(number @ 1..=5) => Ok(Priority(number)),
            _ => Err(Violation::new("must be a whole number from 1 to 5")),
        }
    }

    /// 1 to 5.
    pub fn number(self) -> u8 {
        self.0
    }
}

impl Default for Priority {
    fn default() -> Self {
        Priority(3)
    }
}

/// A task's tags: up to 20, each of 1 to 50 characters after trimming, in the order given, none twice.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tags(Vec<String>);

impl Tags {
    /// Most tags of one task.
    pub const MAX: usize = 20;

    /// Most characters of one tag.
    pub const MAX_CHARACTERS: usize = 50;

    /// Trims and checks one tag.
    ///
    /// # Errors
    /// A [`Violation`] naming the rule.
    pub fn parse_one(text: &str) -> Result<String, Violation> {
        let trimmed = text.trim();
        check_text(trimmed, 1, Tags::MAX_CHARACTERS)?;
        Ok(trimmed.to_owned())
    }

    /// Collects checked tags, dropping repeats.
    ///
    /// # Errors
    /// A [`Violation`] when there are more than [`Tags::MAX`].
    pub fn new(tags: Vec<String>) -> Result<Self, Violation> {
        if tags.len() > Tags::MAX {
            return Err(Violation::new(format!(
                "must have at most 20 tags, has {}",
                tags.len()
            )));
        }
        let mut unique: Vec<String> = Vec::with_capacity(tags.len());
        for tag in tags {
            if !unique.contains(&tag) {
                unique.push(tag);
            }
        }
        Ok(Tags(unique))
    }

    /// From a store, which holds only what was checked.
    pub fn from_stored(tags: Vec<String>) -> Self {
        Tags(tags)
    }

    /// The tags.
    pub fn as_slice(&self) -> &[String] {
        &self.0
    }
}

record! {
    /// A task, or a change of one.
    TaskState {
        /// What is to be done.
        title: Title,
        /// More about it.
        description: Description,
        /// Where it stands.
        status: Status,
        /// How urgent it is.
        priority: Priority,
        /// When it is due.
        due_at: Option<Timestamp>,
        /// Its labels.
        tags: Tags,
    }
}

/// What a client gives for a whole task: what `POST` and `PUT` set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTask {
    /// What is to be done.
    pub title: Title,
    /// More about it.
    pub description: Description,
    /// Where it stands.
    pub status: Status,
    /// How urgent it is.
    pub priority: Priority,
    /// When it is due.
    pub due_at: Option<Timestamp>,
    /// Its labels.
    pub tags: Tags,
}

impl NewTask {
    /// The change that sets every field, not yet stamped and without `created`.
    pub fn into_change(self) -> TaskState {
        let unstamped = Stamp::ZERO;
        TaskState {
            created: None,
            deleted: None,
            title: Some(Register::new(self.title, unstamped)),
            description: Some(Register::new(self.description, unstamped)),
            status: Some(Register::new(self.status, unstamped)),
            priority: Some(Register::new(self.priority, unstamped)),
            due_at: Some(Register::new(self.due_at, unstamped)),
            tags: Some(Register::new(self.tags, unstamped)),
        }
    }
}

impl TaskState {
    /// The entity tag of this record as a whole row.
    pub fn etag(&self) -> ETag {
        self.etag_of("")
    }

    /// Whether every field is known and it isn't deleted: whether it can be shown.
    pub fn is_complete(&self) -> bool {
        self.created.is_some()
            && self.title.is_some()
            && self.description.is_some()
            && self.status.is_some()
            && self.priority.is_some()
            && self.due_at.is_some()
            && self.tags.is_some()
    }

    /// Bytes of its texts as far as they are known: the title, the description and the tags.
    pub fn text_bytes(&self) -> usize {
        let title = self.title.as_ref().map(|own| own.value.as_str().len());
        let description = self
            .description
            .as_ref()
            .map(|own| own.value.as_str().len());
        let tags = self.tags.as_ref().map(|own| {
            own.value
                .as_slice()
                .iter()
                .map(|tag| tag.as_str().len())
                .sum()
        });
        [title, description, tags].into_iter().flatten().sum()
    }

    /// When the write that last set `done` was made, if the task is done.
    pub fn completed_at(&self) -> Option<Timestamp> {
        let status = self.status.as_ref()?;
        (status.value == Status::Done).then(|| status.stamp.time())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_title_is_trimmed_and_counted_in_characters() {
        assert_eq!(Title::parse("  bread ").expect("valid").as_str(), "bread");
        assert!(Title::parse(&"é".repeat(200)).is_ok());
        for bad in ["", "   ", "a\0b", &"é".repeat(201)] {
            assert!(Title::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn tags_keep_their_order_and_lose_repeats() {
        let tags = Tags::new(vec!["b".into(), "a".into(), "b".into()]).expect("valid");
        assert_eq!(tags.as_slice(), ["b", "a"]);
        assert!(Tags::new(vec!["x".to_owned(); 21]).is_err());
        assert!(Tags::parse_one(" ").is_err());
    }

    #[test]
    fn a_priority_is_one_to_five() {
        assert!(
            Priority::parse(0).is_err()
                && Priority::parse(6).is_err()
                && Priority::parse(-1).is_err()
        );
        assert_eq!(Priority::parse(5).expect("valid").number(), 5);
    }
}
