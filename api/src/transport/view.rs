//! Resources as JSON, in the contract's words and order.

use holdfast_shared::domain::{
    OperationRecord, ProfileState, Session, SessionId, State, TaskId, TaskState, UserId,
};
use holdfast_shared::repository::{BufferReport, HealthReport, Mode, StoreReport, SyncState};
use serde::Serialize;
use serde_json::{Map, Value};

use super::response::Resource;

/// A task.
#[derive(Serialize)]
pub struct TaskView<'a> {
    id: String,
    title: &'a str,
    description: &'a str,
    status: &'static str,
    priority: u8,
    due_at: Option<String>,
    tags: &'a [String],
    created_at: String,
    updated_at: String,
    completed_at: Option<String>,
    sync_state: &'static str,
}

/// A profile.
#[derive(Serialize)]
pub struct ProfileView<'a> {
    id: &'a str,
    email: Option<&'a str>,
    display_name: &'a str,
    bio: &'a str,
    avatar_url: Option<&'a str>,
    locale: Option<&'a str>,
    timezone: Option<&'a str>,
    preferences: Map<String, Value>,
    created_at: String,
    updated_at: String,
    sync_state: &'static str,
}

/// An operation.
#[derive(Serialize)]
pub struct OperationView<'a> {
    id: String,
    entity: &'static str,
    entity_id: &'a str,
    operation: &'static str,
    state: &'static str,
    priority: u8,
    retries: u32,
    last_error: Option<&'a str>,
    accepted_at: String,
    finished_at: Option<String>,
}

/// A session.
#[derive(Serialize)]
pub struct SessionView<'a> {
    id: &'a str,
    created_at: String,
    last_seen_at: String,
    expires_at: String,
    user_agent: Option<&'a str>,
    current: bool,
}

/// A page of a list.
#[derive(Serialize)]
pub struct Page<T> {
    /// The items, in the list's order.
    pub items: Vec<T>,
    /// Where the next page begins, if there is one.
    pub next_cursor: Option<String>,
    /// Whether the node knows all there is, in lists of which it may not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub complete: Option<bool>,
}

/// A task or a profile.
#[derive(Serialize)]
#[serde(untagged)]
pub enum ResourceView<'a> {
    /// A task.
    Task(TaskView<'a>),
    /// A profile.
    Profile(ProfileView<'a>),
}

/// How things stand.
#[derive(Serialize)]
pub struct HealthView<'a> {
    status: &'static str,
    stores: StoresView<'a>,
    buffer: BufferView,
    syncd: SyncdView,
    version: &'static str,
}

#[derive(Serialize)]
struct StoresView<'a> {
    postgres: StoreView<'a>,
    redis: StoreView<'a>,
}

#[derive(Serialize)]
struct StoreView<'a> {
    state: &'static str,
    since: Option<String>,
    latency_ms: Option<f64>,
    error: Option<&'a str>,
}

#[derive(Serialize)]
struct BufferView {
    state: &'static str,
    pending: u64,
    dead: u64,
    oldest_age_seconds: u64,
    bytes: u64,
    max_items: u64,
    damaged_items: u64,
    damaged_files: u64,
}

#[derive(Serialize)]
struct SyncdView {
    running: bool,
}

/// The contract's word for where something comes from.
pub fn sync_word(state: SyncState) -> &'static str {
    match state {
        SyncState::Synced => "synced",
        SyncState::Pending => "pending",
        SyncState::Stale => "stale",
    }
}

/// The resource a write was about; `None` when it isn't known whole, or is deleted.
pub fn resource<'a>(
    of: Resource<'a>,
    state: &'a State,
    sync_state: SyncState,
) -> Option<ResourceView<'a>> {
    match (of, state) {
        (Resource::Task(id), State::Task(state)) => {
            task(id, state, sync_state).map(ResourceView::Task)
        }
        (Resource::Profile(user), State::Profile(state)) => {
            profile(user, state, sync_state).map(ResourceView::Profile)
        }
        _ => None,
    }
}

