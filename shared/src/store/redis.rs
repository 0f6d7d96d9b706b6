//! Redis: sessions, and which of them were revoked.
//!
//! | key | what |
//! |---|---|
//! | `session:{id}` | hash of a session's fields; expires with its token |
//! | `user_sessions:{user}` | sorted set of the user's session ids by expiry; expires with the last of them |
//! | `revocation:{id}` | there while the session is revoked; expires when the revocation may be forgotten |
//! | `revocations` | sorted set of revocations by position, for nodes that mirror them |
//! | `revocations:expiry` | the same by when they may be forgotten, to trim both |
//!
//! A position is Redis' own time in milliseconds, raised where needed so that it always increases.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use deadpool_redis::Manager;
use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{
    AsyncConnectionConfig, ErrorKind, FromRedisValue, Pipeline, RedisError, cmd, pipe,
};
use secrecy::ExposeSecret;
use tokio::time::{Instant, timeout};

use super::FailureClass::{Contended, Item, Systemic, Unavailable};
use super::pool::{Connections, Connector, Reserved};
use super::{FailureClass, StoreError};
use crate::config::RedisConfig;
use crate::domain::{Revocation, Session, SessionId, Timestamp, UserId};
use crate::health::{Probe, Probed};

/// Members of a sorted set with their scores.
type Scored = Vec<(String, u64)>;

/// Most connections of one process. Commands take tens of microseconds, so few are ever in use at once.
const MAX_CONNECTIONS: usize = 16;

/// Most sessions kept for a user: those that expire last.
const MAX_SESSIONS: isize = 1000;

/// Most revocations sent or read at once: some 100 bytes each.
const PAGE: usize = 2000;

/// How long the key that a probe writes lives.
const PROBE_TTL_MS: u64 = 1000;

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
    probe: Arc<Reserved<MultiplexedConnection>>,
}

/// How far a node has read the revocations. The default is the beginning.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RevocationCursor {
    position: u64,
}

