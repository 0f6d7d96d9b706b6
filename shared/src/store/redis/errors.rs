//! What Redis' failures mean.

use std::error::Error;
use std::io;
use std::sync::Arc;

use deadpool_redis::redis::{ErrorKind, ParsingError, RedisError, ServerError, Value};

use crate::store::FailureClass::{Contended, Item, Systemic, Unavailable};
use crate::store::{FailureClass, StoreError};

/// How Redis' refusals begin, with their class and our words; where there are several refusals, the earlier line
/// counts. Any other refusal is of the very command.
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
    (
        "ERR max number of clients",
        Unavailable,
        "redis has no connection free",
    ),
    ("BUSY", Contended, "redis is busy with a script"),
    ("TRYAGAIN", Contended, "redis is moving the keys"),
    (
        "WRONGPASS",
        Systemic,
        "redis refuses the user or the password",
    ),
    ("NOAUTH", Systemic, "redis asks for a password"),
    ("NOPERM", Systemic, "the redis user lacks a right"),
    ("MOVED", Systemic, NOT_ALONE),
    ("ASK", Systemic, NOT_ALONE),
];

/// Connections to clusters follow these refusals.
const NOT_ALONE: &str = "redis is a node of a cluster: REDIS_URL must begin with redis+cluster";

impl From<RedisError> for StoreError {
    /// The failure of a command that was sent.
    fn from(error: RedisError) -> Self {
        match error.kind() {
            ErrorKind::Server(_) | ErrorKind::Extension => {
                let refusals = error.into_server_errors().unwrap_or_default();
                refused(refusals.iter().map(|(_, refusal)| refusal))
            }
            _ => StoreError::new(Unavailable, "the connection to redis broke")
                .with_answer_lost()
                .caused_by(error),
        }
    }
}

/// An answer is of another kind than the command gives.
pub(super) fn unreadable(error: ParsingError) -> StoreError {
    StoreError::new(Item, "redis holds what this program can't read").caused_by(error)
}

/// The answers, if none of them is a refusal.
pub(super) fn accepted(answers: Vec<Value>) -> Result<Vec<Value>, StoreError> {
    let mut refusals = answers.iter().filter_map(refusal).peekable();
    if refusals.peek().is_some() {
        return Err(refused(refusals));
    }
    Ok(answers)
}

/// Whether an answer is a refusal, and which.
pub(super) fn refusal(answer: &Value) -> Option<&ServerError> {
    match answer {
        Value::ServerError(refusal) => Some(refusal),
        _ => None,
    }
}

/// What these refusals, of which there is at least one, mean together.
fn refused<'e>(refusals: impl Iterator<Item = &'e ServerError>) -> StoreError {
    let refusals: Vec<&ServerError> = refusals.collect();
    let meant = |words: &str| refusals.iter().find(|refusal| begins(refusal, words));
    let known = MEANINGS
        .iter()
        .find_map(|(words, class, summary)| Some((*class, *summary, *meant(words)?)));
    let (class, summary) = known.map_or(
        (Item, "redis refuses the command"),
        |(class, summary, _)| (class, summary),
    );
    let error = StoreError::new(class, summary).with_refusal(None);
    let cause = known
        .map(|(.., refusal)| refusal)
        .or(refusals.first().copied());
    match cause {
        Some(refusal) => error.caused_by(refusal.clone()),
        None => error,
    }
}

fn begins(refusal: &ServerError, words: &str) -> bool {
    let (code, rest) = words.split_once(' ').unwrap_or((words, ""));
    refusal.code() == code && refusal.details().unwrap_or_default().starts_with(rest)
}

/// The failure of an attempt to connect: nothing was asked yet.
pub(super) fn unconnected(error: RedisError) -> StoreError {
    if let Some(reason) = tls_reason(&error) {
        return StoreError::new(Systemic, reason).caused_by(error);
    }
    match error.kind() {
        ErrorKind::InvalidClientConfig | ErrorKind::Client => {
            StoreError::new(Systemic, "the settings for redis don't fit").caused_by(error)
        }
        _ => StoreError::new(Unavailable, "redis can't be reached").caused_by(error),
    }
}

