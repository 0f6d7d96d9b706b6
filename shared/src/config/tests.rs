//! Loading as a whole: every fault once, all at once, and what may be shown.

mod keys;
mod places;
mod redis;
mod stores;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use super::load::from_places;
use super::*;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn load(pairs: &[(&str, &str)]) -> Config {
    Config::from_pairs(owned(pairs)).expect("a valid configuration")
}

/// The lines of all faults.
fn faults(pairs: &[(&str, &str)]) -> Vec<String> {
    let faults = Config::from_pairs(owned(pairs)).expect_err("a faulty configuration");
    faults.to_string().lines().map(str::to_owned).collect()
}

fn only_fault(pairs: &[(&str, &str)]) -> String {
    let mut lines = faults(pairs);
    assert_eq!(lines.len(), 1, "{lines:?}");
    lines.remove(0)
}

fn environment(pairs: &[(&str, &str)]) -> BTreeMap<String, OsString> {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).into()))
        .collect()
}

fn with_dotenv(pairs: &[(&str, &str)], dotenv: &str) -> Result<Config, ConfigFaults> {
    from_places(&environment(pairs), Some(dotenv))
}

/// A directory with one file in it, and that file's path.
fn file(text: impl AsRef<[u8]>) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("file");
    std::fs::write(&path, text).expect("written");
    let path = path.to_str().expect("UTF-8").to_owned();
    (directory, path)
}

/// What the driver will send as the password.
fn password(options: &sqlx::postgres::PgConnectOptions) -> Option<String> {
    sqlx::ConnectOptions::to_url_lossy(options)
        .password()
        .map(str::to_owned)
}

#[test]
fn nothing_set_gives_the_documented_defaults() {
    let config = load(&[]);
    assert_eq!(config.app_env, AppEnv::Development);
    assert_eq!(config.api_addr.to_string(), "127.0.0.1:8080");
    assert_eq!(
        config.syncd_addr.map(|addr| addr.to_string()).as_deref(),
        Some("127.0.0.1:8081")
    );
    assert!(matches!(config.token.keys, TokenKeys::DevelopmentSecret));
    assert_eq!((config.token.issuer, config.token.audience), (None, None));
    assert_eq!(config.session_policy, SessionPolicy::Available);
    assert!(config.postgres.is_none() && config.redis.is_none());
    assert_eq!(config.store_timeout, Duration::from_millis(750));
    assert_eq!(config.health_interval, Duration::from_secs(1));
    assert_eq!(config.buffer.path, Path::new("./data/buffer.redb"));
    assert_eq!(config.buffer.max_items, 1_000_000);
    assert_eq!(config.buffer.retention, Duration::from_secs(24 * 3600));
    assert_eq!(config.sync.interval, Duration::from_secs(30));
    assert_eq!((config.sync.batch_size, config.sync.batch_max), (50, 2000));
    assert_eq!(config.sync.max_retry_attempts, 3);
    assert_eq!(config.shutdown_timeout, Duration::from_secs(20));
    assert_eq!(
        (config.max_connections, config.rate_limit_per_minute),
        (10_000, 0)
    );
    assert!(config.cors_origins.is_empty());
    assert_eq!(
        (config.log.format, config.log.level.as_str()),
        (LogFormat::Auto, "info")
    );
}

#[test]
fn every_declared_choice_and_bound_is_accepted_and_one_beyond_is_not() {
    for variable in variables() {
        let (good, bad) = match variable.kind {
            Kind::Choice(words) => (
                words.iter().map(|&word| word.to_owned()).collect(),
                vec!["other".to_owned()],
            ),
            Kind::Number { min, max } => {
                let below = min.checked_sub(1).map(|below| below.to_string());
                let beyond = [Some((max + 1).to_string()), below]
                    .into_iter()
                    .flatten()
                    .collect();
                (vec![min.to_string(), max.to_string()], beyond)
            }
            _ => (vec![], vec![]),
        };
        // DB_PORT and DB_SSLMODE are read only with a host, and both batch sizes must agree.
        let with = |value: &str| {
            let mut pairs = vec![
                ("DB_HOST", "db"),
                ("SYNC_BATCH_SIZE", "1"),
                ("SYNC_BATCH_MAX", "10000"),
            ];
            pairs.retain(|(name, _)| *name != variable.name);
            pairs.push((variable.name, value));
            Config::from_pairs(owned(&pairs))
        };
        let is_production = |value: &str| value == "production";
        for value in good.iter().filter(|value: &&String| !is_production(value)) {
            assert!(with(value).is_ok(), "{}={value}", variable.name);
        }
        for value in bad {
            let faults = with(&value).expect_err("a fault").to_string();
            assert!(faults.starts_with(variable.name), "{faults}");
            assert!(faults.contains(&variable.accepts()), "{faults}");
        }
    }
}