impl Redis {
    /// A store that connects when it is first used; each call may take `timeout`.
    ///
    /// # Errors
    /// The URL is not one that the client understands.
    pub fn new(config: &RedisConfig, timeout: Duration) -> Result<Self, StoreError> {
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(timeout * 2 / 3))
            .set_response_timeout(Some(timeout));
        let manager =
            Manager::new_with_config(config.url.expose_secret(), settings).map_err(|error| {
                StoreError::new(Systemic, "the settings for redis don't fit").caused_by(error)
            })?;
        let client = Client {
            manager,
            connect_limit: timeout * 2 / 3,
        };
        Ok(Redis {
            connections: Arc::new(Connections::new(client, MAX_CONNECTIONS, timeout)),
            probe: Arc::new(Reserved::new()),
        })
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
        let mut commands = pipe();
        commands
            .cmd("HSETNX")
            .arg(&key)
            .arg("created_at")
            .arg(session.created_at.as_micros());
        commands.cmd("HSET").arg(&key).arg(fields);
        commands.cmd("PEXPIREAT").arg(&key).arg(expiry_ms);
        commands
            .cmd("ZADD")
            .arg(&set)
            .arg("GT")
            .arg(expiry_ms)
            .arg(session.id.as_str());
        commands
            .cmd("ZREMRANGEBYSCORE")
            .arg(&set)
            .arg("-inf")
            .arg(session.last_seen_at.as_millis());
        commands
            .cmd("ZREMRANGEBYRANK")
            .arg(&set)
            .arg(0)
            .arg(-MAX_SESSIONS - 1);
        // A set without an expiry counts as never expiring, which is greater than any: so first NX, then GT.
        commands.cmd("PEXPIREAT").arg(&set).arg(expiry_ms).arg("NX");
        commands.cmd("PEXPIREAT").arg(&set).arg(expiry_ms).arg("GT");
        self.send(commands).await
    }

    /// Finds the user's sessions that are neither expired nor revoked: up to 1000, those that expire last first.
    ///
    /// # Errors
    /// See [`Redis`].
    pub async fn list_sessions(&self, user: &UserId) -> Result<Vec<Session>, StoreError> {
        let mut commands = pipe();
        commands
            .cmd("ZRANGE")
            .arg(user_key(user))
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
        let mut commands = pipe();
        for id in ids {
            commands.cmd("HGETALL").arg(session_key(id));
            commands.cmd("EXISTS").arg(revocation_key(id));
        }
        let answers: Vec<deadpool_redis::redis::Value> = self.ask(commands).await?;
        ids.iter()
            .zip(answers.chunks(2))
            .map(|(id, answer)| read_session(id, answer))
            .collect()
    }

    /// Revokes sessions, and forgets what is known of them. Again: changes nothing.
    ///
    /// # Errors
    /// See [`Redis`]. Some of them may be revoked all the same; the others are when it is done again.
    pub async fn revoke(&self, revocations: &[(UserId, Revocation)]) -> Result<(), StoreError> {
        for page in revocations.chunks(PAGE) {
            let mut commands = pipe();
            for (
                user,
                Revocation {
                    session_id,
                    keep_until,
                },
            ) in page
            {
                let until_ms = keep_until.as_millis();
                commands
                    .cmd("SET")
                    .arg(revocation_key(session_id))
                    .arg(1)
                    .arg("PXAT")
                    .arg(until_ms);
                commands.cmd("DEL").arg(session_key(session_id));
                commands
                    .cmd("ZREM")
                    .arg(user_key(user))
                    .arg(session_id.as_str());
            }
            announce(&mut commands, page);
            self.send(commands).await?;
        }
        Ok(())
    }

    /// Whether a session is revoked.
    ///
    /// # Errors
    /// See [`Redis`].
    pub async fn is_revoked(&self, id: &SessionId) -> Result<bool, StoreError> {
        let mut commands = pipe();
        commands.cmd("EXISTS").arg(revocation_key(id));
        let (found,): (bool,) = self.ask(commands).await?;
        Ok(found)
    }

    /// Reads revocations that were added after the cursor, oldest first and a bounded number, and where to go on.
    /// When Redis has gone back in time (a failover, or lost data), it begins anew; so one may be read twice.
    ///
    /// # Errors
    /// See [`Redis`].
    pub async fn revocations_since(
        &self,
        cursor: RevocationCursor,
    ) -> Result<(Vec<Revocation>, RevocationCursor), StoreError> {
        let (page, newest) = self.read_revocations(&cursor).await?;
        if newest < cursor.position {
            return Ok((Vec::new(), RevocationCursor::default()));
        }
        let position = page
            .last()
            .map_or(cursor.position, |(_, position)| *position);
        let revocations = page
            .iter()
            .filter_map(|(member, _)| read_revocation(member))
            .collect();
        Ok((revocations, RevocationCursor { position }))
    }

    /// A page after the cursor, with positions, and the newest position of all.
    async fn read_revocations(
        &self,
        cursor: &RevocationCursor,
    ) -> Result<(Scored, u64), StoreError> {
        let mut commands = pipe();
        commands
            .cmd("ZRANGE")
            .arg("revocations")
            .arg(format!("({}", cursor.position))
            .arg("+inf");
        commands
            .arg("BYSCORE")
            .arg("LIMIT")
            .arg(0)
            .arg(PAGE)
            .arg("WITHSCORES");
        commands
            .cmd("ZRANGE")
            .arg("revocations")
            .arg(-1)
            .arg(-1)
            .arg("WITHSCORES");
        let (page, newest): (Scored, Scored) = self.ask(commands).await?;
        Ok((page, newest.first().map_or(0, |(_, position)| *position)))
    }

    async fn send(&self, commands: Pipeline) -> Result<(), StoreError> {
        let _: Vec<deadpool_redis::redis::Value> = self.ask(commands).await?;
        Ok(())
    }

    async fn ask<T: FromRedisValue>(&self, commands: Pipeline) -> Result<T, StoreError> {
        self.connections
            .call(async |connection| Ok(commands.query_async(connection).await?))
            .await
    }

    async fn write_probe(&self) -> Result<Probed, StoreError> {
        let mut connection = match self.probe.take() {
            Some(connection) => connection,
            None => self.connections.connector().connect().await?,
        };
        let started = Instant::now();
        let mut write = cmd("SET");
        write
            .arg("holdfast:probe")
            .arg(1)
            .arg("PX")
            .arg(PROBE_TTL_MS);
        let () = write.query_async(&mut connection).await?;
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

/// How to get a connection.
struct Client {
    manager: Manager,
    connect_limit: Duration,
}

impl Connector for Client {
    const STORE: &'static str = "redis";

    type Connection = MultiplexedConnection;

    async fn connect(&self) -> Result<MultiplexedConnection, StoreError> {
        let late = |_| StoreError::connection_late(Self::STORE);
        let attempt = deadpool::managed::Manager::create(&self.manager);
        timeout(self.connect_limit, attempt)
            .await
            .map_err(late)?
            .map_err(classify_connecting)
    }

    async fn ping(&self, connection: &mut MultiplexedConnection) -> bool {
        let pong: Result<(), RedisError> = cmd("PING").query_async(connection).await;
        pong.is_ok()
    }
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

fn announce(commands: &mut Pipeline, page: &[(UserId, Revocation)]) {
    commands
        .cmd("EVAL")
        .arg(ANNOUNCE)
        .arg(2)
        .arg("revocations")
        .arg("revocations:expiry");
    for (_, revocation) in page {
        commands
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
fn read_session(
    id: &SessionId,
    answer: &[deadpool_redis::redis::Value],
) -> Result<Option<Session>, StoreError> {
    let [hash, revoked] = answer else {
        return Ok(None);
    };
    let fields: HashMap<String, String> =
        FromRedisValue::from_redis_value(hash.clone()).map_err(RedisError::from)?;
    let revoked: bool =
        FromRedisValue::from_redis_value(revoked.clone()).map_err(RedisError::from)?;
    let time = |field: &str| Some(Timestamp::from_micros(fields.get(field)?.parse().ok()?));
    let session = || {
        Some(Session {
            id: id.clone(),
            user_id: UserId::parse(fields.get("user_id")?).ok()?,
            created_at: time("created_at")?,
            last_seen_at: time("last_seen_at")?,
            expires_at: time("expires_at")?,
            user_agent: fields.get("user_agent").cloned(),
        })
    };
    Ok(if revoked { None } else { session() })
}

/// The first word of Redis' refusals, with their class and our words. Any other refusal is of the very command.
const MEANINGS: &[(&str, FailureClass, &str)] = &[
    (
        "READONLY",
        Unavailable,
        "redis takes no writes: it is a replica",
    ),
    ("LOADING", Unavailable, "redis is loading its data"),
    ("MASTERDOWN", Unavailable, "redis has lost its master"),
    ("CLUSTERDOWN", Unavailable, "the redis cluster is down"),
    ("MISCONF", Unavailable, "redis can't write its data to disk"),
    (
        "NOREPLICAS",
        Unavailable,
        "redis has too few replicas to take writes",
    ),
    ("OOM", Unavailable, "redis is out of memory"),
    ("BUSY", Contended, "redis is busy with a script"),
    ("TRYAGAIN", Contended, "redis is moving the keys"),
    ("NOAUTH", Systemic, "redis asks for a password"),
    (
        "WRONGPASS",
        Systemic,
        "redis refuses the user or the password",
    ),
    ("NOPERM", Systemic, "the redis user lacks a right"),
];

impl From<RedisError> for StoreError {
    /// The failure of a command that was sent.
    fn from(error: RedisError) -> Self {
        match error.kind() {
            ErrorKind::Server(_) | ErrorKind::Extension => refused(error),
            ErrorKind::UnexpectedReturnType => {
                StoreError::new(Item, "redis holds what this program can't read").caused_by(error)
            }
            _ => StoreError::new(Unavailable, "the connection to redis broke")
                .with_answer_lost()
                .caused_by(error),
        }
    }
}

fn refused(error: RedisError) -> StoreError {
    let refusals = error.clone().into_server_errors().unwrap_or_default();
    let known = MEANINGS
        .iter()
        .find(|(word, ..)| refusals.iter().any(|(_, refusal)| refusal.code() == *word));
    let (class, summary) = known.map_or(
        (Item, "redis refuses the command"),
        |(_, class, summary)| (*class, *summary),
    );
    StoreError::new(class, summary)
        .with_refusal(None)
        .caused_by(error)
}

fn classify_connecting(error: RedisError) -> StoreError {
    match error.kind() {
        ErrorKind::AuthenticationFailed => {
            StoreError::new(Systemic, "redis refuses the user or the password").caused_by(error)
        }
        ErrorKind::InvalidClientConfig => {
            StoreError::new(Systemic, "the settings for redis don't fit").caused_by(error)
        }
        _ => StoreError::new(Unavailable, "redis can't be reached").caused_by(error),
    }
}
