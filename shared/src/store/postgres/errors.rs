//! What PostgreSQL's failures mean: the one table from SQLSTATE to [`FailureClass`].

use sqlx::error::DatabaseError;
use sqlx::migrate::MigrateError;

use super::tls;
use crate::store::FailureClass::{self, Contended, Item, Systemic, Unavailable};
use crate::store::StoreError;

/// A table's columns were changed under a prepared statement; only a new connection prepares it anew.
pub(super) const CHANGED_UNDER_STATEMENT: &str = "0A000";

/// What every failure says that migrating may mend.
pub const NEEDS_MIGRATION: &str = "run syncd migrate";

/// Of a pooler that lets its clients' names of prepared statements meet.
pub(super) const POOLER_FORGETS: &str = "a pooler loses prepared statements: set DB_STATEMENT_CACHE=0, or have it keep \
    them (PgBouncer's max_prepared_statements)";

/// With it PgBouncer refuses whatever it refuses, and leaves the reason to the text. PostgreSQL itself has no cause for
/// it while a session begins.
const PROTOCOL_VIOLATION: &str = "08P01";

/// What PgBouncer says (any part of the text) when it refuses for good, and our words for it. What isn't here is trouble
/// with its server or with its limits, and passes.
const POOLER_REFUSALS: &[(&str, &str)] = &[
    (
        "unsupported startup parameter",
        "a pooler refuses the options in DATABASE_URL: leave them out, or add options to its ignore_startup_parameters",
    ),
    (
        "authentication failed",
        "a pooler refuses the user or the password",
    ),
    ("no such user", "a pooler doesn't know the user"),
    ("no such database", "a pooler doesn't know the database"),
    (
        "SSL required",
        "a pooler insists on TLS: set DB_SSLMODE, or sslmode in DATABASE_URL",
    ),
    (
        "statement pooling mode",
        "a pooler shares its connections out by statement: set its pool_mode to transaction",
    ),
];

/// What a server says that takes no writes: it has done nothing.
const READ_ONLY: &str = "25006";

/// Codes or their beginnings (PostgreSQL's documentation, appendix A), the first that fits counts; with the class
/// and our words for it.
///
/// 58 is a failing disk of the server. 26 and 42P05 come from a pooler that doesn't keep prepared statements.
const MEANINGS: &[(&str, FailureClass, &str)] = &[
    (
        PROTOCOL_VIOLATION,
        Unavailable,
        "a pooler can't let this process through to postgres",
    ),
    ("08", Unavailable, "the connection to postgres failed"),
    (
        "25P03",
        Unavailable,
        "postgres ended a session that this process had left alone",
    ),
    (
        READ_ONLY,
        Unavailable,
        "postgres takes no writes: it is a standby, or set to read-only",
    ),
    (
        "53",
        Unavailable,
        "postgres is out of connections, memory or disk",
    ),
    ("57014", Contended, "postgres took too long and gave up"),
    ("57P", Unavailable, "postgres is starting or stopping"),
    ("58", Unavailable, "postgres can't use its own files"),
    (
        CHANGED_UNDER_STATEMENT,
        Contended,
        "postgres must prepare the statement anew",
    ),
    ("40", Contended, "other transactions were in the way"),
    ("55P03", Contended, "a row is locked by another transaction"),
    ("26", Systemic, POOLER_FORGETS),
    ("42P05", Systemic, POOLER_FORGETS),
    (
        "28",
        Systemic,
        "postgres refuses the user or the password, or this way to come in: a certificate may be missing (see its \
         pg_hba.conf)",
    ),
    ("3D", Systemic, "the database does not exist"),
    ("42501", Systemic, "the database role lacks a right"),
    (
        "42",
        Systemic,
        "the schema is missing or too old: run syncd migrate",
    ),
    ("", Item, "postgres refuses the data"),
];

/// When something failed: before the work was sent, nothing can have been done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Connecting,
    Asking,
}

/// Translates a driver's error.
pub(super) fn classify(error: sqlx::Error, phase: Phase) -> StoreError {
    match error {
        sqlx::Error::Database(refusal) => refused(refusal, phase),
        sqlx::Error::Configuration(_) => {
            StoreError::new(Systemic, "the settings for postgres don't fit").caused_by(error)
        }
        sqlx::Error::Tls(ref cause) => {
            StoreError::new(Systemic, tls::explain(cause.as_ref())).caused_by(error)
        }
        sqlx::Error::Io(ref cause) if phase == Phase::Connecting && tls::is_to_blame(cause) => {
            StoreError::new(Systemic, tls::explain(cause)).caused_by(error)
        }
        // What is read may be what a write has left, which is done then.
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
            StoreError::new(Item, "the database holds what this program can't read")
                .with_answer_lost()
                .caused_by(error)
        }
        sqlx::Error::Encode(_) => {
            StoreError::new(Item, "the database can't hold this").caused_by(error)
        }
        _ if phase == Phase::Connecting => {
            StoreError::new(Unavailable, "postgres can't be reached").caused_by(error)
        }
        _ => StoreError::new(Unavailable, "the connection to postgres broke")
            .with_answer_lost()
            .caused_by(error),
    }
}