#[test]
fn every_fault_is_shown_at_once_one_line_each() {
    let lines = faults(&[
        ("APP_ENV", "prod"),
        ("API_ADDR", "localhost:8080"),
        ("JWT_SECRET", "short"),
        ("STORE_TIMEOUT_MS", "soon"),
        ("SYNC_BATCH_SIZE", "0"),
        ("LOG_LEVEL", "inof"),
    ]);
    let names: Vec<&str> = lines
        .iter()
        .filter_map(|line| line.split(':').next())
        .collect();
    assert_eq!(
        names,
        [
            "APP_ENV",
            "API_ADDR",
            "JWT_SECRET",
            "STORE_TIMEOUT_MS",
            "SYNC_BATCH_SIZE",
            "LOG_LEVEL"
        ]
    );
    assert_eq!(
        lines[3],
        "STORE_TIMEOUT_MS: \"soon\" is not a whole number; write a whole number, 10 to 60000"
    );
}

#[test]
fn words_are_read_in_any_case_and_white_space_is_trimmed() {
    let config = load(&[
        ("APP_ENV", " Testing "),
        ("SESSION_POLICY", "STRICT"),
        ("DB_MAX_CONNECTIONS", " 7 "),
    ]);
    assert_eq!(config.app_env, AppEnv::Testing);
    assert_eq!(config.session_policy, SessionPolicy::Strict);
}

#[test]
fn syncd_listens_nowhere_when_off() {
    assert_eq!(load(&[("SYNCD_ADDR", "off")]).syncd_addr, None);
    assert!(only_fault(&[("SYNCD_ADDR", "none")]).contains("write 127.0.0.1:8080"));
}

#[test]
fn both_processes_cannot_have_one_address() {
    let fault = only_fault(&[("API_ADDR", "127.0.0.1:9"), ("SYNCD_ADDR", "127.0.0.1:9")]);
    assert!(
        fault.starts_with("SYNCD_ADDR: is the same as API_ADDR"),
        "{fault}"
    );
    load(&[("API_ADDR", "127.0.0.1:0"), ("SYNCD_ADDR", "127.0.0.1:0")]);
    let fault = only_fault(&[("API_ADDR", "127.0.0.1:8081")]);
    assert!(
        fault.starts_with("API_ADDR: is the same as SYNCD_ADDR"),
        "{fault}"
    );
    let fault = only_fault(&[("SYNCD_ADDR", "127.0.0.1:8080")]);
    assert!(
        fault.starts_with("SYNCD_ADDR: is the same as API_ADDR"),
        "{fault}"
    );
    load(&[("API_ADDR", "127.0.0.1:8081"), ("SYNCD_ADDR", "off")]);
}

#[test]
fn the_first_batch_is_at_most_the_largest() {
    let fault = only_fault(&[("SYNC_BATCH_MAX", "10")]);
    assert!(
        fault.starts_with("SYNC_BATCH_SIZE: 50 is more than SYNC_BATCH_MAX, 10;"),
        "{fault}"
    );
}

#[test]
fn production_refuses_to_start_without_keys_and_stores() {
    let lines = faults(&[("APP_ENV", "production")]);
    let names: Vec<&str> = lines
        .iter()
        .filter_map(|line| line.split(':').next())
        .collect();
    assert_eq!(names, ["JWT_SECRET", "DATABASE_URL", "REDIS_URL"]);
    let config = load(&[
        ("APP_ENV", "production"),
        ("JWT_SECRET", SECRET),
        ("DB_HOST", "db"),
        ("REDIS_URL", "redis://redis:6379"),
    ]);
    assert_eq!(config.app_env, AppEnv::Production);
}

