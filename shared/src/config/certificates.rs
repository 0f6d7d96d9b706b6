//! The files that TLS with PostgreSQL takes, read as the driver will read them: a certificate that is never checked, or
//! a file that holds none, shows in an outage at the earliest.

use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sqlx::postgres::PgSslMode;
use url::Url;

use super::fault::quoted;
use super::source::read_bounded;

/// What is wrong, and what to do.
type Problem = (String, &'static str);

const ROOT_NAMES: [&str; 3] = ["sslrootcert", "ssl-root-cert", "ssl-ca"];
const CERTIFICATE_NAMES: [&str; 2] = ["sslcert", "ssl-cert"];
const KEY_NAMES: [&str; 2] = ["sslkey", "ssl-key"];

/// What is wrong with the certificates that this URL names, whose mode is `mode`.
pub(super) fn problems(url: &Url, mode: PgSslMode) -> Vec<Problem> {
    let root = parameter(url, &ROOT_NAMES);
    let (certificate, key) = (
        parameter(url, &CERTIFICATE_NAMES),
        parameter(url, &KEY_NAMES),
    );
    let files = [
        root.as_ref().and_then(|name| unfit(name, check_root)),
        certificate
            .as_ref()
            .and_then(|name| unfit(name, check_certificate)),
        key.as_ref().and_then(|name| unfit(name, check_key)),
    ];
    let mut problems: Vec<Problem> = files.into_iter().flatten().collect();
    if root.is_some() && !matches!(mode, PgSslMode::VerifyCa | PgSslMode::VerifyFull) {
        problems.push((
            "has an sslrootcert that nothing is checked with".to_owned(),
            "add sslmode=verify-full, or verify-ca where the host's name must not matter",
        ));
    }
    if certificate.is_some() != key.is_some() {
        problems.push((
            "has one of sslcert and sslkey".to_owned(),
            "name both, or neither",
        ));
    }
    if certificate.is_some() && matches!(mode, PgSslMode::Disable | PgSslMode::Allow) {
        problems.push((
            "has an sslcert, but no TLS to show it in".to_owned(),
            "add sslmode=verify-full, or leave it out",
        ));
    }
    problems
}

/// The parameter of one of these names, as the driver takes it: the last, always as the name of a file.
fn parameter(url: &Url, names: &[&str]) -> Option<(String, String)> {
    let (name, value) = url
        .query_pairs()
        .filter(|(name, _)| names.contains(&name.as_ref()))
        .last()?;
    Some((name.into_owned(), value.into_owned()))
}

fn unfit(
    (name, path): &(String, String),
    check: fn(&[u8]) -> Result<(), &'static str>,
) -> Option<Problem> {
    let problem = match read_bounded(Path::new(path)) {
        Err(error) => format!("can't be read ({error})"),
        Ok(bytes) => check(&bytes).err()?.to_owned(),
    };
    Some((
        format!("{name} {} {problem}", quoted(path)),
        "name a readable PEM file",
    ))
}

fn check_root(bytes: &[u8]) -> Result<(), &'static str> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(bytes)? {
        store
            .add(certificate)
            .map_err(|_| "holds a certificate that can't be used")?;
    }
    Ok(())
}

fn check_certificate(bytes: &[u8]) -> Result<(), &'static str> {
    certificates(bytes).map(drop)
}

fn certificates(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, &'static str> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err("holds no certificate"),
    }
}

fn check_key(bytes: &[u8]) -> Result<(), &'static str> {
    PrivateKeyDer::from_pem_slice(bytes)
        .map(drop)
        .map_err(|_| "holds no private key, or one that is encrypted")
}