/// What is wrong with the certificate of either side, or with TLS as a whole: neither passes by itself. Anything else
/// that happens to a connection in TLS is as without.
fn tls_reason(error: &RedisError) -> Option<&'static str> {
    use rustls::{AlertDescription, CertificateError, Error as TlsError};
    Some(match tls_error(error)? {
        TlsError::InvalidCertificate(problem) => match problem {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the certificate of redis has expired"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "the certificate of redis is not valid yet"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "the certificate of redis is for another host than REDIS_URL names"
            }
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "the certificate of redis is not trusted: name its authority's in sslrootcert of REDIS_URL"
            }
            _ => {
                "the certificate of redis is none for a server: one that signed itself often isn't"
            }
        },
        TlsError::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::HandshakeFailure
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::DecryptError
            | AlertDescription::AccessDenied,
        ) => "redis does not accept our certificate: see sslcert and sslkey of REDIS_URL",
        TlsError::InvalidMessage(_) => "redis does not speak TLS, which REDIS_URL asks for",
        TlsError::PeerIncompatible(_) => "redis speaks no TLS that this program knows",
        _ => return None,
    })
}

/// The crate puts the socket's error, which holds that of TLS, behind a pointer.
fn tls_error(error: &RedisError) -> Option<&rustls::Error> {
    let shared = error
        .source()?
        .downcast_ref::<Arc<dyn Error + Send + Sync>>()?;
    let socket = shared.downcast_ref::<io::Error>()?;
    socket.get_ref()?.downcast_ref::<rustls::Error>()
}

#[cfg(test)]
mod tests {
    use deadpool_redis::redis::parse_redis_value;

    use super::*;

    /// Redis' own words, but for the codes that stand for nothing else.
    #[test]
    fn each_refusal_has_its_class() {
        for (refusals, class, part) in [
            (
                vec!["LOADING Redis is loading the dataset in memory"],
                Unavailable,
                "loading",
            ),
            (
                vec!["READONLY You can't write against a read only replica."],
                Unavailable,
                "replica",
            ),
            (
                vec!["MASTERDOWN Link with MASTER is down"],
                Unavailable,
                "lost its master",
            ),
            (
                vec!["CLUSTERDOWN The cluster is down"],
                Unavailable,
                "cluster is down",
            ),
            (
                vec!["CLUSTERDOWN Hash slot not served"],
                Unavailable,
                "cluster is down",
            ),
            (
                vec!["MISCONF Errors writing to the AOF file"],
                Unavailable,
                "write its data",
            ),
            (
                vec!["NOREPLICAS Not enough good replicas to write."],
                Unavailable,
                "replicas",
            ),
            (
                vec!["OOM command not allowed when used memory > 'maxmemory'."],
                Unavailable,
                "memory",
            ),
            (
                vec!["BUSY Redis is busy running a script."],
                Contended,
                "busy",
            ),
            (
                vec!["TRYAGAIN Multiple keys request during rehashing of slot"],
                Contended,
                "moving",
            ),
            (
                vec!["ERR max number of clients reached"],
                Unavailable,
                "no connection free",
            ),
            (
                vec!["NOAUTH Authentication required."],
                Systemic,
                "asks for a password",
            ),
            (
                vec!["WRONGPASS invalid username-password pair"],
                Systemic,
                "user or the password",
            ),
            (
                vec!["WRONGPASS no", "NOAUTH no"],
                Systemic,
                "user or the password",
            ),
            (
                vec!["NOPERM User x has no permissions"],
                Systemic,
                "lacks a right",
            ),
            (vec!["MOVED 3999 127.0.0.1:6381"], Systemic, "redis+cluster"),
            (vec!["ASK 3999 127.0.0.1:6381"], Systemic, "redis+cluster"),
            (
                vec!["WRONGTYPE Operation against a key"],
                Item,
                "refuses the command",
            ),
            (vec!["ERR unknown command"], Item, "refuses the command"),
            (
                vec!["ERR syntax error", "NOPERM no", "READONLY no"],
                Unavailable,
                "replica",
            ),
        ] {
            let line = |text: &&str| parse_redis_value(format!("-{text}\r\n").as_bytes());
            let refused: Vec<Value> = refusals
                .iter()
                .map(|text| line(text).expect("read"))
                .collect();
            let error = accepted(refused).expect_err("refused");
            assert_eq!(error.class(), class, "{refusals:?}");
            assert!(error.to_string().contains(part), "{refusals:?}: {error}");
            assert!(!error.outcome_unknown() && error.leaves_connection_sound());
        }
        assert_eq!(
            accepted(vec![Value::Nil]).expect("no refusal"),
            [Value::Nil]
        );
    }

    #[test]
    fn a_broken_connection_leaves_the_outcome_open_unless_it_was_just_being_made() {
        let broken = || RedisError::from(io::Error::from(io::ErrorKind::BrokenPipe));
        let error = StoreError::from(broken());
        assert_eq!(
            (error.class(), error.outcome_unknown()),
            (Unavailable, true)
        );
        let error = unconnected(broken());
        assert_eq!(
            (error.class(), error.outcome_unknown()),
            (Unavailable, false)
        );
    }
}
