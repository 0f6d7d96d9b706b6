//! The files of TLS that the URL of a store names, read at start as the drivers will read them: one that can't be used,
//! or that nothing is checked with, would look like an outage, or show in one at the earliest.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use sqlx::postgres::PgSslMode;
use url::Url;

use super::fault::quoted;
use super::settings::RedisTls;
use super::source::read_bounded;

/// What is wrong, and what to do.
pub(super) type Problem = (String, &'static str);

const CERTIFICATES: &str = "name a PEM file with certificates";
const KEY: &str = "name a PEM file with the unencrypted private key of sslcert";

/// The names that sqlx takes for each file, ours first.
const ROOT_NAMES: [&str; 3] = ["sslrootcert", "ssl-root-cert", "ssl-ca"];
const CERTIFICATE_NAMES: [&str; 2] = ["sslcert", "ssl-cert"];
const KEY_NAMES: [&str; 2] = ["sslkey", "ssl-key"];

/// What is wrong with the files that a `DATABASE_URL` names, whose mode is `mode`.
pub(super) fn of_postgres(url: &Url, mode: PgSslMode) -> Vec<Problem> {
    let path = |names: &[&str]| {
        // As the driver takes it: the last.
        let parameters = url.query_pairs();
        let (_, path) = parameters
            .filter(|(name, _)| names.contains(&name.as_ref()))
            .last()?;
        Some(PathBuf::from(path.into_owned()))
    };
    let mut problems = Vec::new();
    let tls = read_files(
        path(&ROOT_NAMES),
        path(&CERTIFICATE_NAMES),
        path(&KEY_NAMES),
        &mut problems,
    );
    let checked = matches!(mode, PgSslMode::VerifyCa | PgSslMode::VerifyFull);
    if tls.root_certificates.is_some() && !checked {
        problems.push((
            "has an sslrootcert that nothing is checked with".to_owned(),
            "add sslmode=verify-full, or verify-ca where the host's name must not matter",
        ));
    }
    if tls.client.is_some() && matches!(mode, PgSslMode::Disable | PgSslMode::Allow) {
        problems.push((
            "has an sslcert, but no TLS to show it in".to_owned(),
            "add sslmode=verify-full, or leave it out",
        ));
    }
    problems
}

/// The files that these parameters of a `REDIS_URL` name.
pub(super) fn of_redis(
    parameters: &BTreeMap<String, String>,
    problems: &mut Vec<Problem>,
) -> RedisTls {
    let path = |name: &str| parameters.get(name).map(PathBuf::from);
    read_files(
        path("sslrootcert"),
        path("sslcert"),
        path("sslkey"),
        problems,
    )
}

fn read_files(
    root_certificates: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    problems: &mut Vec<Problem>,
) -> RedisTls {
    if let Some(path) = &root_certificates {
        problems.extend(check_roots(path).err());
    }
    let client = match (certificate, key) {
        (Some(certificate), Some(key)) => {
            problems.extend(check_client(&certificate, &key).err());
            Some((certificate, key))
        }
        (None, None) => None,
        _ => {
            let problem = "has only one of sslcert and sslkey".to_owned();
            problems.push((problem, "name both files, or neither"));
            None
        }
    };
    RedisTls {
        root_certificates,
        client,
    }
}

fn check_roots(path: &Path) -> Result<(), Problem> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates("sslrootcert", path)? {
        if roots.add(certificate).is_err() {
            let problem = format!(
                "sslrootcert {} holds a certificate that can't be used",
                shown(path)
            );
            return Err((problem, CERTIFICATES));
        }
    }
    Ok(())
}

fn check_client(certificate: &Path, key: &Path) -> Result<(), Problem> {
    let chain = read_certificates("sslcert", certificate)?;
    let bytes = read("sslkey", key)?;
    let private_key = PrivateKeyDer::from_pem_slice(&bytes)
        .map_err(|_| (format!("sslkey {} holds no private key", shown(key)), KEY))?;
    CertifiedKey::from_der(chain, private_key, &aws_lc_rs::default_provider())
        .map(drop)
        .map_err(|_| {
            (
                format!("sslkey {} is not the key of sslcert", shown(key)),
                KEY,
            )
        })
}

fn read_certificates(name: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Problem> {
    let bytes = read(name, path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    certificates
        .ok()
        .filter(|certificates| !certificates.is_empty())
        .ok_or_else(|| {
            let problem = format!("{name} {} holds no certificate", shown(path));
            (problem, CERTIFICATES)
        })
}

fn read(name: &str, path: &Path) -> Result<Vec<u8>, Problem> {
    read_bounded(path).map_err(|error| {
        let problem = format!("{name} {} can't be read ({error})", shown(path));
        (problem, "name a readable PEM file")
    })
}

fn shown(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}