#[test]
fn a_secret_that_is_set_but_unreadable_is_one_fault_and_not_also_missing() {
    let fault = only_fault(&[
        ("APP_ENV", "production"),
        ("JWT_SECRET_FILE", "/nonexistent/secret"),
        ("DB_HOST", "db"),
        ("REDIS_URL", "redis://redis"),
    ]);
    assert!(
        fault.starts_with("JWT_SECRET_FILE: \"/nonexistent/secret\" can't be read"),
        "{fault}"
    );
}

#[test]
fn the_buffer_is_a_file() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().to_str().expect("UTF-8");
    for text in [path, "data/", "/", ".."] {
        assert!(
            only_fault(&[("BUFFER_PATH", text)]).contains("is a directory"),
            "{text}"
        );
    }
    let socket = directory.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("bound");
    for text in ["/dev/null", socket.to_str().expect("UTF-8")] {
        let fault = only_fault(&[("BUFFER_PATH", text)]);
        assert!(fault.contains("is not a regular file"), "{fault}");
    }
    let (_there, there) = file("");
    load(&[("BUFFER_PATH", &there)]);
}

#[test]
fn origins_are_brought_into_the_form_browsers_send() {
    let config = load(&[(
        "CORS_ORIGINS",
        "https://App.Example.com/, http://localhost:3000,,https://x:443",
    )]);
    assert_eq!(
        config.cors_origins,
        [
            "https://app.example.com",
            "http://localhost:3000",
            "https://x"
        ]
    );
    assert_eq!(load(&[("CORS_ORIGINS", "*")]).cors_origins, ["*"]);
    for text in [
        "example.com",
        "https://x/path",
        "*,https://x",
        "ftp://x",
        "https://me@x",
        "null",
    ] {
        assert!(
            only_fault(&[("CORS_ORIGINS", text)]).contains("is not an origin"),
            "{text}"
        );
    }
    let many = vec!["https://x"; 101].join(",");
    assert!(only_fault(&[("CORS_ORIGINS", &many)]).contains("lists 101 origins"));
}

#[test]
fn log_directives_are_checked() {
    assert_eq!(
        load(&[("LOG_LEVEL", "warn,holdfast_shared=debug")])
            .log
            .level,
        "warn,holdfast_shared=debug"
    );
    let fault = only_fault(&[("LOG_LEVEL", "inof")]);
    assert!(
        fault.starts_with("LOG_LEVEL: \"inof\" has the unknown level"),
        "{fault}"
    );
}

#[test]
fn nothing_that_can_be_printed_shows_a_secret() {
    let (_file, path) = file("hunter2-by-file-0123456789abcdef");
    let config = load(&[
        ("JWT_SECRET_FILE", &path),
        (
            "DATABASE_URL",
            "postgres://me:hunter2@db:6000/tasks?password=hunter2",
        ),
        (
            "REDIS_URL",
            "redis+sentinel://me:hunter2@one,two:6380/mymaster/2?sentinel_password=hunter2",
        ),
    ]);
    let listing = config.render();
    let debug = format!("{config:?}");
    assert!(
        !listing.contains("hunter2") && !debug.contains("hunter2"),
        "{listing}{debug}"
    );
    assert!(
        listing.contains("postgres://***@db:6000/tasks?***"),
        "{listing}"
    );
    let shown = "redis+sentinel://***@one,two:6380/mymaster/2?***";
    assert!(listing.contains(shown), "{listing}");
    assert_eq!(listing.lines().count(), variables().len());
    let line = listing
        .lines()
        .find(|line| line.starts_with("JWT_SECRET "))
        .expect("listed");
    assert!(
        line.contains("***") && line.ends_with(&format!("file {path}")),
        "{line}"
    );
    let line = listing
        .lines()
        .find(|line| line.starts_with("DB_HOST "))
        .expect("listed");
    assert_eq!(
        line.split_whitespace().collect::<Vec<_>>(),
        ["DB_HOST", "(none)", "default"]
    );
    assert_eq!(config.settings().len(), variables().len());
}
