//! Tasks as schemas: as they are shown, as they are given, and as they are patched.

use holdfast_shared::domain::task::{Description, Tags, Title};
use holdfast_shared::domain::{Priority, Status};
use serde_json::json;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder};
use utoipa::openapi::{RefOr, Schema};

use super::resource::sync_state;
use super::schema::{
    Fields, Nullable, closed_object, list, object, text, time, trimmed_text, uuid, whole_number,
    word,
};

/// A task as it is shown.
pub fn shown() -> ObjectBuilder {
    object("A task.")
        .always("id", uuid().description(Some("Its id, for good.")))
        .always(
            "title",
            text(1..=Title::MAX_CHARACTERS).description(Some("What is to be done.")),
        )
        .always("description", description())
        .always("status", status())
        .always("priority", priority())
        .always("due_at", due_at())
        .always(
            "tags",
            labels(text(1..=Tags::MAX_CHARACTERS))
                .description(Some("Its labels, in the order given, none twice.")),
        )
        .always("created_at", time().description(Some("When it was made.")))
        .always(
            "updated_at",
            time().description(Some("When any of its fields was last written.")),
        )
        .always(
            "completed_at",
            time()
                .description(Some("When it was last set to `done`; null unless it is."))
                .build()
                .or_null(),
        )
        .always("sync_state", sync_state())
}

/// A whole task as `POST` and `PUT` take it.
pub fn given() -> ObjectBuilder {
    closed_object(
        "A whole task. Only `title` has to be given; what is left out takes its default. Fields that the server sets, \
         and unknown ones, are refused.",
    )
    .always("title", title())
    .property("description", description().default(Some(json!(Description::default().as_str()))))
    .property("status", status().default(Some(json!(Status::default().as_str()))))
    .property("priority", priority().default(Some(json!(Priority::default().number()))))
    .property("due_at", due_at())
    .property("tags", tags().default(Some(json!([]))))
}

/// A merge patch of a task.
pub fn patch() -> ObjectBuilder {
    closed_object(
        "A JSON Merge Patch (RFC 7396) of a task: each field that is there is set, null sets it to its default, and \
         what is left out stays as it is. `tags` is one field, replaced whole.",
    )
    .property("title", title())
    .property("description", description().build().or_null())
    .property("status", status().build().or_null())
    .property("priority", priority().build().or_null())
    .property("due_at", due_at())
    .property("tags", tags().build().or_null())
}

/// One tag, as a filter or a body gives it.
pub fn tag() -> ObjectBuilder {
    trimmed_text(Tags::MAX_CHARACTERS)
}

/// A task's status.
pub fn status() -> ObjectBuilder {
    word(Status::ALL.map(Status::as_str)).description(Some("Where it stands."))
}

/// How urgent a task is.
pub fn priority() -> ObjectBuilder {
    priorities().description(Some("How urgent it is: 1 is the most urgent."))
}

/// The priorities there are, of tasks as of operations.
pub fn priorities() -> ObjectBuilder {
    let [first, .., last] = Priority::ALL.map(|priority| u64::from(priority.number()));
    whole_number(first..=last)
}

fn title() -> ObjectBuilder {
    trimmed_text(Title::MAX_CHARACTERS).description(Some(format!(
        "What is to be done: 1 to {} characters after the white space around it is taken away.",
        Title::MAX_CHARACTERS
    )))
}

fn description() -> ObjectBuilder {
    text(0..=Description::MAX_CHARACTERS).description(Some("More about it."))
}

fn due_at() -> RefOr<Schema> {
    let time = time().description(Some(
        "When it is due (RFC 3339). Any offset is taken; it is shown in UTC, to the microsecond.",
    ));
    time.build().or_null().into()
}

fn tags() -> ArrayBuilder {
    labels(tag()).description(Some(format!(
        "Its labels, each of 1 to {} characters after the white space around it is taken away. Repeats are dropped.",
        Tags::MAX_CHARACTERS
    )))
}

fn labels(one: ObjectBuilder) -> ArrayBuilder {
    list(one).max_items(Some(Tags::MAX))
}
