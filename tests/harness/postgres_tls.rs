//! TLS of a private PostgreSQL.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::certificates::Identity;
use crate::postgres::Postgres;

/// PostgreSQL takes a key only from a file that nobody else can read.
const OWNER_ONLY: u32 = 0o600;

/// Whom the server lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Everybody, with TLS or without.
    Open,
    /// The superuser; others with a certificate in their own name, from the authority that the server trusts.
    Certified,
}

impl Admission {
    fn rules(self) -> &'static str {
        match self {
            Admission::Open => "local all all trust\nhost all all 127.0.0.1/32 trust\n",
            Admission::Certified => {
                "local all all trust\nhost all postgres 127.0.0.1/32 trust\n\
                 hostssl all all 127.0.0.1/32 trust clientcert=verify-full\n"
            }
        }
    }
}

impl Postgres {
    /// Makes it offer TLS with this certificate from now on, or another one than before. It trusts clients'
    /// certificates of this authority (PEM).
    ///
    /// # Errors
    /// When the files can't be written, or the server doesn't read them.
    pub async fn offer_tls(&self, identity: &Identity, client_authority: &str) -> Result<()> {
        self.write_private("server.crt", &identity.certificate)?;
        self.write_private("server.key", &identity.key)?;
        self.write_private("clients.crt", client_authority)?;
        self.configure("ssl_ca_file", "clients.crt").await?;
        self.configure("ssl", "on").await
    }

    /// Makes it offer none.
    ///
    /// # Errors
    /// When the server doesn't take the setting.
    pub async fn offer_no_tls(&self) -> Result<()> {
        self.configure("ssl", "off").await
    }

    /// Makes it let these in from now on.
    ///
    /// # Errors
    /// When the rules can't be written or the server doesn't read them.
    pub async fn admit(&self, admission: Admission) -> Result<()> {
        self.set_rules(admission.rules()).await
    }

    fn write_private(&self, name: &str, text: &str) -> Result<()> {
        let path = self.data_directory().join(name);
        write_private(&path, text)?;
        self.account().give(&path)
    }
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(OWNER_ONLY))
        .with_context(|| format!("cannot protect {}", path.display()))
}
