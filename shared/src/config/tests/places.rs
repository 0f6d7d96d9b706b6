//! The places where values lie, and which of them wins.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::time::Duration;

use secrecy::ExposeSecret;

use super::super::load::{from_places, reads_dotenv};
use super::{
    SECRET, TokenKeys, env_example, environment, file, load, only_fault, password, variables,
    with_dotenv,
};

#[test]
fn an_empty_value_counts_as_unset() {
    let config = load(&[
        ("API_ADDR", ""),
        ("JWT_SECRET", ""),
        ("DATABASE_URL", ""),
        ("LOG_LEVEL", "  "),
    ]);
    assert_eq!(config.api_addr.port(), 8080);
    assert!(matches!(config.token.keys, TokenKeys::DevelopmentSecret));
    assert!(config.postgres.is_none());
    assert_eq!(config.log.level, "info");
}

#[test]
fn names_of_others_in_the_process_environment_are_ignored() {
    load(&[
        ("PATH", "/bin"),
        ("API_ADR", "nonsense"),
        ("PGHOST", "elsewhere"),
    ]);
}

#[test]
fn the_old_name_of_the_buffer_s_path_still_works() {
    let config = load(&[("BOLTDB_PATH", "/var/lib/buffer.db")]);
    assert_eq!(config.buffer.path, Path::new("/var/lib/buffer.db"));
    load(&[("BOLTDB_PATH", "/a"), ("BUFFER_PATH", "/a")]);
    let fault = only_fault(&[("BOLTDB_PATH", "/a"), ("BUFFER_PATH", "/b")]);
    assert!(
        fault.starts_with("BUFFER_PATH: differs from its alias BOLTDB_PATH"),
        "{fault}"
    );
}

#[test]
fn every_secret_is_read_from_a_file_without_its_line_break() {
    let (_file, path) = file(format!("{SECRET}\r\n"));
    let config = load(&[("JWT_SECRET_FILE", &path)]);
    assert!(
        matches!(config.token.keys, TokenKeys::Secret(secret) if secret.expose_secret() == SECRET)
    );
    let (_file, path) = file("redis://:hunter2@redis");
    let config = load(&[("REDIS_URL_FILE", &path)]);
    let login = config.redis.expect("set").login;
    let given = login.password.expect("set");
    assert_eq!(given.expose_secret(), "hunter2");
    let (_file, path) = file("postgres://db/x\n");
    assert!(load(&[("DATABASE_URL_FILE", &path)]).postgres.is_some());
    let (_file, path) = file("hunter2\n");
    let postgres = load(&[("DB_HOST", "db"), ("DB_PASSWORD_FILE", &path)]).postgres;
    assert_eq!(
        password(&postgres.expect("set").options).as_deref(),
        Some("hunter2")
    );
}

#[test]
fn secret_files_that_cannot_be_used_are_refused() {
    let (_empty, empty) = file("\n");
    assert!(only_fault(&[("REDIS_URL_FILE", &empty)]).contains("is empty"));
    let (_binary, binary) = file([0xff, 0xfe]);
    assert!(only_fault(&[("REDIS_URL_FILE", &binary)]).contains("is not valid UTF-8"));
    assert!(
        only_fault(&[("REDIS_URL_FILE", "/nonexistent")])
            .starts_with("REDIS_URL_FILE: \"/nonexistent\"")
    );
    let (_url, url) = file("redis://redis");
    let fault = only_fault(&[("REDIS_URL", "redis://redis"), ("REDIS_URL_FILE", &url)]);
    assert!(
        fault.starts_with("REDIS_URL: set together with REDIS_URL_FILE"),
        "{fault}"
    );
}

#[test]
fn a_secret_is_one_line_wherever_it_lies() {
    for (text, problem) in [
        ("\u{feff}redis://:hunter2@redis\n", "a byte order mark"),
        ("redis://:hunter2@redis\n\n", "a line break"),
        ("redis://:hunter2@redis\r\nx", "a line break"),
        ("redis://:hunter2\0@redis", "a NUL"),
    ] {
        let (_file, path) = file(text);
        let fault = only_fault(&[("REDIS_URL_FILE", &path)]);
        assert!(
            fault.starts_with(&format!("REDIS_URL (file {path}): must be one line")),
            "{fault}"
        );
        assert!(fault.contains(problem), "{text:?}: {fault}");
        assert!(!fault.contains("hunter2"), "{fault}");
    }
    let two_lines = format!("{SECRET}\n{SECRET}");
    for name in ["JWT_SECRET", "DATABASE_URL", "REDIS_URL"] {
        let fault = only_fault(&[(name, &two_lines)]);
        assert!(
            fault.starts_with(&format!("{name}: must be one line, but holds a line break")),
            "{fault}"
        );
    }
    let fault = only_fault(&[("DB_HOST", "db"), ("DB_PASSWORD", "hunter2\n")]);
    assert!(
        fault.starts_with("DB_PASSWORD: must be one line"),
        "{fault}"
    );
}

