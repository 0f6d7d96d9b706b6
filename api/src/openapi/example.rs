//! Examples of bodies, made by the code that makes the bodies, so that they look as what is served.

use holdfast_shared::domain::profile::{AvatarUrl, Bio, DisplayName, Email, Locale, TimeZone};
use holdfast_shared::domain::task::{NewTask, Tags, Title};
use holdfast_shared::domain::{
    Claims, Entity, Kind as OperationKind, NodeId, OperationId, OperationRecord, OperationState,
    Priority, ProfileState, Register, Session, SessionId, Stamp, Status, TaskId, TaskState,
    Timestamp, UserId,
};
use holdfast_shared::repository::{BufferReport, HealthReport, Mode, StoreReport, SyncState};
use serde::Serialize;
use serde_json::{Value, json};
use std::time::Duration;

use crate::transport::document::parse_time;
use crate::transport::problem::Kind;
use crate::transport::view;

/// The task of the examples.
pub const TASK_ID: &str = "0190a3f0-7b7e-7a52-9f3c-2f6f0f1d8c11";
/// The operation of the examples.
pub const OPERATION_ID: &str = "0190a3f0-7c10-7e01-b2a4-5f0c9d3e7a22";
/// The request of the examples.
pub const REQUEST_ID: &str = "5d1c9a52-0f0e-4b7b-9a43-1f6d2c8e7b33";
/// The user of the examples.
const USER: &str = "ann";
/// When the examples were written, first and last.
const MADE: &str = "2026-01-30T09:15:00.250Z";
const CHANGED: &str = "2026-01-31T18:00:00.500Z";

/// A task.
pub fn task(sync_state: SyncState) -> Value {
    value(&view::task(task_id(), &task_state(), sync_state))
}

/// The tag of that task, as a header has it.
pub fn etag() -> String {
    format!("\"{}\"", task_state().etag().as_str())
}

/// A body that makes that task.
pub fn new_task() -> Value {
    json!({
        "title": "Buy bread",
        "description": "Two loaves, and something for the birds.",
        "priority": 2,
        "due_at": "2026-02-01T12:00:00+01:00",
        "tags": ["home", "shopping"],
    })
}

/// A patch of it.
pub fn task_patch() -> Value {
    json!({"status": "done", "due_at": null})
}

/// A page of tasks.
pub fn task_page(sync_state: SyncState) -> Value {
    let complete = sync_state != SyncState::Stale;
    json!({"items": [task(sync_state)], "next_cursor": null, "complete": complete})
}

/// A profile.
pub fn profile(sync_state: SyncState) -> Value {
    value(&view::profile(&user(), &profile_state(), sync_state))
}

/// A body that makes that profile.
pub fn new_profile() -> Value {
    json!({
        "email": "ann@example.org",
        "display_name": "Ann",
        "bio": "Bakes.",
        "avatar_url": "https://example.org/ann.png",
        "locale": "de-CH",
        "timezone": "Europe/Zurich",
        "preferences": {"theme": "dark"},
    })
}

/// A patch of it.
pub fn profile_patch() -> Value {
    json!({"display_name": "Ann B.", "bio": null})
}

/// A change that waits, or one that ended so.
pub fn operation(entity: Entity, kind: OperationKind, state: OperationState) -> Value {
    let (entity_id, priority) = match entity {
        Entity::Task => (TASK_ID, Priority::ALL[2]),
        Entity::Profile => (USER, Priority::ALL[1]),
        Entity::Session => ("session-1", Priority::ALL[0]),
    };
    let record = OperationRecord {
        id: OperationId::parse(OPERATION_ID).expect("a UUID"),
        user_id: user(),
        entity,
        entity_id: entity_id.to_owned(),
        kind,
        state,
        priority,
        retries: 0,
        last_error: (state == OperationState::Dead).then(|| "precondition_failed".to_owned()),
        accepted_at: time(MADE),
        finished_at: state.is_final().then(|| time(CHANGED)),
    };
    value(&view::operation(&record))
}

