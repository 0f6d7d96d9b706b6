//! From the places where values lie to a checked [`Config`], or to the list of everything that is wrong.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use url::Url;

use super::fault::{ConfigFaults, Fault, quoted};
use super::settings::{
    AppEnv, BufferConfig, Config, LogConfig, LogFormat, SessionPolicy, Setting, SyncConfig,
};
use super::source::{Resolved, Source, read_bounded, resolve};
use super::values::Values;
use super::variable::{
    API_ADDR, APP_ENV, BUFFER_MAX_SIZE, BUFFER_PATH, BUFFER_RETENTION_HOURS, CORS_ORIGINS,
    DATABASE_URL, DB_HOST, HEALTH_INTERVAL_MS, JWT_SECRET, LOG_FORMAT, LOG_LEVEL, MAX_CONNECTIONS,
    MAX_RETRY_ATTEMPTS, RATE_LIMIT_PER_MINUTE, REDIS_URL, SESSION_POLICY, SHUTDOWN_TIMEOUT_SECONDS,
    STORE_TIMEOUT_MS, SYNC_BATCH_MAX, SYNC_BATCH_SIZE, SYNC_INTERVAL_SECONDS, SYNCD_ADDR, Variable,
};
use super::{keys, redis_url, stores};
use crate::telemetry;

/// Where the development settings lie, in the working directory.
const DOTENV_PATH: &str = ".env";

/// Most origins that are compared with a request's.
const MAX_CORS_ORIGINS: usize = 100;

impl Config {
    /// Reads the process environment, systemd credentials, and, unless the environment says that this is
    /// production, `.env` in the working directory.
    ///
    /// # Errors
    ///
    /// Every fault there is, including those of settings that only the other process uses.
    pub fn load() -> Result<Config, ConfigFaults> {
        let environment = process_environment();
        let dotenv = if reads_dotenv(&environment) {
            read_dotenv(Path::new(DOTENV_PATH))
        } else {
            Ok(None)
        };
        match dotenv {
            Ok(text) => from_places(&environment, text.as_deref()),
            Err(fault) => {
                let faults = from_places(&environment, None).err();
                let mut all = vec![fault];
                all.extend(faults.iter().flat_map(|faults| faults.faults().to_owned()));
                Err(ConfigFaults::new(all))
            }
        }
    }

    /// Reads these pairs as if they were the whole process environment, and no `.env`. For tests.
    ///
    /// # Errors
    ///
    /// As [`Config::load`].
    pub fn from_pairs(
        pairs: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Config, ConfigFaults> {
        let environment = pairs
            .into_iter()
            .map(|(name, value)| (name, value.into()))
            .collect();
        from_places(&environment, None)
    }
}

/// Names that aren't UTF-8 can't be ours.
fn process_environment() -> BTreeMap<String, OsString> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .collect()
}

/// Also not read when `APP_ENV` says something unknown, which might have been meant as production.
pub(super) fn reads_dotenv(environment: &BTreeMap<String, OsString>) -> bool {
    let Some(value) = environment.get(APP_ENV.name) else {
        return true;
    };
    let value = value.to_string_lossy().trim().to_ascii_lowercase();
    value.is_empty() || app_env(&value).is_some_and(|env| env != AppEnv::Production)
}

