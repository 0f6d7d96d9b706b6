//! An operation as the command line shows it: the contract's `Operation`, with what it sets as `fields`.

use comfy_table::{Cell, Table};
use holdfast_shared::buffer::DamagedItem;
use holdfast_shared::domain::{
    Body, Operation, OperationRecord, OperationState, Priority, ProfileState, Register, Revocation,
    TaskState, Timestamp,
};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::output::{self, Form, printable};
use crate::Failure;

/// Longest error in a table, in characters; `show` has it whole.
const ERROR_CHARACTERS: usize = 60;

/// What is said of an item whose checksum is wrong.
const DAMAGED: &str = "damaged: its checksum is wrong, what it says may not be what was accepted";

/// An operation for programs. The fields' order is the contract's.
#[derive(Debug, Clone, Serialize)]
pub struct OperationView {
    id: String,
    user_id: String,
    entity: &'static str,
    entity_id: String,
    operation: &'static str,
    state: &'static str,
    priority: u8,
    retries: u32,
    last_error: Option<String>,
    accepted_at: String,
    finished_at: Option<String>,
    fields: Map<String, Value>,
}

impl OperationView {
    /// The view of an operation and its record.
    pub fn new(operation: &Operation, record: OperationRecord) -> Self {
        OperationView {
            id: record.id.to_string(),
            user_id: record.user_id.to_string(),
            entity: record.entity.as_str(),
            entity_id: record.entity_id,
            operation: record.kind.as_str(),
            state: record.state.as_str(),
            priority: record.priority.number(),
            retries: record.retries,
            last_error: record.last_error,
            accepted_at: record.accepted_at.to_string(),
            finished_at: record.finished_at.map(|at| at.to_string()),
            fields: fields(&operation.body),
        }
    }

    /// The view of an item whose checksum is wrong: what its bytes say, if anything, and the bytes themselves.
    pub fn damaged(damaged: &DamagedItem) -> Self {
        let bytes: String = damaged
            .bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let read = damaged.item.as_ref();
        let mut view = match read {
            Some(item) => OperationView::new(&item.operation, item.record()),
            None => OperationView::unreadable(),
        };
        view.state = OperationState::Dead.as_str();
        view.last_error = Some(DAMAGED.to_owned());
        view.fields.insert("bytes".to_owned(), bytes.into());
        view
    }

    fn unreadable() -> Self {
        OperationView {
            id: none(),
            user_id: none(),
            entity: "unknown",
            entity_id: none(),
            operation: "unknown",
            state: OperationState::Dead.as_str(),
            priority: Priority::default().number(),
            retries: 0,
            last_error: None,
            accepted_at: none(),
            finished_at: None,
            fields: Map::new(),
        }
    }

    /// For people: a line for each field.
    fn describe(&self) -> String {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        let texts = [
            ("id", self.id.clone()),
            ("user_id", self.user_id.clone()),
            ("entity", self.entity.to_owned()),
            ("entity_id", self.entity_id.clone()),
            ("operation", self.operation.to_owned()),
            ("state", self.state.to_owned()),
            ("priority", self.priority.to_string()),
            ("retries", self.retries.to_string()),
            ("last_error", self.last_error.clone().unwrap_or_else(none)),
            ("accepted_at", self.accepted_at.clone()),
            ("finished_at", self.finished_at.clone().unwrap_or_else(none)),
        ];
        for (name, text) in texts {
            table.add_row([name.to_owned(), printable(&text)]);
        }
        for (name, value) in &self.fields {
            table.add_row([format!("fields.{name}"), shown(value)]);
        }
        output::rendered(&table)
    }
}

/// Prints operations: an array for programs, a line for each for people.
///
/// # Errors
/// When they can't be written.
pub fn print_list(operations: &[OperationView], form: Form) -> Result<(), Failure> {
    let text = match form {
        Form::Json => output::json(&operations)?,
        Form::Text => tabulate(operations),
    };
    output::print(&text).map(drop)
}

/// Prints one operation: an array of one for programs, a line for each of its fields for people.
///
/// # Errors
/// When it can't be written.
pub fn print_one(operation: OperationView, form: Form) -> Result<(), Failure> {
    match form {
        Form::Json => print_list(&[operation], form),
        Form::Text => output::print(&operation.describe()).map(drop),
    }
}

/// Operations for people: a line for each.
fn tabulate(operations: &[OperationView]) -> String {
    let headings = [
        "id",
        "user",
        "entity",
        "entity id",
        "operation",
        "priority",
        "retries",
        "accepted",
        "error",
    ];
    let mut table = output::table(&headings);
    for operation in operations {
        table.add_row([
            Cell::new(&operation.id),
            Cell::new(printable(&operation.user_id)),
            Cell::new(operation.entity),
            Cell::new(printable(&operation.entity_id)),
            Cell::new(operation.operation),
            output::number(operation.priority),
            output::number(operation.retries),
            Cell::new(&operation.accepted_at),
            Cell::new(shortened(
                operation.last_error.as_deref().unwrap_or_default(),
            )),
        ]);
    }
    output::rendered(&table)
}

