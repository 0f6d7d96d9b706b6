//! Checking tokens. Holdfast issues none: a token is worth what its signature, its times and its claims say, and
//! which key and algorithm it is checked with is never the token's own choice.

use std::path::Path;
use std::sync::Arc;

use holdfast_shared::config::{TokenConfig, TokenKeys, development_secret};
use holdfast_shared::domain::{Claims, SessionId, Timestamp, UserId};
use holdfast_shared::seeded::Bug;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Validation, decode, decode_header};
use secrecy::ExposeSecret;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::key::{KeyError, TokenKey};
use super::key_set::{KeySetError, KeySetFile};

/// How far the issuer's clock may be from ours, in seconds.
const LEEWAY_SECONDS: u64 = 30;

/// 9999-12-31T23:59:59Z: a token that says it ends later ends then, as RFC 3339 can't write more.
const LAST_SECOND: f64 = 253_402_300_799.0;

/// Why tokens can't be checked at all.
#[derive(Debug, Error)]
pub enum VerifierError {
    /// `JWT_SECRET` is no good.
    #[error("JWT_SECRET can't be used")]
    Secret(#[source] KeyError),
    /// `JWT_PUBLIC_KEY_FILE` is no good.
    #[error("JWT_PUBLIC_KEY_FILE can't be used")]
    PublicKey(#[source] KeyError),
    /// `JWT_JWKS_FILE` is no good.
    #[error("JWT_JWKS_FILE can't be used")]
    KeySet(#[source] KeySetError),
    /// The file of `JWT_PUBLIC_KEY_FILE` can't be read.
    #[error("can't read the token key")]
    Io(#[source] std::io::Error),
    /// The directory of the buffer doesn't take, or give, the development secret.
    #[error(
        "can't keep a development secret beside the buffer: set BUFFER_PATH to a place this user may write to"
    )]
    DevelopmentSecret(#[source] std::io::Error),
}

/// Why a token doesn't let its bearer in, in words for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TokenFault {
    /// It isn't a token, its signature is wrong, or it was signed by an algorithm that isn't the key's.
    #[error("the token is malformed or its signature is wrong")]
    Invalid,
    /// No key is known by its `kid`.
    #[error("the key the token was signed with is not known")]
    UnknownKey,
    /// `exp` has passed.
    #[error("the token has expired")]
    Expired,
    /// `nbf` is to come.
    #[error("the token is not valid yet")]
    Immature,
    /// `iss` isn't the one that is asked for.
    #[error("the token is from another issuer, or names none")]
    Issuer,
    /// `aud` doesn't name the one that is asked for.
    #[error("the token is for another audience, or names none")]
    Audience,
    /// `exp` is missing, or no number.
    #[error("the token has no valid exp claim")]
    Expiry,
    /// `nbf` is no number.
    #[error("the token has no valid nbf claim")]
    NotBefore,
    /// `sub` is missing, or not of 1 to 255 characters.
    #[error("the token has no valid sub claim")]
    Subject,
    /// `sid` or `jti` is there, but not of 1 to 255 characters.
    #[error("the token has no valid sid or jti claim")]
    Session,
}

/// What a valid token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Whose it is.
    pub user: UserId,
    /// The session it belongs to.
    pub session: SessionId,
    /// When it was issued, if it says so.
    pub issued_at: Option<Timestamp>,
    /// When it ends.
    pub expires_at: Timestamp,
    /// What it says of the user.
    pub claims: Claims,
}

/// Where keys come from.
#[derive(Debug)]
enum Keys {
    One(TokenKey),
    Set(Arc<KeySetFile>),
}

/// Checks tokens by the configured keys and claims.
#[derive(Debug)]
pub struct TokenVerifier {
    keys: Keys,
    issuer: Option<String>,
    audience: Option<String>,
}

impl TokenVerifier {
    /// Reads the keys. In development without any, the secret beside the buffer is read, or made.
    ///
    /// # Errors
    /// [`VerifierError`].
    pub fn open(config: &TokenConfig, buffer_path: &Path) -> Result<Self, VerifierError> {
        // Else the backend is chosen by the features of every crate of a build together, and two of them panic at
        // the first token. That one is chosen already is no error.
        let _chosen = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
        let keys = match &config.keys {
            TokenKeys::Secret(secret) => {
                let key = TokenKey::from_secret(secret.expose_secret().as_bytes());
                Keys::One(key.map_err(VerifierError::Secret)?)
            }
            TokenKeys::PublicKeyFile(path) => {
                let pem = std::fs::read(path).map_err(VerifierError::Io)?;
                Keys::One(TokenKey::from_pem(&pem).map_err(VerifierError::PublicKey)?)
            }
            TokenKeys::JwksFile(path) => Keys::Set(Arc::new(
                KeySetFile::open(path).map_err(VerifierError::KeySet)?,
            )),
            TokenKeys::DevelopmentSecret => {
                tracing::warn!(
                    "tokens are checked with a development secret kept beside the buffer: not for production"
                );
                let secret =
                    development_secret(buffer_path).map_err(VerifierError::DevelopmentSecret)?;
                let key = TokenKey::from_secret(secret.expose_secret().as_bytes());
                Keys::One(key.map_err(VerifierError::Secret)?)
            }
        };
        Ok(TokenVerifier {
            keys,
            issuer: config.issuer.clone(),
            audience: config.audience.clone(),
        })
    }