#[test]
fn systemd_credentials_are_read_in_either_case() {
    for name in ["jwt_secret", "JWT_SECRET"] {
        let directory = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(directory.path().join(name), SECRET).expect("written");
        let path = directory.path().to_str().expect("UTF-8");
        let config = load(&[("CREDENTIALS_DIRECTORY", path)]);
        assert!(matches!(config.token.keys, TokenKeys::Secret(_)), "{name}");
        let other = "f".repeat(32);
        let config = load(&[("CREDENTIALS_DIRECTORY", path), ("JWT_SECRET", &other)]);
        assert!(
            matches!(config.token.keys, TokenKeys::Secret(secret) if secret.expose_secret() == other)
        );
    }
}

#[test]
fn a_credential_that_cannot_be_used_is_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(directory.path().join("jwt_secret"), "").expect("written");
    let fault = only_fault(&[(
        "CREDENTIALS_DIRECTORY",
        directory.path().to_str().expect("UTF-8"),
    )]);
    assert!(fault.starts_with("JWT_SECRET: the credential"), "{fault}");
}

#[test]
fn the_environment_wins_over_dotenv_and_hides_it_when_empty() {
    let dotenv =
        "STORE_TIMEOUT_MS=100\nHEALTH_INTERVAL_MS=200\nBUFFER_PATH=/a\nREDIS_URL=redis://redis";
    let config = with_dotenv(
        &[
            ("STORE_TIMEOUT_MS", "300"),
            ("REDIS_URL", ""),
            ("BOLTDB_PATH", "/b"),
        ],
        dotenv,
    );
    let config = config.expect("valid");
    assert_eq!(config.store_timeout, Duration::from_millis(300));
    assert_eq!(config.health_interval, Duration::from_millis(200));
    assert_eq!(config.buffer.path, Path::new("/b"));
    assert!(config.redis.is_none());
}

#[test]
fn unknown_names_in_dotenv_are_refused_with_a_suggestion() {
    let faults = with_dotenv(
        &[],
        "REDIS_URI=x\nBOLTDB_PATH=/a\nJWT_SECERT_FILE=x\nFOO=hunter2",
    )
    .expect_err("faults");
    let lines: Vec<String> = faults.to_string().lines().map(str::to_owned).collect();
    assert_eq!(
        lines,
        [
            "REDIS_URI (.env line 1): is not a name Holdfast knows; did you mean REDIS_URL?",
            "JWT_SECERT_FILE (.env line 3): is not a name Holdfast knows; did you mean JWT_SECRET_FILE?",
            "FOO (.env line 4): is not a name Holdfast knows; remove it; .env.example lists the names there are",
        ]
    );
}

#[test]
fn a_bad_value_in_dotenv_is_found_by_its_line() {
    let faults = with_dotenv(&[], "\nMAX_CONNECTIONS=many")
        .expect_err("a fault")
        .to_string();
    assert!(
        faults.starts_with("MAX_CONNECTIONS (.env line 2): \"many\""),
        "{faults}"
    );
}

#[test]
fn production_is_not_set_in_dotenv_and_does_not_read_it() {
    let faults = with_dotenv(&[], "APP_ENV=production")
        .expect_err("faults")
        .to_string();
    assert!(
        faults.contains("APP_ENV (.env line 1): says production inside .env"),
        "{faults}"
    );
    assert!(!reads_dotenv(&environment(&[("APP_ENV", "Production")])));
    assert!(!reads_dotenv(&environment(&[("APP_ENV", "prod")])));
    assert!(reads_dotenv(&environment(&[("APP_ENV", "testing")])));
    assert!(reads_dotenv(&environment(&[("APP_ENV", "")])));
    assert!(reads_dotenv(&environment(&[])));
}

#[test]
fn a_value_that_is_not_text_is_refused() {
    let environment = BTreeMap::from([("LOG_LEVEL".to_owned(), OsString::from_vec(vec![0xff]))]);
    let faults = from_places(&environment, None).expect_err("a fault");
    assert_eq!(
        faults.to_string(),
        "LOG_LEVEL: is not valid UTF-8; write it in UTF-8"
    );
}

#[test]
fn the_example_is_a_valid_dotenv_that_changes_nothing() {
    let uncommented: String = env_example()
        .lines()
        .filter_map(|line| line.strip_prefix('#'))
        .filter(|line| !line.starts_with([' ', '#']))
        .map(|line| format!("{line}\n"))
        .collect();
    assert_eq!(uncommented.lines().count(), variables().len());
    // Names that belong to DB_HOST are refused without it.
    let faults = with_dotenv(&[("DB_HOST", "db")], &uncommented).map(|_| ());
    assert_eq!(faults, Ok(()));
    assert!(with_dotenv(&[], &env_example()).is_ok());
}