fn read_dotenv(path: &Path) -> Result<Option<String>, Fault> {
    let fault = |problem: String| {
        Fault::new(
            ".env",
            problem,
            "make it a readable text file, or remove it",
        )
    };
    match read_bounded(path) {
        Ok(bytes) => {
            let text =
                String::from_utf8(bytes).map_err(|_| fault("is not valid UTF-8".to_owned()))?;
            Ok(Some(text))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(fault(format!("can't be read ({error})"))),
    }
}

/// The whole of loading, with the places given.
pub(super) fn from_places(
    environment: &BTreeMap<String, OsString>,
    dotenv: Option<&str>,
) -> Result<Config, ConfigFaults> {
    let resolved: Resolved = resolve(environment, dotenv);
    let mut values = Values::new(resolved);
    let config = read(&mut values);
    demand_production(&mut values, config.app_env);
    refuse_contradictions(&mut values, &config);
    let faults = values.into_faults();
    if faults.is_empty() {
        Ok(config)
    } else {
        Err(ConfigFaults::new(faults))
    }
}

fn read(values: &mut Values) -> Config {
    Config {
        app_env: values.choice(&APP_ENV, app_env),
        api_addr: address(values, &API_ADDR),
        syncd_addr: optional_address(values, &SYNCD_ADDR),
        token: keys::token(values),
        session_policy: values.choice(&SESSION_POLICY, session_policy),
        postgres: stores::postgres(values),
        redis: stores::redis(values),
        store_timeout: Duration::from_millis(values.number(&STORE_TIMEOUT_MS)),
        health_interval: Duration::from_millis(values.number(&HEALTH_INTERVAL_MS)),
        buffer: BufferConfig {
            path: buffer_path(values),
            max_items: values.number(&BUFFER_MAX_SIZE),
            retention: hours(values.number(&BUFFER_RETENTION_HOURS)),
        },
        sync: SyncConfig {
            interval: Duration::from_secs(values.number(&SYNC_INTERVAL_SECONDS)),
            batch_size: values.number(&SYNC_BATCH_SIZE),
            batch_max: values.number(&SYNC_BATCH_MAX),
            max_retry_attempts: values.number(&MAX_RETRY_ATTEMPTS),
        },
        shutdown_timeout: Duration::from_secs(values.number(&SHUTDOWN_TIMEOUT_SECONDS)),
        max_connections: values.number(&MAX_CONNECTIONS),
        rate_limit_per_minute: values.number(&RATE_LIMIT_PER_MINUTE),
        cors_origins: cors_origins(values),
        log: LogConfig {
            format: values.choice(&LOG_FORMAT, log_format),
            level: log_level(values),
        },
        settings: settings(values),
    }
}

fn app_env(word: &str) -> Option<AppEnv> {
    match word {
        "development" => Some(AppEnv::Development),
        "testing" => Some(AppEnv::Testing),
        "production" => Some(AppEnv::Production),
        _ => None,
    }
}

fn session_policy(word: &str) -> Option<SessionPolicy> {
    match word {
        "available" => Some(SessionPolicy::Available),
        "strict" => Some(SessionPolicy::Strict),
        _ => None,
    }
}

fn log_format(word: &str) -> Option<LogFormat> {
    match word {
        "auto" => Some(LogFormat::Auto),
        "journald" => Some(LogFormat::Journald),
        "json" => Some(LogFormat::Json),
        "text" => Some(LogFormat::Text),
        _ => None,
    }
}

fn hours(count: u64) -> Duration {
    Duration::from_secs(count * 60 * 60)
}

fn optional_address(values: &mut Values, variable: &Variable) -> Option<SocketAddr> {
    let off = values
        .text(variable)
        .is_some_and(|text| text.eq_ignore_ascii_case("off"));
    (!off).then(|| address(values, variable))
}

fn address(values: &mut Values, variable: &Variable) -> SocketAddr {
    let text = values.text(variable).unwrap_or_default();
    text.parse().unwrap_or_else(|_| {
        let problem = format!("{} is not an address and a port", quoted(&text));
        values.refuse(
            variable,
            &problem,
            "write 127.0.0.1:8080, 0.0.0.0:8080 or [::1]:8080",
        );
        SocketAddr::from(([0, 0, 0, 0], 0))
    })
}

fn buffer_path(values: &mut Values) -> PathBuf {
    let text = values.text(&BUFFER_PATH).unwrap_or_default();
    let path = PathBuf::from(&text);
    if text.ends_with('/') || path.file_name().is_none() || path.is_dir() {
        let problem = format!("{} is a directory", quoted(&text));
        values.refuse(
            &BUFFER_PATH,
            &problem,
            "name a file in it, such as buffer.redb",
        );
    } else if path.metadata().is_ok_and(|found| !found.is_file()) {
        let problem = format!("{} is not a regular file", quoted(&text));
        let remedy = "name a file on a disk; it need not exist yet";
        values.refuse(&BUFFER_PATH, &problem, remedy);
    }
    path
}

fn log_level(values: &mut Values) -> String {
    let text = values.text(&LOG_LEVEL).unwrap_or_default();
    if let Err(problem) = telemetry::parse_directives(&text) {
        let remedy = "write error, warn, info, debug or trace, or info,some_target=debug";
        values.refuse(&LOG_LEVEL, &format!("{} {problem}", quoted(&text)), remedy);
    }
    text
}

fn cors_origins(values: &mut Values) -> Vec<String> {
    let text = values.text(&CORS_ORIGINS).unwrap_or_default();
    let entries: Vec<&str> = text
        .split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
        .collect();
    if entries == ["*"] {
        return vec!["*".to_owned()];
    }
    if entries.len() > MAX_CORS_ORIGINS {
        let problem = format!("lists {} origins", entries.len());
        values.refuse(
            &CORS_ORIGINS,
            &problem,
            &format!("list at most {MAX_CORS_ORIGINS}"),
        );
        return Vec::new();
    }
    let mut origins = Vec::new();
    for entry in entries {
        if let Some(origin) = web_origin(entry) {
            origins.push(origin);
        } else {
            let problem = format!("{} is not an origin", quoted(entry));
            values.refuse(
                &CORS_ORIGINS,
                &problem,
                "write https://app.example.com, without a path, or * alone",
            );
        }
    }
    origins
}

/// The form a browser sends in `Origin`: lower case, no default port, no slash at the end.
fn web_origin(entry: &str) -> Option<String> {
    let url = Url::parse(entry).ok()?;
    let plain = matches!(url.scheme(), "http" | "https")
        && url.path() == "/"
        && url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none();
    plain.then(|| url.origin().ascii_serialization())
}

/// Starting embedded, or with a made-up secret, is a help on a laptop and a disaster in production.
fn demand_production(values: &mut Values, app_env: AppEnv) {
    if app_env != AppEnv::Production {
        return;
    }
    let from_dotenv = values
        .found(&APP_ENV)
        .is_some_and(|found| matches!(found.source, Source::DotEnv { .. }));
    if from_dotenv {
        let remedy = "set it in the process environment; production doesn't read .env";
        values.refuse(&APP_ENV, "says production inside .env", remedy);
    }
    if !keys::any_set(values) {
        let remedy = "set it, JWT_PUBLIC_KEY_FILE or JWT_JWKS_FILE";
        values.refuse(
            &JWT_SECRET,
            "production needs a key to check tokens with",
            remedy,
        );
    }
    if !values.is_set(&DATABASE_URL) && !values.is_set(&DB_HOST) {
        let remedy = "set it, or DB_HOST and its companions";
        values.refuse(&DATABASE_URL, "production needs PostgreSQL", remedy);
    }
    if !values.is_set(&REDIS_URL) {
        values.refuse(
            &REDIS_URL,
            "production needs Redis",
            "set it, as redis://host:6379",
        );
    }
}

fn refuse_contradictions(values: &mut Values, config: &Config) {
    let sync = &config.sync;
    // A placeholder for a bad number is 0, which no bound allows.
    if sync.batch_max > 0 && sync.batch_size > sync.batch_max {
        let problem = format!(
            "{} is more than SYNC_BATCH_MAX, {}",
            sync.batch_size, sync.batch_max
        );
        values.refuse(
            &SYNC_BATCH_SIZE,
            &problem,
            "lower it or raise SYNC_BATCH_MAX",
        );
    }
    // Any free port is another one each time; a placeholder for a bad address has port 0 too.
    if config.api_addr.port() != 0 && config.syncd_addr == Some(config.api_addr) {
        refuse_same_address(values);
    }
}

/// At the one that was set: the other may be there by default.
fn refuse_same_address(values: &mut Values) {
    if values.is_set(&SYNCD_ADDR) {
        let remedy = "give it another port, or off";
        values.refuse(&SYNCD_ADDR, "is the same as API_ADDR", remedy);
    } else {
        let problem = "is the same as SYNCD_ADDR, which isn't set, is by default";
        let remedy = "give it another port, or set SYNCD_ADDR to another one or off";
        values.refuse(&API_ADDR, problem, remedy);
    }
}

fn settings(values: &Values) -> Vec<Setting> {
    values
        .each()
        .map(|(variable, found)| Setting {
            variable: variable.name,
            value: values.text(variable).map(|text| shown(variable, &text)),
            source: Values::source(found),
        })
        .collect()
}

fn shown(variable: &Variable, text: &str) -> String {
    match variable.name {
        name if name == DATABASE_URL.name => stores::without_credentials(text),
        name if name == REDIS_URL.name => redis_url::without_credentials(text),
        _ if variable.is_secret() => "***".to_owned(),
        _ => text.to_owned(),
    }
}