impl From<sqlx::Error> for StoreError {
    /// The failure of a request that was sent.
    fn from(error: sqlx::Error) -> Self {
        classify(error, Phase::Asking)
    }
}

/// Translates what sqlx says of migrations.
pub(super) fn classify_migration(error: MigrateError) -> StoreError {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
            classify(error, Phase::Asking)
        }
        MigrateError::VersionMismatch(version) => StoreError::new(
            Systemic,
            format!("migration {version} is not the one this database was made with"),
        ),
        other => StoreError::new(Systemic, "the migrations can't be applied").caused_by(other),
    }
}

/// Whether a transaction failed only because of what another one has written, and goes well when it is run again
/// and reads that: a serialization failure, a deadlock, or a row or record that was there already.
pub(super) fn is_race(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(DatabaseError::code);
    code.is_some_and(|code| matches!(code.as_ref(), "40001" | "40P01" | "23505"))
}

/// Whether this is a pooler's refusal to begin a session, for whatever reason.
pub(super) fn is_refused_by_pooler(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(DatabaseError::code);
    code.is_some_and(|code| code == PROTOCOL_VIOLATION)
}

fn refused(refusal: Box<dyn DatabaseError>, phase: Phase) -> StoreError {
    let code = refusal.code().unwrap_or_default().into_owned();
    let (class, summary) = match pooler_refusal(&code, refusal.message()) {
        Some(meaning) => meaning,
        None => meaning(&code),
    };
    let error = StoreError::new(class, format!("{summary} ({code})")).with_refusal(Some(&code));
    let error = error.caused_by(refusal);
    if phase == Phase::Asking && ends_session(class, &code) {
        error.with_answer_lost()
    } else if code == CHANGED_UNDER_STATEMENT {
        error.with_connection_spoiled()
    } else {
        error
    }
}

/// Whether who says so ends the session, whatever it was at: a server that stops, or a pooler whose server is gone, may
/// have committed before, and says the same then.
fn ends_session(class: FailureClass, code: &str) -> bool {
    class == Unavailable && code != READ_ONLY
}

fn pooler_refusal(code: &str, message: &str) -> Option<(FailureClass, &'static str)> {
    let said = POOLER_REFUSALS
        .iter()
        .find(|(part, _)| code == PROTOCOL_VIOLATION && message.contains(part));
    said.map(|(_, summary)| (Systemic, *summary))
}

fn meaning(code: &str) -> (FailureClass, &'static str) {
    let found = MEANINGS
        .iter()
        .find(|(beginning, ..)| code.starts_with(beginning));
    found.map_or(
        (Item, "postgres refuses the data"),
        |(_, class, summary)| (*class, *summary),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sqlstate_has_the_class_that_says_what_to_do() {
        let expected = [
            (
                Unavailable,
                "08000 08006 08P01 53100 53300 57P01 57P02 57P03 25006 25P03 58030",
            ),
            (Contended, "40001 40P01 55P03 57014 0A000"),
            (Systemic, "42P01 42703 42501 28P01 28000 3D000 26000 42P05"),
            (Item, "21000 22001 22021 23505 23514 54000 XX000 25001"),
        ];
        for (class, codes) in expected {
            for code in codes.split(' ') {
                assert_eq!(meaning(code).0, class, "{code}");
            }
        }
        assert!(meaning("42P01").1.contains(NEEDS_MIGRATION));
    }

    #[test]
    fn a_pooler_that_refuses_for_good_is_told_from_one_that_can_do_no_better_now() {
        for said in [
            "unsupported startup parameter: options",
            "\"trust\" authentication failed",
            "no such user",
            "no such database: x",
            "SSL required",
            "transaction blocks not allowed in statement pooling mode",
        ] {
            assert!(pooler_refusal("08P01", said).is_some(), "{said}");
            assert_eq!(pooler_refusal("28P01", said), None, "{said}");
        }
        for said in [
            "server login has been failing, try again later (server_login_retry)",
            "no more connections allowed (max_client_conn)",
            "query_wait_timeout",
        ] {
            assert_eq!(pooler_refusal("08P01", said), None, "{said}");
        }
    }

    #[test]
    fn only_a_lost_answer_leaves_the_outcome_unknown() {
        for code in ["08P01", "08006", "57P01", "57P02", "53100", "58030"] {
            assert!(ends_session(meaning(code).0, code), "{code}");
        }
        for code in ["25006", "55P03", "40001", "57014", "23505", "42P01"] {
            assert!(!ends_session(meaning(code).0, code), "{code}");
        }
        assert!(classify(sqlx::Error::Protocol("x".into()), Phase::Asking).outcome_unknown());
        assert!(!classify(sqlx::Error::Protocol("x".into()), Phase::Connecting).outcome_unknown());
    }

    #[test]
    fn the_text_never_shows_what_the_driver_said() {
        let error = std::io::Error::other("postgres://ann:secret@db/x");
        let error = classify(sqlx::Error::Io(error), Phase::Connecting);
        assert_eq!(error.to_string(), "postgres can't be reached");
    }
}
