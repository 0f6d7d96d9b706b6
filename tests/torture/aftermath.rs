//! After the last fault: waits until everything has drained, then reads what the
//! stores and the buffers hold.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use holdfast_shared::buffer::Reader;
use holdfast_tests::eventually;
use serde_json::Value;
use sqlx::Row as _;
use sqlx::postgres::{PgConnection, PgRow};
use uuid::Uuid;

use crate::history::{Books, End, Entry, FIELDS, Outcome, Resource, Row, Thing, Token};
use crate::users;
use crate::values;
use crate::world::{DATABASE, World};

/// An update of what isn't there is tried for more than half a minute; a lane
/// that was refused everything tries again each cycle, which is 30 s.
const DRAIN_DEADLINE: Duration = Duration::from_secs(150);

/// Most dead letters read from one buffer.
const DEAD_MAX: usize = 1_000_000;

/// Waits until every process says that it is online and nothing waits; gives
/// how long that took.
///
/// # Errors
/// When one doesn't; says which, and its health.
pub async fn drain(world: &World) -> Result<Duration> {
    let began = std::time::Instant::now();
    for server in &world.servers {
        let what = format!("{} to be online and drained", server.api);
        let program = server.program.lock().await;
        eventually(DRAIN_DEADLINE, &what, async || {
            match program.health().await {
                Ok(health) if is_drained(&health) => Ok(()),
                Ok(health) => Err(health.to_string()),
                Err(error) => Err(format!("{error:#}")),
            }
        })
        .await?;
    }
    Ok(began.elapsed())
}

fn is_drained(health: &Value) -> bool {
    health["status"] == "online" && health["buffer"]["pending"] == 0
}

/// Reads everything.
///
/// # Errors
/// When PostgreSQL or a buffer can't be read.
pub async fn read(world: &World) -> Result<Outcome> {
    let mut connection = world.postgres.lock().await.connect(DATABASE).await?;
    let mut outcome = Outcome {
        rows: rows(&mut connection).await?,
        ledger: ledger(&mut connection, world).await?,
        ..Outcome::default()
    };
    for place in &world.places {
        let path = place.node.buffer_path();
        let reader = Reader::open(&path)?.context("a node has no buffer")?;
        let snapshot = reader.snapshot()?;
        let counters = snapshot.counters;
        outcome.books.push(Books {
            accepted: counters.accepted,
            pending: counters.pending,
            applied: counters.applied,
            superseded: counters.superseded,
            dead: counters.dead,
            astray: counters.imbalance() + i64::try_from(snapshot.set_aside)?,
        });
        for letter in reader.list_dead(None, DEAD_MAX)? {
            let id = letter.item.operation.id.as_uuid();
            outcome.dead.insert(id, letter.reason);
        }
    }
    Ok(outcome)
}

async fn rows(connection: &mut PgConnection) -> Result<BTreeMap<Resource, Row>> {
    let tasks = sqlx::query(
        "SELECT id, user_id, title, description, tags, to_json(due_at)#>>'{}' AS due_at, \
             deleted_stamp > 0 AS deleted FROM tasks",
    );
    let mut rows = BTreeMap::new();
    for row in tasks.fetch_all(&mut *connection).await? {
        let resource = Resource {
            user: user(&row, "user_id")?,
            thing: Thing::Task(row.try_get("id")?),
        };
        let fields = [
            Value::from(row.try_get::<String, _>("title")?),
            Value::from(row.try_get::<String, _>("description")?),
            Value::from(row.try_get::<Vec<String>, _>("tags")?),
            Value::from(row.try_get::<Option<String>, _>("due_at")?),
        ];
        let deleted = row.try_get("deleted")?;
        rows.insert(
            resource,
            Row {
                tokens: tokens(true, &fields),
                deleted,
            },
        );
    }
    let profiles = sqlx::query(
        "SELECT id, display_name, bio, avatar_url, preferences->>'w' AS preferences FROM users",
    );
    for row in profiles.fetch_all(connection).await? {
        let resource = Resource {
            user: user(&row, "id")?,
            thing: Thing::Profile,
        };
        let preferences: Option<String> = row.try_get("preferences")?;
        let preferences = preferences
            .map(|token| token.parse::<Token>())
            .transpose()?;
        let fields = [
            Value::from(row.try_get::<String, _>("display_name")?),
            Value::from(row.try_get::<String, _>("bio")?),
            Value::from(row.try_get::<Option<String>, _>("avatar_url")?),
            preferences.map_or(Value::Null, |token| serde_json::json!({"w": token})),
        ];
        rows.insert(
            resource,
            Row {
                tokens: tokens(false, &fields),
                deleted: false,
            },
        );
    }
    Ok(rows)
}

fn tokens(is_task: bool, fields: &[Value; FIELDS]) -> [Token; FIELDS] {
    std::array::from_fn(|field| values::token_of(is_task, field, &fields[field]))
}

fn user(row: &PgRow, column: &str) -> Result<u32> {
    let name: String = row.try_get(column)?;
    users::number(&name).with_context(|| format!("a row of {name}, who is nobody here"))
}

async fn ledger(connection: &mut PgConnection, world: &World) -> Result<BTreeMap<Uuid, Entry>> {
    let records = sqlx::query(
        "SELECT id, user_id, idempotency_key, state, reason, finished_at FROM applied_operations",
    );
    let mut ledger = BTreeMap::new();
    for row in records.fetch_all(connection).await? {
        let key: Option<String> = row.try_get("idempotency_key")?;
        let reason: Option<String> = row.try_get("reason")?;
        let finished: chrono::DateTime<chrono::Utc> = row.try_get("finished_at")?;
        let entry = Entry {
            user: user(&row, "user_id")?,
            key: key.as_deref().and_then(values::spelt),
            end: end(&row.try_get::<String, _>("state")?, reason)?,
            finished: world.recorder.time_of(SystemTime::from(finished)),
        };
        ledger.insert(row.try_get("id")?, entry);
    }
    Ok(ledger)
}

fn end(state: &str, reason: Option<String>) -> Result<End> {
    match state {
        "applied" => Ok(End::Applied),
        "superseded" => Ok(End::Superseded),
        "dead" => Ok(End::Dead(reason.unwrap_or_default())),
        other => bail!("an operation in the ledger is {other}"),
    }
}
