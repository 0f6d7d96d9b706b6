//! A private certificate authority, made anew for each test that wants one.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;

const AUTHORITY_FILE: &str = "authority.pem";

/// An authority, with its certificate in a file.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    home: TempDir,
}

/// The files of a certificate.
#[derive(Debug, Clone)]
pub struct CertificateFiles {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes one that nobody trusts yet.
    ///
    /// # Errors
    /// When its certificate can't be written.
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::new([]).context("cannot describe an authority")?;
        // Under the same name as those it certifies, these would seem to certify themselves.
        params
            .distinguished_name
            .push(DnType::CommonName, "an authority of the tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().context("cannot make a key")?;
        let issuer =
            CertifiedIssuer::self_signed(params, key).context("cannot make an authority")?;
        let home = tempfile::tempdir().context("cannot create a temporary directory")?;
        let authority = Self { issuer, home };
        fs::write(authority.certificate(), authority.issuer.pem())
            .context("cannot write the authority's certificate")?;
        Ok(authority)
    }

    /// Its certificate's file, to be trusted.
    pub fn certificate(&self) -> PathBuf {
        self.home.path().join(AUTHORITY_FILE)
    }

    /// Certifies a host, or a client, and writes the files into a directory.
    ///
    /// # Errors
    /// When they can't be written.
    pub fn certify(&self, name: &str, directory: &Path) -> Result<CertificateFiles> {
        let params = CertificateParams::new([name.to_owned()]).context("not a host's name")?;
        let key = KeyPair::generate().context("cannot make a key")?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .context("cannot sign a certificate")?;
        let files = CertificateFiles {
            certificate: directory.join("certificate.pem"),
            key: directory.join("key.pem"),
        };
        fs::write(&files.certificate, certificate.pem()).context("cannot write a certificate")?;
        fs::write(&files.key, key.serialize_pem()).context("cannot write a key")?;
        // Beside them lies whom to trust: a server may run as a user who can't read it elsewhere.
        fs::write(directory.join(AUTHORITY_FILE), self.issuer.pem())
            .context("cannot write the authority's certificate")?;
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
            self.certificate().display(),
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
}
