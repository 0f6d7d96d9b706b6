//! The Redis store: what is kept there, and how it is asked for. The keys are in the [module's documentation](super).
//!
//! A position of a revocation is Redis' own time in milliseconds, raised where needed so that it always increases.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use deadpool_redis::redis::{FromRedisValue, Value};
use tokio::time::Instant;

use super::client::Client;
use super::commands::Commands;
use super::connection::Connection;
use super::errors::unreadable;
use crate::config::RedisConfig;
use crate::domain::{Revocation, Session, SessionId, Timestamp, UserId};
use crate::health::{Probe, Probed};
use crate::store::FailureClass::{Item, Systemic};
use crate::store::StoreError;
use crate::store::pool::{Connections, Connector as _, Reserved};

/// Members of a sorted set with their scores.
type Scored = Vec<(String, u64)>;

/// Most connections of one process, and of each to one node of a cluster. Commands take tens of microseconds, so few
/// are ever in use at once.
const MAX_CONNECTIONS: usize = 16;

/// Most sessions kept for a user: those that expire last.
const MAX_SESSIONS: isize = 1000;

/// Most revocations sent or read at once: some 100 bytes each.
const PAGE: usize = 2000;

const REVOCATIONS: &str = "revocations";
const REVOCATIONS_BY_EXPIRY: &str = "{revocations}:expiry";

/// Adds revocations (ARGV: session id and keep-until in microseconds, in turn) to the sets, and trims what may be
/// forgotten. One that is there already keeps its position.
const ANNOUNCE: &str = "
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2]
local position = math.max(now, (tonumber(last) or 0) + 1)
for i = 1, #ARGV, 2 do
    local member = ARGV[i + 1] .. ':' .. ARGV[i]
    if redis.call('ZADD', KEYS[1], 'NX', position, member) == 1 then position = position + 1 end
    redis.call('ZADD', KEYS[2], math.floor(ARGV[i + 1] / 1000), member)
end
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 1000)) do
    redis.call('ZREM', KEYS[1], member)
    redis.call('ZREM', KEYS[2], member)
end
";

/// The Redis store. Clones share its connections.
///
/// Every method fails with a [`StoreError`] whose class says what to do, within the timeout.
#[derive(Clone)]
pub struct Redis {
    connections: Arc<Connections<Client>>,
    probe: Arc<Reserved<Connection>>,
}

/// How far a node has read the revocations. The default is the beginning.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RevocationCursor {
    /// The last that was read, and its position.
    last: Option<(String, u64)>,
}

/// Revocations as they were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevocationPage {
    /// Those after the cursor, oldest first; at most 2000.
    pub revocations: Vec<Revocation>,
    /// How far they reach.
    pub cursor: RevocationCursor,
    /// Whether there were no more.
    pub is_last: bool,
}

impl Redis {
    /// A store that connects when it is first used; each call may take `timeout`.
    pub fn new(config: &RedisConfig, timeout: Duration) -> Self {
        let client = Client::new(config, timeout);
        Redis {
            connections: Arc::new(Connections::new(client, MAX_CONNECTIONS, timeout)),
            probe: Arc::new(Reserved::new()),
        }
    }

    /// Records that a session was seen. The time it was first seen stays. Of a user's sessions the 1000 that expire
    /// last are kept.
    ///
    /// # Errors
    /// See [`Redis`].
    pub async fn record_session(&self, session: &Session) -> Result<(), StoreError> {
        let (key, set) = (session_key(&session.id), user_key(&session.user_id));
        let expiry_ms = session.expires_at.as_millis();
        let mut fields = vec![
            ("user_id", session.user_id.as_str().to_owned()),
            ("last_seen_at", session.last_seen_at.as_micros().to_string()),
            ("expires_at", session.expires_at.as_micros().to_string()),
        ];
        fields.extend(
            session
                .user_agent
                .clone()
                .map(|agent| ("user_agent", agent)),
        );
        let mut commands = Commands::default();
        commands
            .on(&key, "HSETNX")
            .arg("created_at")
            .arg(session.created_at.as_micros());
        commands.on(&key, "HSET").arg(fields);
        commands
            .on(&set, "ZADD")
            .arg("GT")
            .arg(expiry_ms)
            .arg(session.id.as_str());
        commands
            .on(&set, "ZREMRANGEBYSCORE")
            .arg("-inf")
            .arg(session.last_seen_at.as_millis());
        commands
            .on(&set, "ZREMRANGEBYRANK")
            .arg(0)
            .arg(-MAX_SESSIONS - 1);
        // Both end with the last token. What has no expiry counts as never expiring, which is later than any: so first NX,
        // then GT.
        for key in [&key, &set] {
            commands.on(key, "PEXPIREAT").arg(expiry_ms).arg("NX");
            commands.on(key, "PEXPIREAT").arg(expiry_ms).arg("GT");
        }
        self.send(commands).await
    }

