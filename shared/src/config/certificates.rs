//! The files of TLS that `REDIS_URL` names, looked into at start: a file that can't be used would look like an outage
//! at each connection.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::fault::quoted;
use super::redis_url::Problem;
use super::settings::RedisTls;
use super::source::read_bounded;

const CERTIFICATES: &str = "name a PEM file with certificates";
const KEY: &str = "name a PEM file with the unencrypted private key of sslcert";

/// The files that these parameters name.
pub(super) fn check(
    parameters: &BTreeMap<String, String>,
    problems: &mut Vec<Problem>,
) -> RedisTls {
    let path = |name: &str| parameters.get(name).map(PathBuf::from);
    let root_certificates = path("sslrootcert");
    if let Some(path) = &root_certificates {
        problems.extend(check_roots(path).err());
    }
    let client = match (path("sslcert"), path("sslkey")) {
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
                "sslrootcert {} has a certificate that is of no authority",
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
