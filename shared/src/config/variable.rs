//! The declaration of every variable: the one place where a name, a default, a bound or a meaning is written.
//! Documents and loader are made from it.

/// One environment variable.
#[derive(Clone, Copy, Debug)]
pub struct Variable {
    /// Its name in the environment.
    pub name: &'static str,
    /// Another name it is accepted under.
    pub alias: Option<&'static str>,
    /// Where it belongs in documents.
    pub section: Section,
    /// The value it has when unset; `None`: no value.
    pub default: Option<&'static str>,
    /// What values it takes.
    pub kind: Kind,
    /// What it does, in a sentence or two.
    pub meaning: &'static str,
}

/// What values a variable takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any text, checked further where it is used.
    Text,
    /// Text never to be shown; also read from the file `NAME_FILE` names, and from a systemd credential.
    Secret,
    /// One of these words, in any case.
    Choice(&'static [&'static str]),
    /// A whole number within these bounds, both allowed.
    Number {
        /// The smallest.
        min: u64,
        /// The largest.
        max: u64,
    },
    /// An IP address and a port.
    Address,
    /// A path in the file system.
    Path,
}

/// A heading in documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// What kind of process this is, and where it listens.
    Process,
    /// Token validation and sessions.
    Tokens,
    /// The PostgreSQL store.
    Postgres,
    /// The Redis store.
    Redis,
    /// Deadlines of store calls and probes.
    Health,
    /// The shared buffer file.
    Buffer,
    /// Draining the buffer.
    Sync,
    /// Bounds of the API.
    Limits,
    /// Logs.
    Logging,
}

impl Section {
    /// The heading's text.
    pub fn title(self) -> &'static str {
        match self {
            Section::Process => "Process",
            Section::Tokens => "Tokens and sessions",
            Section::Postgres => "PostgreSQL (none set: all data lives in the buffer file)",
            Section::Redis => "Redis",
            Section::Health => "Store deadlines",
            Section::Buffer => "Buffer",
            Section::Sync => "Synchronisation",
            Section::Limits => "Limits",
            Section::Logging => "Logging",
        }
    }
}

impl Variable {
    /// Whether the value must never be shown.
    pub fn is_secret(&self) -> bool {
        self.kind == Kind::Secret
    }

    /// Every name that sets it: its own, the alias, and for a secret `NAME_FILE`.
    pub fn accepted_names(&self) -> impl Iterator<Item = String> {
        let file = self.is_secret().then(|| self.file_name());
        [
            Some(self.name.to_owned()),
            self.alias.map(str::to_owned),
            file,
        ]
        .into_iter()
        .flatten()
    }

    /// The variable that names a file to read a secret from.
    pub(super) fn file_name(&self) -> String {
        format!("{}_FILE", self.name)
    }

    /// What it accepts, for documents; empty for free text.
    pub fn accepts(&self) -> String {
        match self.kind {
            Kind::Choice(words) => words.join(", "),
            Kind::Number { min, max } => format!("{min} to {max}"),
            Kind::Secret => format!("also read from the file {} names", self.file_name()),
            Kind::Text | Kind::Address | Kind::Path => String::new(),
        }
    }
}

/// Every variable, in the order documents show them.
pub fn variables() -> &'static [Variable] {
    VARIABLES
}

macro_rules! declare {
    ($($section:ident { $($name:ident = $default:expr, $kind:expr, $meaning:literal $(, alias $alias:literal)?;)* })*) => {
        $($(
            pub(super) const $name: Variable = Variable {
                name: stringify!($name),
                alias: declare!(@alias $($alias)?),
                section: Section::$section,
                default: $default,
                kind: $kind,
                meaning: $meaning,
            };
        )*)*
        static VARIABLES: &[Variable] = &[$($($name),*),*];
    };
    (@alias) => { None };
    (@alias $alias:literal) => { Some($alias) };
}

const fn number(min: u64, max: u64) -> Kind {
    Kind::Number { min, max }
}

