//! Request bodies as changes of the domain: which fields a client may give, their defaults, and what null means.

use holdfast_shared::domain::profile::{
    AvatarUrl, Bio, DisplayName, Email, Locale, Preferences, TimeZone,
};
use holdfast_shared::domain::task::{Description, NewTask, Tags, Title};
use holdfast_shared::domain::{Priority, ProfileState, Register, Stamp, Status, TaskState};
use serde_json::Value;

use super::document::{Document, Reading, some, text, texts, time, whole_number};
use super::problem::{Fault, Problem};

/// What the server sets in a task.
const TASK_READ_ONLY: &[&str] = &[
    "id",
    "created_at",
    "updated_at",
    "completed_at",
    "sync_state",
];
/// What the server sets in a profile.
const PROFILE_READ_ONLY: &[&str] = &["id", "created_at", "updated_at", "sync_state"];

/// Reads a whole task, as `POST` and `PUT` take it. Absent fields take their defaults.
///
/// # Errors
/// 400 malformed, 422 with every fault.
pub fn new_task(body: &[u8]) -> Result<NewTask, Problem> {
    let mut document = Document::parse(body, TASK_READ_ONLY)?;
    let title = document.required("title", text(Title::parse));
    let description = document.optional(
        "description",
        text(Description::parse),
        Description::default(),
    );
    let status = document.optional("status", text(Status::parse), Status::default());
    let priority = document.optional(
        "priority",
        whole_number(Priority::parse),
        Priority::default(),
    );
    let due_at = document.nullable("due_at", time);
    let tags = document.optional("tags", tags, Tags::default());
    document.finish()?;
    // Without a title there was a fault, so this is never reached without one.
    let title = title.ok_or_else(Problem::internal)?;
    Ok(NewTask {
        title,
        description,
        status,
        priority,
        due_at,
        tags,
    })
}

/// Reads a merge patch of a task: each member that is there sets its field, null sets the default. Not stamped.
///
/// # Errors
/// As [`new_task`].
pub fn task_patch(body: &[u8]) -> Result<TaskState, Problem> {
    let mut document = Document::parse(body, TASK_READ_ONLY)?;
    let change = TaskState {
        created: None,
        deleted: None,
        title: document.change_required("title", text(Title::parse)),
        description: document.change(
            "description",
            text(Description::parse),
            Description::default(),
        ),
        status: document.change("status", text(Status::parse), Status::default()),
        priority: document.change(
            "priority",
            whole_number(Priority::parse),
            Priority::default(),
        ),
        due_at: document.change("due_at", some(time), None),
        tags: document.change("tags", tags, Tags::default()),
    };
    document.finish()?;
    Ok(change)
}

/// Reads a whole profile, as `PUT` takes it: absent fields are emptied. Not stamped.
///
/// # Errors
/// As [`new_task`].
pub fn whole_profile(body: &[u8]) -> Result<ProfileState, Problem> {
    fn set<T>(value: T) -> Option<Register<T>> {
        Some(Register::new(value, Stamp::ZERO))
    }
    let mut document = Document::parse(body, PROFILE_READ_ONLY)?;
    let profile = ProfileState {
        created: None,
        deleted: None,
        email: set(document.nullable("email", text(Email::parse))),
        display_name: set(document.optional("display_name", text(DisplayName::parse), no_name())),
        bio: set(document.optional("bio", text(Bio::parse), no_bio())),
        avatar_url: set(document.nullable("avatar_url", text(AvatarUrl::parse))),
        locale: set(document.nullable("locale", text(Locale::parse))),
        timezone: set(document.nullable("timezone", text(TimeZone::parse))),
        preferences: set(document.optional("preferences", preferences, Preferences::default())),
    };
    document.finish()?;
    Ok(profile)
}

/// Reads a merge patch of a profile, as [`task_patch`] does. `preferences` is one field: it is replaced whole.
///
/// # Errors
/// As [`new_task`].
pub fn profile_patch(body: &[u8]) -> Result<ProfileState, Problem> {
    let mut document = Document::parse(body, PROFILE_READ_ONLY)?;
    let change = ProfileState {
        created: None,
        deleted: None,
        email: document.change("email", some(text(Email::parse)), None),
        display_name: document.change("display_name", text(DisplayName::parse), no_name()),
        bio: document.change("bio", text(Bio::parse), no_bio()),
        avatar_url: document.change("avatar_url", some(text(AvatarUrl::parse)), None),
        locale: document.change("locale", some(text(Locale::parse)), None),
        timezone: document.change("timezone", some(text(TimeZone::parse)), None),
        preferences: document.change("preferences", preferences, Preferences::default()),
    };
    document.finish()?;
    Ok(change)
}