/// A JSON value on one line, texts without quotes.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => none(),
        Value::String(text) => printable(text),
        other => printable(&other.to_string()),
    }
}

/// What stands for nothing.
fn none() -> String {
    "-".to_owned()
}

fn shortened(error: &str) -> String {
    let error = printable(error);
    if error.chars().count() <= ERROR_CHARACTERS {
        return error;
    }
    error.chars().take(ERROR_CHARACTERS).chain(['…']).collect()
}

/// What an operation sets, under the contract's names. A delete sets nothing.
fn fields(body: &Body) -> Map<String, Value> {
    let mut fields = Map::new();
    match body {
        Body::Task { change, .. } => task_fields(change, &mut fields),
        Body::Profile { change, .. } => profile_fields(change, &mut fields),
        Body::Session(revocation) => session_fields(revocation, &mut fields),
    }
    fields
}

fn set<T>(
    fields: &mut Map<String, Value>,
    name: &str,
    register: Option<&Register<T>>,
    value: impl Fn(&T) -> Value,
) {
    if let Some(register) = register {
        fields.insert(name.to_owned(), value(&register.value));
    }
}

fn task_fields(change: &TaskState, fields: &mut Map<String, Value>) {
    set(fields, "title", change.title.as_ref(), |title| {
        json!(title.as_str())
    });
    set(
        fields,
        "description",
        change.description.as_ref(),
        |description| json!(description.as_str()),
    );
    set(fields, "status", change.status.as_ref(), |status| {
        json!(status.as_str())
    });
    set(fields, "priority", change.priority.as_ref(), |priority| {
        json!(priority.number())
    });
    set(fields, "due_at", change.due_at.as_ref(), |due_at| {
        json!(due_at.map(time))
    });
    set(fields, "tags", change.tags.as_ref(), |tags| {
        json!(tags.as_slice())
    });
}

fn profile_fields(change: &ProfileState, fields: &mut Map<String, Value>) {
    set(fields, "email", change.email.as_ref(), |email| {
        json!(email.as_ref().map(|email| email.as_str()))
    });
    set(
        fields,
        "display_name",
        change.display_name.as_ref(),
        |name| json!(name.as_str()),
    );
    set(fields, "bio", change.bio.as_ref(), |bio| {
        json!(bio.as_str())
    });
    set(fields, "avatar_url", change.avatar_url.as_ref(), |url| {
        json!(url.as_ref().map(|url| url.as_str()))
    });
    set(fields, "locale", change.locale.as_ref(), |locale| {
        json!(locale.as_ref().map(|locale| locale.as_str()))
    });
    set(fields, "timezone", change.timezone.as_ref(), |zone| {
        json!(zone.as_ref().map(|zone| zone.as_str()))
    });
    set(
        fields,
        "preferences",
        change.preferences.as_ref(),
        |preferences| json!(preferences.to_object()),
    );
}

fn session_fields(revocation: &Revocation, fields: &mut Map<String, Value>) {
    fields.insert("keep_until".to_owned(), json!(time(revocation.keep_until)));
}

fn time(at: Timestamp) -> String {
    at.to_string()
}

#[cfg(test)]
mod tests {
    use holdfast_shared::domain::{Kind, OperationId, Priority, Stamp, Status, TaskId, UserId};

    use super::*;

    fn view(change: TaskState) -> OperationView {
        let operation = Operation {
            id: OperationId::generate(),
            stamp: Stamp::ZERO,
            user_id: UserId::parse("ann").expect("valid"),
            kind: Kind::Update,
            body: Body::Task {
                id: TaskId::generate(),
                change,
            },
            precondition: None,
            idempotency: None,
            accepted_at: Timestamp::from_micros(0),
            priority: Priority::default(),
            buffered: true,
        };
        let record = OperationRecord::pending(&operation);
        OperationView::new(&operation, record)
    }

    #[test]
    fn the_json_is_the_contracts_operation_with_only_the_fields_that_are_set()
    -> serde_json::Result<()> {
        let change = TaskState {
            status: Some(Register::new(Status::InProgress, Stamp::ZERO)),
            due_at: Some(Register::new(None, Stamp::ZERO)),
            ..TaskState::default()
        };
        let json = serde_json::to_value(view(change))?;
        assert_eq!(json["entity"], "task");
        assert_eq!(json["operation"], "update");
        assert_eq!(json["state"], "pending");
        assert_eq!(json["accepted_at"], "1970-01-01T00:00:00Z");
        assert_eq!(
            json["fields"],
            json!({"status": "in_progress", "due_at": null})
        );
        Ok(())
    }

    #[test]
    fn a_terminal_sees_no_control_characters_and_short_errors() {
        assert_eq!(printable("a\u{1b}[2Jb"), "a\u{fffd}[2Jb");
        let long = "x".repeat(100);
        assert_eq!(shortened(&long).chars().count(), ERROR_CHARACTERS + 1);
    }
}
