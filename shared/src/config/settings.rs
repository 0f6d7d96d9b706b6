//! The configuration as the rest of the program sees it: checked, typed, complete.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use sqlx::postgres::PgConnectOptions;

use super::source::Source;

/// Everything that can be set, checked. Made by [`Config::load`] or, in tests, [`Config::from_pairs`].
#[derive(Clone, Debug)]
pub struct Config {
    /// What this process is for.
    pub app_env: AppEnv,
    /// Where the API listens.
    pub api_addr: SocketAddr,
    /// Where syncd listens; `None` for nowhere.
    pub syncd_addr: Option<SocketAddr>,
    /// How tokens are checked.
    pub token: TokenConfig,
    /// What a token is worth while Redis is away.
    pub session_policy: SessionPolicy,
    /// PostgreSQL; `None`: the buffer file is the store.
    pub postgres: Option<PostgresConfig>,
    /// Redis; `None`: sessions live in the buffer file.
    pub redis: Option<RedisConfig>,
    /// Deadline of one direct store call.
    pub store_timeout: Duration,
    /// Time between probes of a store that is up.
    pub health_interval: Duration,
    /// The buffer file.
    pub buffer: BufferConfig,
    /// How the buffer is drained.
    pub sync: SyncConfig,
    /// How long a process may take to leave.
    pub shutdown_timeout: Duration,
    /// Most client connections the API holds at once.
    pub max_connections: usize,
    /// Most requests of one user per minute; 0 for no limit.
    pub rate_limit_per_minute: u32,
    /// Origins browsers may call from, in the form of an `Origin` header; `["*"]` for any, empty for none.
    pub cors_origins: Vec<String>,
    /// Logs.
    pub log: LogConfig,
    pub(super) settings: Vec<Setting>,
}

/// What a process is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AppEnv {
    /// On somebody's machine: everything has a default.
    #[default]
    Development,
    /// In automated tests.
    Testing,
    /// For real: keys and stores must be set.
    Production,
}

/// How tokens are checked.
#[derive(Clone, Debug)]
pub struct TokenConfig {
    /// With which keys.
    pub keys: TokenKeys,
    /// What `iss` must be, if anything.
    pub issuer: Option<String>,
    /// What `aud` must name, if anything.
    pub audience: Option<String>,
}

/// The keys that tokens are checked with.
#[derive(Clone, Debug)]
pub enum TokenKeys {
    /// HS256 with this secret of at least 32 bytes.
    Secret(SecretString),
    /// The public key in this PEM file (`PUBLIC KEY`): RSA of at least 2048 bits, P-256 or Ed25519.
    PublicKeyFile(PathBuf),
    /// The keys in this JSON Web Key Set.
    JwksFile(PathBuf),
    /// Nothing is set, and this is not production: HS256 with
    /// [`development_secret`](super::development_secret()).
    DevelopmentSecret,
}

/// What a token that isn't known to be revoked is worth while Redis is away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SessionPolicy {
    /// It is accepted.
    #[default]
    Available,
    /// It is answered with 503.
    Strict,
}

/// The PostgreSQL store.
#[derive(Clone)]
pub struct PostgresConfig {
    /// How to connect. Its own `Debug` shows the password: never print it.
    pub options: PgConnectOptions,
    /// Most connections of one process.
    pub max_connections: usize,
    /// Prepared statements kept per connection, already set in `options`; 0: none are.
    pub statement_cache: usize,
}

impl fmt::Debug for PostgresConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresConfig")
            .field("host", &self.options.get_host())
            .field("port", &self.options.get_port())
            .field("database", &self.options.get_database())
            .field("max_connections", &self.max_connections)
            .field("statement_cache", &self.statement_cache)
            .finish_non_exhaustive()
    }
}

/// The Redis store, as `REDIS_URL` names it: see [`redis_url`](super::redis_url).
#[derive(Clone, Debug)]
pub struct RedisConfig {
    /// Which servers.
    pub servers: RedisServers,
    /// As whom to log in to those that hold the data.
    pub login: RedisLogin,
    /// Which of a server's databases; 0 in a cluster, which has no other.
    pub database: u32,
    /// How TLS is spoken, to the sentinels too; `None`: not at all.
    pub tls: Option<RedisTls>,
}

/// The servers of a Redis store.
#[derive(Clone, Debug)]
pub enum RedisServers {
    /// One.
    Single(RedisAddress),
    /// The one that is master at the time.
    Sentinel {
        /// Those who know which it is.
        sentinels: Vec<RedisAddress>,
        /// What they call it.
        service: String,
        /// As whom to log in to them.
        login: RedisLogin,
    },
    /// The masters of a cluster, which these of its nodes know.
    Cluster(Vec<RedisAddress>),
}

/// Where a Redis server, or a sentinel, listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RedisAddress {
    /// A host's name or address, without brackets, and a port.
    Tcp(String, u16),
    /// A Unix socket.
    Socket(PathBuf),
}

/// As whom to log in to Redis.
#[derive(Clone, Debug, Default)]
pub struct RedisLogin {
    /// The user; `None` for the default one. Never without a password.
    pub user: Option<String>,
    /// The password; `None`: there is no logging in.
    pub password: Option<SecretString>,
}

/// How TLS is spoken to Redis. The files are read at each connection, so that certificates can be renewed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RedisTls {
    /// PEM file with the authorities that are trusted; `None` for those that the web trusts.
    pub root_certificates: Option<PathBuf>,
    /// PEM files with the certificate that is shown to the server, and its key.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// The buffer file.
#[derive(Clone, Debug)]
pub struct BufferConfig {
    /// Where it lies; its directory may not exist yet.
    pub path: PathBuf,
    /// Most pending items.
    pub max_items: u64,
    /// Age at which finished records and dead letters leave it.
    pub retention: Duration,
}

/// How the buffer is drained.
#[derive(Clone, Debug)]
pub struct SyncConfig {
    /// The cycle that runs even if nothing woke it.
    pub interval: Duration,
    /// Items in the first batch after an outage; at most `batch_max`.
    pub batch_size: usize,
    /// Items in the largest batch.
    pub batch_max: usize,
    /// Tries of one item while its store is healthy.
    pub max_retry_attempts: u32,
}

/// Logs.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// Where and how they go.
    pub format: LogFormat,
    /// Which: an `EnvFilter` directive, such as `info` or `info,holdfast_shared=debug`.
    pub level: String,
}

/// Where and how logs go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// The journal under systemd, text on a terminal, else JSON.
    #[default]
    Auto,
    /// The journal, with fields.
    Journald,
    /// One JSON object per line on stderr.
    Json,
    /// Text for people on stderr.
    Text,
}

/// One line of what is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The variable's name.
    pub variable: &'static str,
    /// Its value, with secrets left out; `None` if it has none.
    pub value: Option<String>,
    /// Where the value came from.
    pub source: Source,
}