declare! {
    Process {
        APP_ENV = Some("development"), Kind::Choice(&["development", "testing", "production"]),
            "What this process is for. Production refuses to start without keys and stores, and never reads .env.";
        API_ADDR = Some("127.0.0.1:8080"), Kind::Address,
            "Where the API listens, as address:port.";
        SYNCD_ADDR = Some("127.0.0.1:8081"), Kind::Address,
            "Where syncd serves its probes, metrics and status page, as address:port; off for nowhere.";
        SHUTDOWN_TIMEOUT_SECONDS = Some("20"), number(1, 600),
            "How long either process may take to finish its work after SIGTERM before it leaves.";
    }
    Tokens {
        JWT_SECRET = None, Kind::Secret,
            "Secret of tokens signed with HS256, at least 32 bytes. Set exactly one of this, JWT_PUBLIC_KEY_FILE and \
             JWT_JWKS_FILE; outside production, with none set, a random secret is made beside the buffer.";
        JWT_PUBLIC_KEY_FILE = None, Kind::Path,
            "PEM file with the public key of tokens signed with RS256, ES256 or EdDSA; the key fixes which.";
        JWT_JWKS_FILE = None, Kind::Path,
            "JSON Web Key Set with the public keys of tokens, chosen by kid; read again when it changes.";
        JWT_ISSUER = None, Kind::Text,
            "When set, a token's iss must be this.";
        JWT_AUDIENCE = None, Kind::Text,
            "When set, a token's aud must name this.";
        SESSION_POLICY = Some("available"), Kind::Choice(&["available", "strict"]),
            "While Redis is away: available accepts tokens that aren't known to be revoked, strict answers 503.";
    }
    Postgres {
        DATABASE_URL = None, Kind::Secret,
            "postgres://user:password@host:port/name, with sslmode, sslrootcert, sslcert, sslkey, application_name or \
             options as parameters. Set this or DB_HOST and its companions, not both.";
        DB_HOST = None, Kind::Text,
            "Host name or address of PostgreSQL, or the directory of its socket.";
        DB_PORT = Some("5432"), number(1, 65535),
            "Port of PostgreSQL.";
        DB_USER = Some("holdfast"), Kind::Text,
            "Role to connect as.";
        DB_PASSWORD = None, Kind::Secret,
            "Password of that role.";
        DB_NAME = Some("holdfast"), Kind::Text,
            "Database to use.";
        DB_SSLMODE = Some("prefer"), Kind::Choice(&["disable", "prefer", "require", "verify-ca", "verify-full"]),
            "How much TLS is asked of PostgreSQL. Only verify-full is proof against somebody in between: verify-ca also \
             takes what a public authority has signed for any host. A private authority's certificate needs \
             DATABASE_URL with sslrootcert.";
        DB_MAX_CONNECTIONS = Some("10"), number(1, 1000),
            "Most connections one process holds to PostgreSQL.";
        DB_STATEMENT_CACHE = Some("100"), number(0, 10_000),
            "Prepared statements kept per connection; 0 behind a pooler that can't keep them, such as PgBouncer in \
             transaction mode without max_prepared_statements.";
    }
    Redis {
        REDIS_URL = None, Kind::Secret,
            "redis://user:password@host:port/database for one server, redis+unix:///path/to/socket for one on this machine, \
             redis+sentinel://user:password@host:port,host:port/service/database for the master of a service, by sentinels \
             that watch it (their own login is in the parameters sentinel_username and sentinel_password), \
             redis+cluster://user:password@host:port,host:port for a cluster, by some of its nodes. The port is 6379 if not \
             given, of a sentinel 26379. With rediss in place of redis: TLS, with the parameters sslrootcert (else those \
             authorities are trusted that the web trusts), sslcert and sslkey. Unset: sessions live in the buffer file.";
    }
    Health {
        STORE_TIMEOUT_MS = Some("750"), number(10, 60_000),
            "Deadline of one direct store call, in milliseconds, after which the write is buffered.";
        HEALTH_INTERVAL_MS = Some("1000"), number(10, 60_000),
            "Time between probes of a store that is up, in milliseconds; one that is down is probed at least every 200.";
    }
    Buffer {
        BUFFER_PATH = Some("./data/buffer.redb"), Kind::Path,
            "The shared buffer file, on a local file system. The lock, the archive and the development secret lie beside it.",
            alias "BOLTDB_PATH";
        BUFFER_MAX_SIZE = Some("1000000"), number(1, 100_000_000),
            "Most pending items; beyond it new buffered writes are answered 503.";
        BUFFER_RETENTION_HOURS = Some("24"), number(1, 87_600),
            "Age at which finished records are removed and dead letters archived. Pending items never expire.";
    }
    Sync {
        SYNC_INTERVAL_SECONDS = Some("30"), number(1, 3600),
            "The cycle that syncd runs even if nothing woke it.";
        SYNC_BATCH_SIZE = Some("50"), number(1, 10_000),
            "Items in the first batch after an outage.";
        SYNC_BATCH_MAX = Some("2000"), number(1, 10_000),
            "Items in the largest batch it grows to.";
        MAX_RETRY_ATTEMPTS = Some("3"), number(1, 100),
            "Tries of one item while its store is healthy, before it becomes a dead letter. An outage uses none.";
    }
    Limits {
        MAX_CONNECTIONS = Some("10000"), number(1, 1_000_000),
            "Most client connections the API holds at once. Beyond them probes are still answered, and other requests \
             get 503. The limit of open files is raised to fit, as far as the system allows.";
        RATE_LIMIT_PER_MINUTE = Some("0"), number(0, 1_000_000),
            "Most requests of one user per minute, at each API process; 0 for no limit.";
        CORS_ORIGINS = None, Kind::Text,
            "Origins that browsers may call from, separated by commas, as https://app.example.com; * for any.";
    }
    Logging {
        LOG_FORMAT = Some("auto"), Kind::Choice(&["auto", "journald", "json", "text"]),
            "Where and how logs go: auto picks the journal under systemd, text on a terminal, else JSON on stderr.";
        LOG_LEVEL = Some("info"), Kind::Text,
            "error, warn, info, debug or trace; also per part, as info,holdfast_shared=debug.";
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_name_is_declared_twice() {
        let names: Vec<String> = variables()
            .iter()
            .flat_map(Variable::accepted_names)
            .collect();
        let distinct: BTreeSet<&String> = names.iter().collect();
        assert_eq!(distinct.len(), names.len(), "{names:?}");
    }

    #[test]
    fn every_name_of_the_contract_is_declared() {
        let contract = "APP_ENV API_ADDR SYNCD_ADDR JWT_SECRET JWT_PUBLIC_KEY_FILE JWT_JWKS_FILE JWT_ISSUER \
            JWT_AUDIENCE SESSION_POLICY DATABASE_URL DB_HOST DB_PORT DB_USER DB_PASSWORD DB_NAME DB_SSLMODE \
            DB_MAX_CONNECTIONS DB_STATEMENT_CACHE REDIS_URL STORE_TIMEOUT_MS HEALTH_INTERVAL_MS BUFFER_PATH \
            BOLTDB_PATH BUFFER_MAX_SIZE BUFFER_RETENTION_HOURS SYNC_INTERVAL_SECONDS SYNC_BATCH_SIZE \
            SYNC_BATCH_MAX MAX_RETRY_ATTEMPTS SHUTDOWN_TIMEOUT_SECONDS MAX_CONNECTIONS RATE_LIMIT_PER_MINUTE \
            CORS_ORIGINS LOG_FORMAT LOG_LEVEL";
        let declared: BTreeSet<String> = variables()
            .iter()
            .flat_map(Variable::accepted_names)
            .collect();
        for name in contract.split_whitespace() {
            assert!(declared.contains(name), "{name}");
        }
    }

    #[test]
    fn sections_are_contiguous() {
        let mut sections: Vec<Section> = variables().iter().map(|v| v.section).collect();
        sections.dedup();
        assert_eq!(sections.len(), 9);
    }
}
