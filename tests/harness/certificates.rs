//! A certificate authority of a test's own.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use tempfile::TempDir;

const AUTHORITY_FILE: &str = "authority.pem";

/// An authority that nobody trusts who isn't told to, with its certificate in a
/// file.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    home: TempDir,
}

/// A certificate and its private key, both as PEM.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// The key.
    pub key: String,
}

/// The files of an identity.
#[derive(Debug, Clone)]
pub struct IdentityFiles {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// When a certificate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// Now.
    Current,
    /// Not any more.
    Expired,
}

impl Authority {
    /// Makes one of this name, with a key of its own.
    ///
    /// # Errors
    /// When no key can be made, or the certificate can't be written.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = named(name, &[])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().context("cannot make a key")?;
        let certificate = params.self_signed(&key).context("cannot sign")?.pem();
        let home = tempfile::tempdir().context("cannot create a temporary directory")?;
        let authority = Self {
            issuer: Issuer::new(params, key),
            certificate,
            home,
        };
        authority.write_certificate(authority.home.path())?;
        Ok(authority)
    }

    /// Its certificate, as PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Its certificate's file, to be trusted.
    pub fn certificate_file(&self) -> PathBuf {
        self.home.path().join(AUTHORITY_FILE)
    }

    /// What it is itself, for a server that shows the authority's own
    /// certificate, as one does that is made in one step.
    pub fn itself(&self) -> Identity {
        Identity {
            certificate: self.certificate.clone(),
            key: self.issuer.key().serialize_pem(),
        }
    }

    /// Issues a certificate to somebody of this common name, who may use these host names and addresses.
    ///
    /// # Errors
    /// When no key can be made, or a host's name is none.
    pub fn issue(&self, name: &str, hosts: &[&str], validity: Validity) -> Result<Identity> {
        let mut params = named(name, hosts)?;
        if validity == Validity::Expired {
            params.not_after = date_time_ymd(2020, 1, 1);
        }
        let key = KeyPair::generate().context("cannot make a key")?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .context("cannot sign")?;
        Ok(Identity {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    /// Issues a certificate to a host, or a client, and writes the files into a
    /// directory, with its own beside them: a server may run as a user who
    /// can't read it elsewhere.
    ///
    /// # Errors
    /// When they can't be written.
    pub fn certify(&self, name: &str, directory: &Path) -> Result<IdentityFiles> {
        let identity = self.issue(name, &[name], Validity::Current)?;
        let files = IdentityFiles {
            certificate: directory.join("certificate.pem"),
            key: directory.join("key.pem"),
        };
        fs::write(&files.certificate, identity.certificate)
            .context("cannot write a certificate")?;
        fs::write(&files.key, identity.key).context("cannot write a key")?;
        self.write_certificate(directory)?;
        Ok(files)
    }

    /// The parameters of a `REDIS_URL` that trust it, and show a certificate
    /// of its own making.
    ///
    /// # Errors
    /// As [`Authority::certify`].
    pub fn url_parameters(&self) -> Result<String> {
        let files = self.certify("client", self.home.path())?;
        Ok(format!(
            "sslrootcert={}&sslcert={}&sslkey={}",
            self.certificate_file().display(),
            files.certificate.display(),
            files.key.display()
        ))
    }

    /// What tells `redis-server` to use the certificate in this directory.
    pub(crate) fn server_arguments(&self, directory: &Path) -> [String; 6] {
        let path = |name: &str| directory.join(name).display().to_string();
        [
            "--tls-cert-file".to_owned(),
            path("certificate.pem"),
            "--tls-key-file".to_owned(),
            path("key.pem"),
            "--tls-ca-cert-file".to_owned(),
            path(AUTHORITY_FILE),
        ]
    }

    fn write_certificate(&self, directory: &Path) -> Result<()> {
        fs::write(directory.join(AUTHORITY_FILE), &self.certificate)
            .context("cannot write the authority's certificate")
    }
}

fn named(name: &str, hosts: &[&str]) -> Result<CertificateParams> {
    let hosts: Vec<String> = hosts.iter().map(|host| String::from(*host)).collect();
    let mut params = CertificateParams::new(hosts).context("not a host's name")?;
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}