    /// Finds the user's sessions that are neither expired nor revoked: up to 1000, those that expire last first.
    ///
    /// # Errors
    /// See [`Redis`].
    pub async fn list_sessions(&self, user: &UserId) -> Result<Vec<Session>, StoreError> {
        let mut commands = Commands::default();
        commands
            .on(&user_key(user), "ZRANGE")
            .arg(0)
            .arg(MAX_SESSIONS - 1)
            .arg("REV");
        let (ids,): (Vec<String>,) = self.ask(commands).await?;
        let ids: Vec<SessionId> = ids
            .iter()
            .filter_map(|id| SessionId::parse(id).ok())
            .collect();
        let sessions = self.read_sessions(&ids).await?;
        Ok(sessions
            .into_iter()
            .flatten()
            .filter(|session| session.user_id == *user)
            .collect())
    }

    /// Finds a session that is neither expired nor revoked, whoever's it is.
    ///
    /// # Errors
    /// See [`Redis`].
    pub async fn find_session(&self, id: &SessionId) -> Result<Option<Session>, StoreError> {
        let found = self.read_sessions(std::slice::from_ref(id)).await?;
        Ok(found.into_iter().next().flatten())
    }

    async fn read_sessions(&self, ids: &[SessionId]) -> Result<Vec<Option<Session>>, StoreError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut commands = Commands::default();
        for id in ids {
            commands.on(&session_key(id), "HGETALL");
            commands.on(&session_key(id), "PEXPIRETIME");
            commands.on(&revocation_key(id), "EXISTS");
        }
        let answers: Vec<Value> = self.ask(commands).await?;
        ids.iter()
            .zip(answers.chunks(3))
            .map(|(id, answer)| read_session(id, answer))
            .collect()
    }

    /// Revokes sessions, and forgets what is known of them. Again: changes nothing.
    ///
    /// # Errors
    /// See [`Redis`]. Some of them may be revoked all the same; the others are when it is done again.
    pub async fn revoke(&self, revocations: &[(UserId, Revocation)]) -> Result<(), StoreError> {
        for page in revocations.chunks(PAGE) {
            let mut commands = Commands::default();
            add_revocations(&mut commands, page.iter().map(|(_, revocation)| revocation));
            for (user, revocation) in page {
                let id = revocation.session_id.as_str();
                commands.on(&user_key(user), "ZREM").arg(id);
            }
            self.send(commands).await?;
        }
        Ok(())
    }

    /// As [`Redis::revoke`], of whomever's sessions.
    ///
    /// # Errors
    /// As there.
    pub async fn revoke_again(&self, revocations: &[Revocation]) -> Result<(), StoreError> {
        for page in revocations.chunks(PAGE) {
            let mut commands = Commands::default();
            add_revocations(&mut commands, page.iter());
            self.send(commands).await?;
        }
        Ok(())
    }

    /// Whether a session is revoked.
    ///
    /// # Errors
    /// See [`Redis`].
    pub async fn is_revoked(&self, id: &SessionId) -> Result<bool, StoreError> {
        let mut commands = Commands::default();
        commands.on(&revocation_key(id), "EXISTS");
        let (found,): (bool,) = self.ask(commands).await?;
        Ok(found)
    }

    /// Reads revocations that were added after the cursor. `None` when the last one before it isn't there any more:
    /// Redis has gone back to what it was before (a failover, or a restart, that cost it its last writes), or has lost
    /// everything. What it has now is then to be read from the beginning, and what it doesn't have, to be
    /// [revoked again](Redis::revoke_again). As long as that one is there, so is all that was read before it: what a
    /// server takes over of another is the beginning of its history.
    ///
    /// # Errors
    /// See [`Redis`].
    pub async fn revocations_since(
        &self,
        cursor: RevocationCursor,
    ) -> Result<Option<RevocationPage>, StoreError> {
        let limit = PAGE + usize::from(cursor.last.is_some());
        let mut read = self.read_revocations(&cursor, limit).await?;
        let is_last = read.len() < limit;
        if let Some(last) = &cursor.last {
            if read.first() != Some(last) {
                return Ok(None);
            }
            read.remove(0);
        }
        let revocations = read
            .iter()
            .filter_map(|(member, _)| read_revocation(member));
        Ok(Some(RevocationPage {
            revocations: revocations.collect(),
            is_last,
            cursor: RevocationCursor {
                last: read.pop().or(cursor.last),
            },
        }))
    }

    /// So many from the last one before the cursor on, with positions.
    async fn read_revocations(
        &self,
        cursor: &RevocationCursor,
        limit: usize,
    ) -> Result<Scored, StoreError> {
        let from = cursor.last.as_ref().map_or(0, |(_, position)| *position);
        let mut commands = Commands::default();
        commands
            .on(REVOCATIONS, "ZRANGE")
            .arg(from)
            .arg("+inf")
            .arg("BYSCORE")
            .arg("LIMIT")
            .arg(0)
            .arg(limit)
            .arg("WITHSCORES");
        let (page,) = self.ask(commands).await?;
        Ok(page)
    }

    async fn send(&self, commands: Commands) -> Result<(), StoreError> {
        let _: Vec<Value> = self.ask(commands).await?;
        Ok(())
    }

    async fn ask<T: FromRedisValue>(&self, commands: Commands) -> Result<T, StoreError> {
        self.connections
            .call(async |connection| {
                let answers = Value::Array(connection.run(commands).await?);
                T::from_redis_value(answers).map_err(unreadable)
            })
            .await
    }

    async fn write_probe(&self) -> Result<Probed, StoreError> {
        let mut connection = match self.probe.take() {
            Some(connection) => connection,
            None => self.connections.connector().connect().await?,
        };
        let started = Instant::now();
        connection.write_probe().await.map_err(never_accepted)?;
        self.probe.keep(connection);
        Ok(Probed {
            latency: started.elapsed(),
            clock: None,
            database_id: None,
        })
    }
}

