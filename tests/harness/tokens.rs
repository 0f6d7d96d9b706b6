//! Tokens, good and bad. Holdfast issues none, so the tests play the issuer.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use chrono::Utc;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

/// The `JWT_SECRET` of every test node: more than the 32 bytes that are asked.
pub const SECRET: &str = "only-for-tests-0123456789abcdef-0123456789abcdef";

/// A secret that no node knows.
pub const FOREIGN_SECRET: &str = "of-somebody-else-0123456789abcdef-0123456789abcd";

/// `{"alg":"none","typ":"JWT"}`, base64url.
const UNSIGNED_HEADER: &str = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0";

static TOKENS: AtomicU64 = AtomicU64::new(0);

/// A pair of asymmetric keys under `tests/fixtures/keys`, made for these tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyPair {
    /// RSA, 2048 bits.
    Rs256,
    /// ECDSA on P-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

impl KeyPair {
    /// All of them.
    pub const ALL: [KeyPair; 3] = [KeyPair::Rs256, KeyPair::Es256, KeyPair::EdDsa];

    /// The file to give as `JWT_PUBLIC_KEY_FILE`.
    pub fn public_key_file(self) -> PathBuf {
        fixture(&format!("keys/{}-public.pem", self.name()))
    }

    /// Signs `claims` with the private key; `key_id` becomes the `kid`.
    ///
    /// # Errors
    /// When the fixture can't be read.
    pub fn sign(self, claims: &Value, key_id: Option<&str>) -> Result<String> {
        let mut header = Header::new(self.algorithm());
        header.kid = key_id.map(str::to_owned);
        encode(&header, claims, &self.private_key()?).context("cannot sign a token")
    }

    /// The signature of any text by an algorithm of this family, base64url.
    ///
    /// # Errors
    /// When the fixture can't be read, or the algorithm is of another family.
    pub fn signature(self, message: &str, algorithm: Algorithm) -> Result<String> {
        jsonwebtoken::crypto::sign(message.as_bytes(), &self.private_key()?, algorithm)
            .context("cannot sign a text")
    }

    /// The algorithm that its public key stands for.
    pub fn algorithm(self) -> Algorithm {
        match self {
            KeyPair::Rs256 => Algorithm::RS256,
            KeyPair::Es256 => Algorithm::ES256,
            KeyPair::EdDsa => Algorithm::EdDSA,
        }
    }

    fn private_key(self) -> Result<EncodingKey> {
        let path = fixture(&format!("keys/{}-private.pem", self.name()));
        let pem =
            std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let key = match self {
            KeyPair::Rs256 => EncodingKey::from_rsa_pem(&pem),
            KeyPair::Es256 => EncodingKey::from_ec_pem(&pem),
            KeyPair::EdDsa => EncodingKey::from_ed_pem(&pem),
        };
        key.context("the fixture holds no such key")
    }

    fn name(self) -> &'static str {
        match self {
            KeyPair::Rs256 => "rs256",
            KeyPair::Es256 => "es256",
            KeyPair::EdDsa => "eddsa",
        }
    }
}

/// A file under `tests/fixtures`.
pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name)
}

/// Claims that are good for an hour, with a session of their own.
pub fn claims(subject: &str) -> Value {
    let now = Utc::now().timestamp();
    let serial = TOKENS.fetch_add(1, Ordering::Relaxed);
    json!({
        "sub": subject,
        "iat": now,
        "exp": now + 3600,
        "jti": format!("token-{}-{serial}", std::process::id()),
        "email": format!("{subject}@example.com"),
        "name": format!("{subject} Example"),
    })
}

/// The signature of any text with a secret, base64url.
///
/// # Panics
/// When the algorithm isn't one with a secret.
pub fn hmac(message: &str, secret: &[u8], algorithm: Algorithm) -> String {
    let key = EncodingKey::from_secret(secret);
    jsonwebtoken::crypto::sign(message.as_bytes(), &key, algorithm).expect("an HMAC")
}

/// Signs `claims` with a secret (HS256).
///
/// # Panics
/// When the claims aren't an object.
pub fn hs256(secret: &str, claims: &Value) -> String {
    let key = EncodingKey::from_secret(secret.as_bytes());
    encode(&Header::new(Algorithm::HS256), claims, &key).expect("claims made here can be signed")
}

/// A good token for this user, of a session of its own.
pub fn valid(subject: &str) -> String {
    hs256(SECRET, &claims(subject))
}

/// A token that was good until a minute ago, beyond the leeway of 30 s.
pub fn expired(subject: &str) -> String {
    let mut claims = claims(subject);
    claims["exp"] = json!(Utc::now().timestamp() - 60);
    hs256(SECRET, &claims)
}

/// A token signed with a secret that no node knows.
pub fn foreign(subject: &str) -> String {
    hs256(FOREIGN_SECRET, &claims(subject))
}

/// A token that says `alg: none` and has no signature.
pub fn unsigned(subject: &str) -> String {
    let signed = valid(subject);
    let payload = signed.split('.').nth(1).unwrap_or_default();
    format!("{UNSIGNED_HEADER}.{payload}.")
}

/// A good token whose claims were changed after it was signed.
pub fn tampered(subject: &str) -> String {
    let mine = valid("somebody");
    let theirs = valid(subject);
    let parts = |token: &str, index: usize| {
        let part = token.split('.').nth(index).unwrap_or_default();
        part.to_owned()
    };
    format!(
        "{}.{}.{}",
        parts(&mine, 0),
        parts(&theirs, 1),
        parts(&mine, 2)
    )
}

/// The session that a token belongs to, as the programs see it.
///
/// # Errors
/// When it isn't one of these tokens.
pub fn session_id(token: &str) -> Result<String> {
    let claims: Value =
        jsonwebtoken::dangerous::insecure_decode_claims(token).context("not a token")?;
    let id = claims["sid"].as_str().or(claims["jti"].as_str());
    Ok(id.context("a token without a session")?.to_owned())
}
