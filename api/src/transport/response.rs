//! Answers: resources as JSON in the contract's words, and the headers that go with them.

use std::time::Duration;

use holdfast_shared::domain::{
    ETag, OperationRecord, OperationState, ProfileState, Session, SessionId, TaskId, TaskState,
    UserId,
};
use holdfast_shared::repository::{Found, HealthReport, SyncState, TaskPage, WritePath, Written};
use http::header::{AGE, CONTENT_TYPE, ETAG, LOCATION};
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use warp::reply::Response;

use super::header::{IDEMPOTENCY_REPLAYED, OPERATION_LOCATION, SYNC_STATE};
use super::view::{self, Page};

/// Unused bytes of a body that are worth giving back.
const LARGE_BYTES: usize = 64 * 1024;

/// Where every path of the API begins.
pub const BASE_PATH: &str = "/api/v1";

/// What a write was about: enough to show it, and to say where it is.
#[derive(Debug, Clone, Copy)]
pub enum Resource<'a> {
    /// A task.
    Task(TaskId),
    /// The user's profile.
    Profile(&'a UserId),
    /// A session, which has no representation of its own.
    Session,
}

/// What the client asked for, which decides the status of an answer to a write that took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// `POST`: 201.
    Create,
    /// `PUT`: 201 if that made it, else 200.
    Replace,
    /// `PATCH`: 200.
    Patch,
    /// `DELETE`: 204.
    Delete,
}

