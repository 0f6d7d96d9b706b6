//! What Holdfast is compared with: the least that a warp handler with sqlx does for the same answers.
//!
//! It checks the token, parses the body, runs one INSERT or one SELECT on the same table with the same indexes, and
//! answers. It has no buffer, no validation, no metrics, no request ids, no limits. It runs as a process of its own,
//! as Holdfast does: this program started again with a hidden command.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use holdfast_tests::daemon::Daemon;
use holdfast_tests::{ReservedPort, eventually, tokens};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use serde::{Deserialize, Serialize};
use sqlx::postgres::{PgPool, PgPoolOptions};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;
use warp::http::StatusCode;
use warp::reply::{Response, with_status};
use warp::{Filter, Reply};

/// The same as Holdfast's default for `DB_MAX_CONNECTIONS`.
const CONNECTIONS: u32 = 10;

/// Far more than a start takes on a busy machine.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// Milliseconds of the Unix epoch at which stamps begin, and the bits below their milliseconds.
const STAMP_EPOCH_MS: i64 = 1_577_836_800_000;
const STAMP_BITS: u32 = 22;

/// The running process.
#[derive(Debug)]
pub struct Bare {
    _process: Daemon,
    port: ReservedPort,
}

impl Bare {
    /// Starts it on a database that has the tables.
    ///
    /// # Errors
    /// When it doesn't come up.
    pub async fn start(database_url: &str, directory: &std::path::Path) -> Result<Self> {
        let port = ReservedPort::claim()?;
        let this_program =
            std::env::current_exe().context("cannot find the path of this program")?;
        let mut command = Command::new(this_program);
        command.args([
            "bare",
            "--address",
            &port.address(),
            "--database-url",
            database_url,
        ]);
        let process = Daemon::spawn(
            "the bare handler",
            &mut command,
            &directory.join("bare.log"),
        )?;
        let address = port.address();
        eventually(START_DEADLINE, "the bare handler to listen", async || {
            TcpStream::connect(&address).await.map(drop)
        })
        .await
        .with_context(|| process.log_tail(20))?;
        Ok(Self {
            _process: process,
            port,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        self.port.address()
    }
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
}

#[derive(Deserialize)]
struct NewTask {
    title: String,
    description: String,
    priority: i16,
    due_at: Option<DateTime<Utc>>,
    tags: Vec<String>,
}

#[derive(Serialize, sqlx::FromRow)]
struct Task {
    id: Uuid,
    title: String,
    description: String,
    status: String,
    priority: i16,
    due_at: Option<DateTime<Utc>>,
    tags: Vec<String>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    completed_at: Option<DateTime<Utc>>,
}

struct Handler {
    pool: PgPool,
    key: DecodingKey,
    validation: Validation,
}

/// Serves until it is killed.
///
/// # Errors
/// When the database can't be reached or the address can't be bound.
pub async fn serve(address: SocketAddr, database_url: &str) -> Result<()> {
    let pool = PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        // One round trip a request less than the default, which pings here too.
        .test_before_acquire(false)
        .connect(database_url)
        .await
        .context("cannot connect to PostgreSQL")?;
    let handler = Arc::new(Handler {
        pool,
        key: DecodingKey::from_secret(tokens::SECRET.as_bytes()),
        validation: Validation::new(Algorithm::HS256),
    });
    let with_handler = warp::any().map(move || Arc::clone(&handler));
    let token = warp::header::<String>("authorization");
    let create = warp::path!("api" / "v1" / "tasks")
        .and(warp::post())
        .and(with_handler.clone())
        .and(token)
        .and(warp::body::json())
        .then(create);
    let read = warp::path!("api" / "v1" / "tasks" / Uuid)
        .and(warp::get())
        .and(with_handler)
        .and(token)
        .then(read);
    let service = TowerToHyperService::new(warp::service(create.or(read)));
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot bind {address}"))?;
    loop {
        let (stream, _) = listener
            .accept()
            .await
            .context("cannot accept a connection")?;
        stream.set_nodelay(true).context("cannot set TCP_NODELAY")?;
        let connection =
            http1::Builder::new().serve_connection(TokioIo::new(stream), service.clone());
        tokio::spawn(connection);
    }
}

impl Handler {
    fn user(&self, authorization: &str) -> Option<String> {
        let token = authorization.strip_prefix("Bearer ")?;
        let decoded = decode::<Claims>(token, &self.key, &self.validation).ok()?;
        Some(decoded.claims.sub)
    }
}

async fn create(handler: Arc<Handler>, authorization: String, task: NewTask) -> Response {
    let Some(user) = handler.user(&authorization) else {
        return StatusCode::UNAUTHORIZED.into_response();
    };
    match insert(&handler.pool, &user, &task).await {
        Ok(task) => with_status(warp::reply::json(&task), StatusCode::CREATED).into_response(),
        Err(error) => failed(&error),
    }
}

async fn read(id: Uuid, handler: Arc<Handler>, authorization: String) -> Response {
    let Some(user) = handler.user(&authorization) else {
        return StatusCode::UNAUTHORIZED.into_response();
    };
    match find(&handler.pool, &user, id).await {
        Ok(Some(task)) => warp::reply::json(&task).into_response(),
        Ok(None) => StatusCode::NOT_FOUND.into_response(),
        Err(error) => failed(&error),
    }
}

fn failed(error: &sqlx::Error) -> Response {
    eprintln!("{error}");
    StatusCode::INTERNAL_SERVER_ERROR.into_response()
}

async fn insert(pool: &PgPool, user: &str, task: &NewTask) -> Result<Task, sqlx::Error> {
    sqlx::query_as(
        "INSERT INTO tasks (id, user_id, title, description, priority, due_at, tags, created_stamp, title_stamp, \
             description_stamp, status_stamp, priority_stamp, due_at_stamp, tags_stamp) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8, $8, $8, $8, $8, $8) \
         RETURNING id, title, description, status, priority, due_at, tags, created_at, updated_at, completed_at",
    )
    .bind(Uuid::now_v7())
    .bind(user)
    .bind(&task.title)
    .bind(&task.description)
    .bind(task.priority)
    .bind(task.due_at)
    .bind(&task.tags)
    .bind(stamp_now())
    .fetch_one(pool)
    .await
}

async fn find(pool: &PgPool, user: &str, id: Uuid) -> Result<Option<Task>, sqlx::Error> {
    sqlx::query_as(
        "SELECT id, title, description, status, priority, due_at, tags, created_at, updated_at, completed_at \
         FROM tasks WHERE id = $1 AND user_id = $2",
    )
    .bind(id)
    .bind(user)
    .fetch_optional(pool)
    .await
}

/// A number like Holdfast's stamps, so that the index by time grows in the same way.
pub fn stamp_now() -> i64 {
    (Utc::now().timestamp_millis() - STAMP_EPOCH_MS) << STAMP_BITS
}
