//! Faults of the stores' addresses.

use sqlx::postgres::PgSslMode;

use super::{faults, file, load, only_fault, password};

#[test]
fn a_database_url_is_taken_apart() {
    let (_ca, ca) = file(self_signed().cert.pem());
    let url = format!("postgresql://me:p%40ss@db:6000/tasks?sslmode=verify-full&sslrootcert={ca}");
    let config = load(&[
        ("DATABASE_URL", &url),
        ("DB_STATEMENT_CACHE", "0"),
        ("DB_MAX_CONNECTIONS", "3"),
    ]);
    let postgres = config.postgres.expect("set");
    assert_eq!(
        (postgres.options.get_host(), postgres.options.get_port()),
        ("db", 6000)
    );
    assert_eq!(
        (
            postgres.options.get_username(),
            postgres.options.get_database()
        ),
        ("me", Some("tasks"))
    );
    assert!(matches!(
        postgres.options.get_ssl_mode(),
        PgSslMode::VerifyFull
    ));
    assert_eq!((postgres.max_connections, postgres.statement_cache), (3, 0));
}

#[test]
fn bad_database_urls_are_refused_and_not_shown() {
    for (url, problem) in [
        ("hunter2", "is not a URL"),
        ("mysql://me:hunter2@db/x", "doesn't begin with postgres://"),
        ("postgres://me:hunter2@db/x#y", "unescaped #"),
        ("postgres://", "names no host"),
        ("postgres:///x?password=hunter2", "names no host"),
        ("postgres:///x?password=hunter2&host=", "names no host"),
        ("postgres://me:hunter2@db:0/x", "names port 0"),
        ("postgres://me:hunter2@db/x?port=0", "names port 0"),
        ("postgres://me:hunter2@one,two/x", "names several hosts"),
        (
            "postgres:///x?password=hunter2&host=one,two",
            "names several hosts",
        ),
        (
            "postgres://me:hunter2@db/x?target_session_attrs=any",
            "\"target_session_attrs\", which would do nothing",
        ),
        (
            "postgres://me:hunter2@db/x?statement-cache-capacity=0",
            "parameter statement-cache-capacity",
        ),
        (
            "postgres://me:hunter2@db/x?sslmode=verify-ca&sslrootcert=/nonexistent.pem",
            "\"/nonexistent.pem\" can't be read",
        ),
    ] {
        let fault = only_fault(&[("DATABASE_URL", url)]);
        assert!(
            fault.starts_with("DATABASE_URL: ") && fault.contains(problem),
            "{fault}"
        );
        assert!(!fault.contains("hunter2"), "{fault}");
    }
}

fn self_signed() -> rcgen::CertifiedKey<rcgen::KeyPair> {
    rcgen::generate_simple_self_signed(vec!["db".to_owned()]).expect("made")
}

#[test]
fn what_certificates_would_not_do_is_said() {
    let made = self_signed();
    let (_certificate, certificate) = file(made.cert.pem());
    let (_key, key) = file(made.signing_key.serialize_pem());
    let (_junk, junk) = file("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let url = |parameters: &str| {
        let parameters = parameters
            .replace("CERTIFICATE", &certificate)
            .replace("KEY", &key)
            .replace("JUNK", &junk);
        format!("postgres://db/x?{parameters}")
    };
    let sound = url("sslmode=verify-full&sslrootcert=CERTIFICATE&sslcert=CERTIFICATE&sslkey=KEY");
    assert!(load(&[("DATABASE_URL", &sound)]).postgres.is_some());
    for (parameters, problem) in [
        (
            "sslrootcert=CERTIFICATE",
            "an sslrootcert that nothing is checked with",
        ),
        (
            "sslmode=require&sslrootcert=CERTIFICATE",
            "add sslmode=verify-full",
        ),
        ("sslmode=verify-ca&sslrootcert=KEY", "holds no certificate"),
        (
            "sslmode=verify-ca&sslrootcert=JUNK",
            "holds a certificate that can't be used",
        ),
        (
            "sslmode=verify-full&sslcert=CERTIFICATE",
            "has only one of sslcert and sslkey",
        ),
        (
            "sslmode=verify-full&sslkey=KEY",
            "name both files, or neither",
        ),
        (
            "sslmode=verify-full&sslcert=CERTIFICATE&sslkey=CERTIFICATE",
            "holds no private key",
        ),
        (
            "sslmode=disable&sslcert=CERTIFICATE&sslkey=KEY",
            "no TLS to show it in",
        ),
    ] {
        let fault = only_fault(&[("DATABASE_URL", &url(parameters))]);
        assert!(fault.contains(problem), "{parameters}: {fault}");
    }
}

#[test]
fn an_unknown_sslmode_is_named_in_either_form() {
    let lines = faults(&[("DATABASE_URL", "postgres://db/x?sslmode=on")]);
    assert!(
        lines[0].contains("sslmode \"on\"; write disable, prefer"),
        "{lines:?}"
    );
    assert!(
        only_fault(&[("DATABASE_URL", "postgres://db/x?sslmode=allow")])
            .contains("write disable, prefer")
    );
    assert!(
        only_fault(&[("DB_HOST", "db"), ("DB_SSLMODE", "allow")])
            .starts_with("DB_SSLMODE: \"allow\"")
    );
    let fault = only_fault(&[("DB_HOST", "db"), ("DB_SSLMODE", "on")]);
    assert!(fault.starts_with("DB_SSLMODE: \"on\""), "{fault}");
    assert!(fault.contains("verify-ca, verify-full"), "{fault}");
}

#[test]
fn a_database_is_also_set_by_parts() {
    let postgres = load(&[
        ("DB_HOST", "db"),
        ("DB_PASSWORD", "hunter2"),
        ("DB_SSLMODE", "require"),
    ])
    .postgres;
    let options = postgres.expect("set").options;
    assert_eq!((options.get_host(), options.get_port()), ("db", 5432));
    assert_eq!(
        (options.get_username(), options.get_database()),
        ("holdfast", Some("holdfast"))
    );
    assert!(matches!(options.get_ssl_mode(), PgSslMode::Require));
    assert_eq!(password(&options).as_deref(), Some("hunter2"));
    load(&[("DB_HOST", "::1")]);
    load(&[("DB_HOST", "/run/postgresql")]);
}

#[test]
fn a_database_host_is_one_host() {
    for host in ["one,two", "db:5432", "me@db"] {
        assert!(only_fault(&[("DB_HOST", host)]).contains("is not one host"));
    }
}

#[test]
fn a_database_url_and_parts_contradict() {
    let lines = faults(&[
        ("DATABASE_URL", "postgres://db/x"),
        ("DB_HOST", "db"),
        ("DB_PASSWORD", "hunter2"),
    ]);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(
        lines[0].starts_with("DB_HOST: set together with DATABASE_URL"),
        "{lines:?}"
    );
    assert!(
        lines[1].starts_with("DB_PASSWORD: set together with DATABASE_URL"),
        "{lines:?}"
    );
}

#[test]
fn parts_without_a_host_are_refused_rather_than_ignored() {
    let fault = only_fault(&[("DB_NAME", "tasks")]);
    assert!(
        fault.starts_with("DB_NAME: has no effect without DB_HOST"),
        "{fault}"
    );
}