    /// The key file to follow, where keys come from one that may change.
    pub fn key_set(&self) -> Option<Arc<KeySetFile>> {
        match &self.keys {
            Keys::One(_) => None,
            Keys::Set(file) => Some(Arc::clone(file)),
        }
    }

    /// Checks a token.
    ///
    /// # Errors
    /// [`TokenFault`].
    pub fn verify(&self, token: &str) -> Result<Identity, TokenFault> {
        let header = decode_header(token).map_err(|_| TokenFault::Invalid)?;
        // An extension that must be understood, and none is (RFC 7515 §4.1.11).
        if header.crit.is_some() {
            return Err(TokenFault::Invalid);
        }
        let verified = match &self.keys {
            Keys::One(key) => self.verify_with(token, key)?,
            Keys::Set(file) => {
                let key = header
                    .kid
                    .as_deref()
                    .and_then(|kid| file.find(kid))
                    .ok_or(TokenFault::UnknownKey)?;
                self.verify_with(token, &key)?
            }
        };
        identify(token, &verified)
    }

    fn verify_with(&self, token: &str, key: &TokenKey) -> Result<Map<String, Value>, TokenFault> {
        let validation = self.validation(key);
        match decode::<Map<String, Value>>(token, &key.decoding, &validation) {
            Ok(data) => Ok(data.claims),
            Err(error) => Err(fault_of(error.kind())),
        }
    }

    /// The library requires only `exp` by default, and lets pass a token that lacks an issuer or audience that is
    /// asked for, or isn't valid yet; but it refuses one with an audience where none is asked for.
    fn validation(&self, key: &TokenKey) -> Validation {
        let mut validation = Validation::new(key.algorithm);
        validation.leeway = LEEWAY_SECONDS;
        validation.validate_nbf = true;
        validation.validate_exp = !Bug::ExpiredTokenAccepted.is_on();
        validation.validate_aud = self.audience.is_some();
        let mut required = vec!["exp", "sub"];
        if let Some(issuer) = &self.issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        if let Some(audience) = &self.audience {
            validation.set_audience(&[audience]);
            required.push("aud");
        }
        validation.set_required_spec_claims(&required);
        validation
    }
}

fn fault_of(kind: &ErrorKind) -> TokenFault {
    match kind {
        ErrorKind::ExpiredSignature => TokenFault::Expired,
        ErrorKind::ImmatureSignature => TokenFault::Immature,
        ErrorKind::InvalidIssuer => TokenFault::Issuer,
        ErrorKind::InvalidAudience => TokenFault::Audience,
        ErrorKind::MissingRequiredClaim(claim) | ErrorKind::InvalidClaimFormat(claim) => {
            match claim.as_str() {
                "exp" => TokenFault::Expiry,
                "nbf" => TokenFault::NotBefore,
                "sub" => TokenFault::Subject,
                "iss" => TokenFault::Issuer,
                "aud" => TokenFault::Audience,
                _ => TokenFault::Invalid,
            }
        }
        _ => TokenFault::Invalid,
    }
}

fn identify(token: &str, claims: &Map<String, Value>) -> Result<Identity, TokenFault> {
    let text = |name: &str| claims.get(name).and_then(Value::as_str).map(str::to_owned);
    let subject = claims
        .get("sub")
        .and_then(Value::as_str)
        .ok_or(TokenFault::Subject)?;
    Ok(Identity {
        user: UserId::parse(subject).map_err(|_| TokenFault::Subject)?,
        session: session_of(token, claims)?,
        issued_at: claims.get("iat").and_then(seconds),
        expires_at: claims
            .get("exp")
            .and_then(seconds)
            .ok_or(TokenFault::Expiry)?,
        claims: Claims {
            email: text("email"),
            name: text("name"),
            picture: text("picture"),
            locale: text("locale"),
            zoneinfo: text("zoneinfo"),
        },
    })
}

/// The session a token belongs to. One that names it in a way that can't be kept is refused rather than given
/// another: a session must not have two names, or revoking one leaves the other.
fn session_of(token: &str, claims: &Map<String, Value>) -> Result<SessionId, TokenFault> {
    let named = ["sid", "jti"]
        .into_iter()
        .find_map(|name| claims.get(name).filter(|value| !value.is_null()));
    let id = match named {
        Some(value) => value.as_str().ok_or(TokenFault::Session)?.to_owned(),
        None => hash_of_claims(token),
    };
    SessionId::parse(&id).map_err(|_| TokenFault::Session)
}

/// SHA-256 of what the signature signs. Not of the signature itself: of an ECDSA signature anybody can make a second
/// valid one, which would be a session that was never revoked.
fn hash_of_claims(token: &str) -> String {
    let signed = token.rsplit_once('.').map_or(token, |(signed, _)| signed);
    Sha256::digest(signed.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// A NumericDate (RFC 7519 §2): seconds, perhaps with a fraction.
fn seconds(value: &Value) -> Option<Timestamp> {
    let seconds = value.as_f64()?.clamp(0.0, LAST_SECOND);
    Some(Timestamp::from_micros((seconds * 1e6) as i64))
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