fn tags(value: &Value) -> Reading<Tags> {
    let tags = texts(Tags::parse_one)(value)?;
    Tags::new(tags).map_err(|violation| vec![Fault::new("", violation.to_string())])
}

fn preferences(value: &Value) -> Reading<Preferences> {
    let refused = |detail: String| vec![Fault::new("", detail)];
    let object = value
        .as_object()
        .ok_or_else(|| refused("must be an object".to_owned()))?;
    Preferences::parse(object).map_err(|violation| refused(violation.to_string()))
}

fn no_name() -> DisplayName {
    DisplayName::from_stored(String::new())
}

fn no_bio() -> Bio {
    Bio::from_stored(String::new())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::problem::Kind;
    use super::*;

    fn bytes(value: &Value) -> Vec<u8> {
        value.to_string().into_bytes()
    }

    fn pointers(problem: &Problem) -> Vec<String> {
        let mut pointers: Vec<String> = problem
            .faults()
            .iter()
            .map(|fault| fault.pointer.clone())
            .collect();
        pointers.sort_unstable();
        pointers
    }

    #[test]
    fn a_title_alone_makes_a_task_of_defaults() {
        let task = new_task(&bytes(&json!({"title": " Buy milk "}))).expect("valid");
        assert_eq!(task.title.as_str(), "Buy milk");
        assert_eq!(task.description.as_str(), "");
        assert_eq!(
            (task.status, task.priority.number(), task.due_at),
            (Status::Todo, 3, None)
        );
        assert!(task.tags.as_slice().is_empty());
    }

    #[test]
    fn every_field_of_a_task_is_read() {
        let body = json!({"title": "t", "description": "d", "status": "done", "priority": 1,
            "due_at": "2026-01-01T00:00:00Z", "tags": ["a", "b", "a"]});
        let task = new_task(&bytes(&body)).expect("valid");
        assert_eq!((task.status, task.priority.number()), (Status::Done, 1));
        assert_eq!(
            task.due_at.map(|time| time.to_string()).as_deref(),
            Some("2026-01-01T00:00:00Z")
        );
        assert_eq!(task.tags.as_slice(), ["a", "b"]);
    }

    #[test]
    fn each_broken_rule_of_a_task_is_422_at_its_place() {
        let too_long = |length: usize| "é".repeat(length);
        let table = [
            (json!({}), vec!["/title"]),
            (json!({"title": null}), vec!["/title"]),
            (json!({"title": "  "}), vec!["/title"]),
            (json!({"title": too_long(201)}), vec!["/title"]),
            (json!({"title": "a\u{0}"}), vec!["/title"]),
            (json!({"title": 1}), vec!["/title"]),
            (
                json!({"title": "t", "description": too_long(10_001)}),
                vec!["/description"],
            ),
            (
                json!({"title": "t", "description": null}),
                vec!["/description"],
            ),
            (json!({"title": "t", "status": "open"}), vec!["/status"]),
            (json!({"title": "t", "status": 1}), vec!["/status"]),
            (json!({"title": "t", "priority": 0}), vec!["/priority"]),
            (json!({"title": "t", "priority": 6}), vec!["/priority"]),
            (json!({"title": "t", "priority": "1"}), vec!["/priority"]),
            (json!({"title": "t", "priority": 1.5}), vec!["/priority"]),
            (json!({"title": "t", "due_at": "soon"}), vec!["/due_at"]),
            (json!({"title": "t", "due_at": 5}), vec!["/due_at"]),
            (json!({"title": "t", "tags": "a"}), vec!["/tags"]),
            (json!({"title": "t", "tags": vec!["x"; 21]}), vec!["/tags"]),
            (
                json!({"title": "t", "tags": ["", "ok", 3, "a\u{0}"]}),
                vec!["/tags/0", "/tags/2", "/tags/3"],
            ),
            (json!({"title": "t", "colour": "red"}), vec!["/colour"]),
            (
                json!({"title": "t", "id": "x", "created_at": "y"}),
                vec!["/created_at", "/id"],
            ),
            (
                json!({"title": "", "priority": 9, "x": 1}),
                vec!["/priority", "/title", "/x"],
            ),
        ];
        for (body, expected) in table {
            let problem = new_task(&bytes(&body)).expect_err(&body.to_string());
            assert_eq!(problem.kind(), Kind::InvalidFields, "{body}");
            assert_eq!(pointers(&problem), expected, "{body}");
        }
    }

    #[test]
    fn limits_are_inclusive_and_count_characters() {
        let body = json!({"title": "é".repeat(200), "description": "😀".repeat(10_000), "tags": vec!["é".repeat(50)]});
        assert!(new_task(&bytes(&body)).is_ok());
    }

    #[test]
    fn a_patch_sets_what_it_mentions_and_null_resets() {
        let patch = task_patch(&bytes(
            &json!({"description": null, "priority": null, "due_at": null, "status": "done"}),
        ))
        .expect("valid");
        assert_eq!(
            (patch.title, patch.tags, patch.created, patch.deleted),
            (None, None, None, None)
        );
        assert_eq!(
            patch.description,
            Some(Register::new(Description::default(), Stamp::ZERO))
        );
        assert_eq!(
            patch.priority,
            Some(Register::new(Priority::default(), Stamp::ZERO))
        );
        assert_eq!(patch.due_at, Some(Register::new(None, Stamp::ZERO)));
        assert_eq!(patch.status, Some(Register::new(Status::Done, Stamp::ZERO)));
    }

    #[test]
    fn an_empty_patch_changes_nothing() {
        assert_eq!(task_patch(b"{}").expect("valid"), TaskState::default());
        assert_eq!(
            profile_patch(b"{}").expect("valid"),
            ProfileState::default()
        );
    }

    #[test]
    fn a_patch_breaks_the_same_rules() {
        let table = [
            (json!({"title": null}), vec!["/title"]),
            (json!({"title": ""}), vec!["/title"]),
            (json!({"tags": [1]}), vec!["/tags/0"]),
            (json!({"updated_at": null}), vec!["/updated_at"]),
            (json!({"x": null, "priority": 0}), vec!["/priority", "/x"]),
        ];
        for (body, expected) in table {
            assert_eq!(
                pointers(&task_patch(&bytes(&body)).expect_err(&body.to_string())),
                expected,
                "{body}"
            );
        }
        assert_eq!(pointers(&task_patch(b"[]").expect_err("no object")), [""]);
    }

    #[test]
    fn a_whole_profile_empties_what_it_leaves_out() {
        let profile = whole_profile(&bytes(&json!({"email": "ann@example.org"}))).expect("valid");
        assert_eq!(
            profile
                .email
                .and_then(|email| email.value)
                .map(|email| email.as_str().to_owned())
                .as_deref(),
            Some("ann@example.org")
        );
        assert_eq!(
            profile.display_name,
            Some(Register::new(no_name(), Stamp::ZERO))
        );
        assert_eq!(profile.locale, Some(Register::new(None, Stamp::ZERO)));
        assert_eq!(profile.created, None);
    }

    #[test]
    fn a_profile_patch_replaces_preferences_whole() {
        let patch = profile_patch(&bytes(
            &json!({"preferences": {"theme": null}, "email": null}),
        ))
        .expect("valid");
        let preferences = patch.preferences.expect("set").value.to_object();
        assert_eq!(Value::Object(preferences), json!({"theme": null}));
        assert_eq!(patch.email, Some(Register::new(None, Stamp::ZERO)));
        assert_eq!(patch.bio, None);
    }

    #[test]
    fn each_broken_rule_of_a_profile_is_422_at_its_place() {
        let table = [
            (json!({"email": "nobody"}), "/email"),
            (json!({"display_name": "x".repeat(101)}), "/display_name"),
            (json!({"display_name": 1}), "/display_name"),
            (json!({"bio": "x".repeat(1001)}), "/bio"),
            (json!({"avatar_url": "ftp://x"}), "/avatar_url"),
            (json!({"locale": "not a tag"}), "/locale"),
            (json!({"timezone": "Mars/Base"}), "/timezone"),
            (json!({"preferences": []}), "/preferences"),
            (
                json!({"preferences": {"a": "x".repeat(9000)}}),
                "/preferences",
            ),
            (
                json!({"preferences": {"a": {"b": "\u{0}"}}}),
                "/preferences",
            ),
            (json!({"id": "x"}), "/id"),
            (json!({"nickname": "x"}), "/nickname"),
        ];
        for (body, pointer) in table {
            for read in [whole_profile, profile_patch] {
                assert_eq!(
                    pointers(&read(&bytes(&body)).expect_err(&body.to_string())),
                    [pointer],
                    "{body}"
                );
            }
        }
    }
}