impl Probe for Redis {
    /// A write, since a replica answers everything else.
    async fn probe(&self) -> Result<Probed, StoreError> {
        self.connections.doubt_unless_well(self.write_probe()).await
    }
}

/// Who refuses what a probe writes refuses everything.
fn never_accepted(error: StoreError) -> StoreError {
    if error.class() != Item {
        return error;
    }
    StoreError::new(Systemic, "redis refuses what this program does").caused_by(error)
}

fn session_key(id: &SessionId) -> String {
    format!("session:{id}")
}

fn user_key(user: &UserId) -> String {
    format!("user_sessions:{user}")
}

fn revocation_key(id: &SessionId) -> String {
    format!("revocation:{id}")
}

fn add_revocations<'r>(
    commands: &mut Commands,
    page: impl Iterator<Item = &'r Revocation> + Clone,
) {
    for revocation in page.clone() {
        commands
            .on(&revocation_key(&revocation.session_id), "SET")
            .arg(1)
            .arg("PXAT")
            .arg(revocation.keep_until.as_millis());
        commands.on(&session_key(&revocation.session_id), "DEL");
    }
    let announcement = commands.script(ANNOUNCE, [REVOCATIONS, REVOCATIONS_BY_EXPIRY]);
    for revocation in page {
        announcement
            .arg(revocation.session_id.as_str())
            .arg(revocation.keep_until.as_micros());
    }
}

/// A member of `revocations`: when it may be forgotten, in microseconds, a colon, and the session's id.
fn read_revocation(member: &str) -> Option<Revocation> {
    let (keep_until_us, id) = member.split_once(':')?;
    let keep_until = Timestamp::from_micros(keep_until_us.parse().ok()?);
    Some(Revocation {
        session_id: SessionId::parse(id).ok()?,
        keep_until,
    })
}

/// From the hash and whether there is a revocation. A hash with fields missing is one that is just going.
fn read_session(id: &SessionId, answer: &[Value]) -> Result<Option<Session>, StoreError> {
    let [hash, expiry, revoked] = answer else {
        return Ok(None);
    };
    let fields: HashMap<String, String> =
        FromRedisValue::from_redis_value(hash.clone()).map_err(unreadable)?;
    let revoked: bool = FromRedisValue::from_redis_value(revoked.clone()).map_err(unreadable)?;
    let expiry: i64 = FromRedisValue::from_redis_value(expiry.clone()).map_err(unreadable)?;
    let last_expiry = Timestamp::from_micros(expiry.saturating_mul(1000));
    let time = |field: &str| Some(Timestamp::from_micros(fields.get(field)?.parse().ok()?));
    let session = || {
        Some(Session {
            id: id.clone(),
            user_id: UserId::parse(fields.get("user_id")?).ok()?,
            created_at: time("created_at")?,
            last_seen_at: time("last_seen_at")?,
            // That of the token seen last, which another one may outlive.
            expires_at: time("expires_at")?.max(last_expiry),
            user_agent: fields.get("user_agent").cloned(),
        })
    };
    Ok(if revoked { None } else { session() })
}