/// A task; `None` when it isn't known whole, or is deleted.
pub fn task(id: TaskId, task: &TaskState, sync_state: SyncState) -> Option<TaskView<'_>> {
    if task.deleted.is_some() {
        return None;
    }
    Some(TaskView {
        id: id.to_string(),
        title: task.title.as_ref()?.value.as_str(),
        description: task.description.as_ref()?.value.as_str(),
        status: task.status.as_ref()?.value.as_str(),
        priority: task.priority.as_ref()?.value.number(),
        due_at: task.due_at.as_ref()?.value.map(|time| time.to_string()),
        tags: task.tags.as_ref()?.value.as_slice(),
        created_at: task.created?.time().to_string(),
        updated_at: task.newest().time().to_string(),
        completed_at: task.completed_at().map(|time| time.to_string()),
        sync_state: sync_word(sync_state),
    })
}

/// A profile; `None` when it isn't known whole.
pub fn profile<'a>(
    user: &'a UserId,
    profile: &'a ProfileState,
    sync_state: SyncState,
) -> Option<ProfileView<'a>> {
    Some(ProfileView {
        id: user.as_str(),
        email: profile
            .email
            .as_ref()?
            .value
            .as_ref()
            .map(|email| email.as_str()),
        display_name: profile.display_name.as_ref()?.value.as_str(),
        bio: profile.bio.as_ref()?.value.as_str(),
        avatar_url: profile
            .avatar_url
            .as_ref()?
            .value
            .as_ref()
            .map(|url| url.as_str()),
        locale: profile
            .locale
            .as_ref()?
            .value
            .as_ref()
            .map(|locale| locale.as_str()),
        timezone: profile
            .timezone
            .as_ref()?
            .value
            .as_ref()
            .map(|timezone| timezone.as_str()),
        preferences: profile.preferences.as_ref()?.value.to_object(),
        created_at: profile.created?.time().to_string(),
        updated_at: profile.newest().time().to_string(),
        sync_state: sync_word(sync_state),
    })
}

/// An operation.
pub fn operation(record: &OperationRecord) -> OperationView<'_> {
    OperationView {
        id: record.id.to_string(),
        entity: record.entity.as_str(),
        entity_id: &record.entity_id,
        operation: record.kind.as_str(),
        state: record.state.as_str(),
        priority: record.priority.number(),
        retries: record.retries,
        last_error: record.last_error.as_deref(),
        accepted_at: record.accepted_at.to_string(),
        finished_at: record.finished_at.map(|time| time.to_string()),
    }
}

/// A session; `current` is the one that asks.
pub fn session<'a>(session: &'a Session, current: &SessionId) -> SessionView<'a> {
    SessionView {
        id: session.id.as_str(),
        created_at: session.created_at.to_string(),
        last_seen_at: session.last_seen_at.to_string(),
        expires_at: session.expires_at.to_string(),
        user_agent: session.user_agent.as_deref(),
        current: session.id == *current,
    }
}

fn store_view(report: &StoreReport) -> StoreView<'_> {
    StoreView {
        state: report.state,
        since: report.since.map(|time| time.to_string()),
        latency_ms: report
            .latency
            .map(|latency| (latency.as_secs_f64() * 1e6).round() / 1e3),
        error: report.error.as_deref(),
    }
}

fn buffer_view(report: &BufferReport) -> BufferView {
    BufferView {
        state: report.state,
        pending: report.pending,
        dead: report.dead,
        oldest_age_seconds: report.oldest_age.as_secs(),
        bytes: report.bytes,
        max_items: report.max_items,
        damaged_items: report.damaged_items,
        damaged_files: report.damaged_files,
    }
}

/// The contract's word for a mode.
pub fn mode_word(mode: Mode) -> &'static str {
    match mode {
        Mode::Embedded => "embedded",
        Mode::Online => "online",
        Mode::Offline => "offline",
        Mode::CatchingUp => "catching_up",
    }
}

/// How things stand.
pub fn health(report: &HealthReport) -> HealthView<'_> {
    HealthView {
        status: mode_word(report.status),
        stores: StoresView {
            postgres: store_view(&report.postgres),
            redis: store_view(&report.redis),
        },
        buffer: buffer_view(&report.buffer),
        syncd: SyncdView {
            running: report.syncd_running,
        },
        version: env!("CARGO_PKG_VERSION"),
    }
}