/// An answer with a JSON body.
pub fn json(status: StatusCode, body: &impl Serialize) -> Response {
    let mut text = serde_json::to_vec(body)
        .expect("views have texts for keys and no value that can't be written");
    // What it has grown by at last may be half of a large one, and is kept until the client has taken all.
    if text.capacity() - text.len() > LARGE_BYTES {
        text.shrink_to_fit();
    }
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An answer without a body.
pub fn empty(status: StatusCode) -> Response {
    let mut response = Response::default();
    *response.status_mut() = status;
    response
}

/// A task that was read; `None` when it isn't known whole, or is deleted.
pub fn task(id: TaskId, found: &Found<TaskState>) -> Option<Response> {
    let view = view::task(id, &found.value, found.sync_state)?;
    let mut response = json(StatusCode::OK, &view);
    add_origin(&mut response, found.sync_state, found.age);
    add_etag(&mut response, &found.value.etag());
    Some(response)
}

/// A profile that was read; `None` when it isn't known whole.
pub fn profile(user: &UserId, found: &Found<ProfileState>) -> Option<Response> {
    let view = view::profile(user, &found.value, found.sync_state)?;
    let mut response = json(StatusCode::OK, &view);
    add_origin(&mut response, found.sync_state, found.age);
    add_etag(&mut response, &found.value.etag(user));
    Some(response)
}

/// 304, with what a whole answer would have said of itself.
pub fn not_modified(etag: &ETag, sync_state: SyncState, age: Option<Duration>) -> Response {
    let mut response = empty(StatusCode::NOT_MODIFIED);
    add_origin(&mut response, sync_state, age);
    add_etag(&mut response, etag);
    response
}

/// A page of tasks.
pub fn task_page(page: &TaskPage, next_cursor: Option<String>) -> Response {
    let views = page
        .items
        .iter()
        .filter_map(|(id, found)| view::task(*id, &found.value, found.sync_state));
    let body = Page {
        items: views.collect(),
        next_cursor,
        complete: Some(page.complete),
    };
    let mut response = json(StatusCode::OK, &body);
    let oldest = page.items.iter().filter_map(|(_, found)| found.age).max();
    add_origin(&mut response, weakest(page), oldest);
    response
}

/// The weakest word that is true of a page's items; an empty page that may lack some is from memory.
fn weakest(page: &TaskPage) -> SyncState {
    let weakness = |state: &SyncState| match state {
        SyncState::Synced => 0,
        SyncState::Pending => 1,
        SyncState::Stale => 2,
    };
    let of_nothing = if page.complete {
        SyncState::Synced
    } else {
        SyncState::Stale
    };
    page.items
        .iter()
        .map(|(_, found)| found.sync_state)
        .max_by_key(weakness)
        .unwrap_or(of_nothing)
}

/// An operation.
pub fn operation(record: &OperationRecord) -> Response {
    json(StatusCode::OK, &view::operation(record))
}

/// A page of operations.
pub fn operation_page(records: &[OperationRecord], next_cursor: Option<String>) -> Response {
    let items = records.iter().map(view::operation).collect();
    json(
        StatusCode::OK,
        &Page {
            items,
            next_cursor,
            complete: None,
        },
    )
}

/// A user's sessions, all on one page; `current` is the one that asks.
pub fn session_page(sessions: &[Session], current: &SessionId) -> Response {
    let view = |session| view::session(session, current);
    json(
        StatusCode::OK,
        &Page {
            items: sessions.iter().map(view).collect(),
            next_cursor: None,
            complete: None,
        },
    )
}

/// How things stand.
pub fn health(report: &HealthReport) -> Response {
    let status = if report.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    json(status, &view::health(report))
}

/// A write that was accepted: 202 if it is in the buffer, else what `verb` promises. The body is the resource where
/// this node knows it whole, else the operation.
pub fn written(written: &Written, resource: Resource<'_>, verb: Verb) -> Response {
    let status = status_of(written, verb);
    let state = written.state.as_ref().filter(|_| verb != Verb::Delete);
    let shown = state.and_then(|state| {
        Some((
            view::resource(resource, state, sync_state_of(written))?,
            state.etag(&written.operation.user_id),
        ))
    });
    let mut response = match &shown {
        _ if status == StatusCode::NO_CONTENT => empty(status),
        Some((view, etag)) => {
            let mut response = json(status, view);
            add_etag(&mut response, etag);
            response
        }
        None => json(status, &view::operation(&written.operation)),
    };
    add_origin(&mut response, sync_state_of(written), None);
    add_places(&mut response, written, resource, verb);
    response
}

fn status_of(written: &Written, verb: Verb) -> StatusCode {
    match (written.path, verb) {
        (WritePath::Buffered, _) => StatusCode::ACCEPTED,
        (WritePath::Direct, Verb::Create) => StatusCode::CREATED,
        (WritePath::Direct, Verb::Replace) if written.created => StatusCode::CREATED,
        (WritePath::Direct, Verb::Replace | Verb::Patch) => StatusCode::OK,
        (WritePath::Direct, Verb::Delete) => StatusCode::NO_CONTENT,
    }
}

/// A buffered write's resource is `pending`, unless this is a late repeat of one that has been applied meanwhile.
fn sync_state_of(written: &Written) -> SyncState {
    match written.path {
        WritePath::Buffered if written.operation.state == OperationState::Pending => {
            SyncState::Pending
        }
        WritePath::Buffered | WritePath::Direct => SyncState::Synced,
    }
}

fn add_places(response: &mut Response, written: &Written, resource: Resource<'_>, verb: Verb) {
    let is_new = verb == Verb::Create || response.status() == StatusCode::CREATED;
    let headers = response.headers_mut();
    if let (true, Resource::Task(id)) = (is_new, resource) {
        headers.insert(LOCATION, place("tasks", &id));
    }
    if written.path == WritePath::Buffered {
        headers.insert(
            OPERATION_LOCATION,
            place("operations", &written.operation.id),
        );
    }
    if written.replayed {
        headers.insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
    }
}

fn place(collection: &str, id: &impl ToString) -> HeaderValue {
    let path = format!("{BASE_PATH}/{collection}/{}", id.to_string());
    HeaderValue::try_from(path).expect("paths of UUIDs are ASCII")
}

fn add_origin(response: &mut Response, sync_state: SyncState, age: Option<Duration>) {
    let headers = response.headers_mut();
    headers.insert(
        SYNC_STATE,
        HeaderValue::from_static(view::sync_word(sync_state)),
    );
    if let (SyncState::Stale, Some(age)) = (sync_state, age) {
        headers.insert(AGE, HeaderValue::from(age.as_secs()));
    }
}

fn add_etag(response: &mut Response, etag: &ETag) {
    let quoted = format!("\"{}\"", etag.as_str());
    let value = HeaderValue::try_from(quoted).expect("tags made here are hexadecimal");
    response.headers_mut().insert(ETAG, value);
}

#[cfg(test)]
mod tests {
    use holdfast_shared::domain::task::{NewTask, Title};
    use holdfast_shared::domain::{
        Entity, Kind, OperationId, Priority, Stamp, State, Status, Timestamp,
    };

    use super::*;

    fn known_task() -> TaskState {
        let new = NewTask {
            title: Title::parse("bread").expect("valid"),
            description: Default::default(),
            status: Status::Done,
            priority: Priority::default(),
            due_at: None,
            tags: Default::default(),
        };
        let mut task = TaskState {
            created: Some(Stamp::ZERO),
            ..new.into_change()
        };
        task.restamp(Stamp::from_i64(1 << 40));
        task
    }

    fn accepted(path: WritePath, state: Option<TaskState>) -> Written {
        let operation = OperationRecord {
            id: OperationId::generate(),
            user_id: UserId::parse("ann").expect("valid"),
            entity: Entity::Task,
            entity_id: "x".to_owned(),
            kind: Kind::Update,
            state: OperationState::Pending,
            priority: Priority::default(),
            retries: 0,
            last_error: None,
            accepted_at: Timestamp::from_micros(0),
            finished_at: None,
        };
        Written {
            path,
            state: state.map(State::Task),
            created: false,
            operation,
            replayed: false,
        }
    }

    fn found(sync_state: SyncState) -> (TaskId, Found<TaskState>) {
        let age = (sync_state == SyncState::Stale).then_some(Duration::from_secs(7));
        (
            TaskId::generate(),
            Found {
                value: known_task(),
                sync_state,
                age,
            },
        )
    }

    #[test]
    fn a_direct_write_is_answered_by_its_verb() {
        let id = TaskId::generate();
        let status = |verb, created| {
            let accepted = Written {
                created,
                ..accepted(WritePath::Direct, Some(known_task()))
            };
            written(&accepted, Resource::Task(id), verb)
                .status()
                .as_u16()
        };
        assert_eq!(status(Verb::Create, true), 201);
        assert_eq!(
            (status(Verb::Replace, true), status(Verb::Replace, false)),
            (201, 200)
        );
        assert_eq!(
            (status(Verb::Patch, false), status(Verb::Delete, false)),
            (200, 204)
        );
    }

    #[test]
    fn a_buffered_write_of_something_known_shows_it_and_its_tag() {
        let id = TaskId::generate();
        let response = written(
            &accepted(WritePath::Buffered, Some(known_task())),
            Resource::Task(id),
            Verb::Create,
        );
        assert_eq!(response.status(), StatusCode::ACCEPTED);
        assert_eq!(response.headers()[SYNC_STATE], "pending");
        assert_eq!(
            response.headers()[ETAG],
            format!("\"{}\"", known_task().etag().as_str())
        );
        assert_eq!(response.headers()[LOCATION], format!("/api/v1/tasks/{id}"));
        assert!(response.headers().contains_key(OPERATION_LOCATION));
    }

    #[test]
    fn a_buffered_write_of_something_unknown_shows_the_operation_and_no_tag() {
        let partial = TaskState {
            title: known_task().title,
            ..TaskState::default()
        };
        for (state, verb) in [
            (None, Verb::Patch),
            (Some(partial), Verb::Patch),
            (Some(known_task()), Verb::Delete),
        ] {
            let response = written(
                &accepted(WritePath::Buffered, state),
                Resource::Task(TaskId::generate()),
                verb,
            );
            assert_eq!(response.status(), StatusCode::ACCEPTED);
            assert!(!response.headers().contains_key(ETAG));
            assert!(response.headers().contains_key(OPERATION_LOCATION));
        }
    }

    #[test]
    fn a_list_says_the_weakest_of_its_items() {
        let word = |states: &[SyncState], complete| {
            let items = states.iter().map(|state| found(*state)).collect();
            let response = task_page(
                &TaskPage {
                    items,
                    has_more: false,
                    complete,
                },
                None,
            );
            response.headers()[SYNC_STATE]
                .to_str()
                .expect("ASCII")
                .to_owned()
        };
        assert_eq!(word(&[], true), "synced");
        assert_eq!(word(&[], false), "stale");
        assert_eq!(
            word(&[SyncState::Synced, SyncState::Pending], true),
            "pending"
        );
        assert_eq!(
            word(&[SyncState::Stale, SyncState::Pending], false),
            "stale"
        );
    }

    #[test]
    fn only_what_comes_from_memory_has_an_age() {
        let (id, stale) = found(SyncState::Stale);
        assert_eq!(task(id, &stale).expect("whole").headers()[AGE], "7");
        let (id, synced) = found(SyncState::Synced);
        assert!(
            !task(id, &synced)
                .expect("whole")
                .headers()
                .contains_key(AGE)
        );
    }

    #[test]
    fn what_is_deleted_or_not_known_whole_is_not_shown() {
        let (id, mut one) = found(SyncState::Synced);
        one.value.tags = None;
        assert!(task(id, &one).is_none());
        let (id, mut one) = found(SyncState::Synced);
        one.value.deleted = Some(Stamp::from_i64(1 << 41));
        assert!(task(id, &one).is_none());
    }
}
