//! What is wrong when TLS with PostgreSQL doesn't come about, in words that say what to do.
//!
//! The driver hands on what the TLS library says in two ways: as an error of TLS, and inside an error of the socket,
//! where it would look like an outage.

use std::error::Error;
use std::io;

use rustls::{AlertDescription, CertificateError};

const NOT_OFFERED: &str = "postgres (or a pooler before it) doesn't offer TLS, and sslmode (DB_SSLMODE) insists on it: \
    turn it on there";
const UNKNOWN_AUTHORITY: &str = "the authority that signed postgres' certificate isn't trusted: name its certificate \
    by sslrootcert in DATABASE_URL";
const OTHER_NAME: &str = "postgres' certificate is for another host: connect by a name that it lists as \
    subjectAltName, or have one made with the name in use (a common name doesn't count)";
const EXPIRED: &str = "postgres' certificate has expired: renew it";
const NOT_YET_VALID: &str =
    "postgres' certificate is not valid yet: check the clocks, here and where it was made";
const REVOKED: &str = "postgres' certificate was revoked: replace it";
const UNFIT: &str = "postgres' certificate can't be used: it must be of X.509 version 3, and not an authority's own \
    (self-signed)";
const CLIENT_REFUSED: &str =
    "postgres refuses this client's certificate: check sslcert and sslkey in DATABASE_URL";
/// Of a file that the driver reads at each connect.
pub(super) const FILE_MISSING: &str =
    "a file that sslrootcert, sslcert or sslkey names is not there any more";
const FAILED: &str = "TLS with postgres failed: check its certificate, the files in DATABASE_URL, and sslmode \
    (DB_SSLMODE)";

/// Whether an error of the socket is the TLS library's, and not the network's.
pub(super) fn is_to_blame(error: &io::Error) -> bool {
    from_library(error).is_some()
}

/// What an error about TLS means.
pub(super) fn explain(error: &(dyn Error + 'static)) -> &'static str {
    let within_socket = || error.downcast_ref().and_then(from_library);
    let library = error.downcast_ref().or_else(within_socket);
    match library {
        Some(rustls::Error::InvalidCertificate(fault)) => explain_certificate(fault),
        Some(rustls::Error::AlertReceived(alert)) if is_about_client(*alert) => CLIENT_REFUSED,
        Some(rustls::Error::InconsistentKeys(_)) => CLIENT_REFUSED,
        Some(_) => FAILED,
        // The driver's own, who gives it no type.
        None if error.to_string().contains("does not support TLS") => NOT_OFFERED,
        None => FAILED,
    }
}

fn from_library(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

fn explain_certificate(fault: &CertificateError) -> &'static str {
    match fault {
        CertificateError::UnknownIssuer => UNKNOWN_AUTHORITY,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            OTHER_NAME
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => EXPIRED,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            NOT_YET_VALID
        }
        CertificateError::Revoked => REVOKED,
        _ => UNFIT,
    }
}

fn is_about_client(alert: AlertDescription) -> bool {
    use AlertDescription as Alert;
    matches!(
        alert,
        Alert::CertificateRequired
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::DecryptError
    )
}