/// A page of operations.
pub fn operation_page() -> Value {
    let item = operation(Entity::Task, OperationKind::Update, OperationState::Pending);
    json!({"items": [item], "next_cursor": null})
}

/// A page of sessions.
pub fn session_page() -> Value {
    let session = Session {
        id: SessionId::parse("session-1").expect("short"),
        user_id: user(),
        created_at: time(MADE),
        last_seen_at: time(CHANGED),
        expires_at: time("2026-02-01T18:00:00Z"),
        user_agent: Some("Mozilla/5.0".to_owned()),
    };
    json!({"items": [value(&view::session(&session, &session.id))], "next_cursor": null})
}

/// How things stand: with PostgreSQL up or, in the mode `Offline`, down, and the buffer in this state.
pub fn health(status: Mode, buffer: &'static str) -> Value {
    let store = |state, error: Option<&str>| StoreReport {
        state,
        since: Some(time(MADE)),
        latency: Some(Duration::from_micros(812)),
        error: error.map(str::to_owned),
    };
    let (postgres, pending, oldest_age) = match status {
        Mode::Offline => (store(StoreReport::DOWN, Some("connection refused")), 17, 42),
        _ => (store(StoreReport::UP, None), 0, 0),
    };
    let ready = postgres.state == StoreReport::UP || buffer != BufferReport::UNAVAILABLE;
    let report = HealthReport {
        status,
        postgres,
        redis: store(StoreReport::UP, None),
        buffer: BufferReport {
            state: buffer,
            pending,
            dead: 0,
            oldest_age: Duration::from_secs(oldest_age),
            bytes: 1_589_248,
            max_items: 1_000_000,
            damaged_items: 0,
            damaged_files: 0,
        },
        syncd_running: true,
        ready,
    };
    value(&view::health(&report))
}

/// A problem of this kind.
pub fn problem(kind: Kind) -> Value {
    value(&kind.example().document(REQUEST_ID))
}

fn task_id() -> TaskId {
    TaskId::parse(TASK_ID).expect("a UUID")
}

fn user() -> UserId {
    UserId::parse(USER).expect("short")
}

fn task_state() -> TaskState {
    let new = NewTask {
        title: Title::parse("Buy bread").expect("short"),
        description: holdfast_shared::domain::task::Description::parse(
            "Two loaves, and something for the birds.",
        )
        .expect("short"),
        status: Status::Todo,
        priority: Priority::ALL[1],
        due_at: Some(time("2026-02-01T12:00:00+01:00")),
        tags: Tags::new(vec!["home".to_owned(), "shopping".to_owned()]).expect("few"),
    };
    let mut task = TaskState {
        created: Some(Stamp::ZERO),
        ..new.into_change()
    };
    task.restamp(stamp(MADE));
    task.merge(&TaskState {
        priority: Some(Register::new(Priority::ALL[1], stamp(CHANGED))),
        ..TaskState::default()
    });
    task
}

fn profile_state() -> ProfileState {
    let mut profile = ProfileState {
        email: set(Email::parse("ann@example.org").ok()),
        display_name: set(DisplayName::from_stored("Ann".to_owned())),
        bio: set(Bio::from_stored("Bakes.".to_owned())),
        avatar_url: set(AvatarUrl::parse("https://example.org/ann.png").ok()),
        locale: set(Locale::parse("de-CH").ok()),
        timezone: set(TimeZone::parse("Europe/Zurich").ok()),
        ..ProfileState::provisioned(&Claims::default(), Stamp::ZERO)
    };
    profile.restamp(stamp(CHANGED));
    profile.created = Some(stamp(MADE));
    profile
}

fn set<T>(value: T) -> Option<Register<T>> {
    Some(Register::new(value, Stamp::ZERO))
}

fn stamp(text: &str) -> Stamp {
    let tick = Stamp::tick_at(time(text).as_millis());
    Stamp::new(tick, NodeId::from_number(1))
}

fn time(text: &str) -> Timestamp {
    parse_time(text).expect("an RFC 3339 time")
}

fn value(body: &impl Serialize) -> Value {
    serde_json::to_value(body).expect("views are JSON")
}
