//! Tokens with any header, any claims and any signature.

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use holdfast_tests::Node;
use holdfast_tests::tokens::{self, KeyPair};
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};

/// What every node asks of `iss`.
pub const ISSUER: &str = "https://issuer.example";

/// What every node asks of `aud`.
pub const AUDIENCE: &str = "holdfast";

/// The `kid` of the key in the set that tokens are signed with.
pub const KEY_ID: &str = "es256";

/// The order of the base point of P-256 (SEC 2), big-endian.
const P256_ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    0xbc, 0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
];

/// The order of the base point of Ed25519 (RFC 8032 §5.1), big-endian.
const ED25519_ORDER: [u8; 32] = [
    0x10, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x14, 0xde, 0xf9, 0xde, 0xa2, 0xf7, 0x9c, 0xd6, 0x58, 0x12, 0x63, 0x1a, 0x5c, 0xf5, 0xd3, 0xed,
];

/// A request's credentials, and the status they have to get.
#[derive(Debug)]
pub struct Attempt {
    /// What is tried.
    pub name: &'static str,
    /// The values of the `Authorization` headers.
    pub credentials: Vec<String>,
    /// 401, unless it is right or refused even before.
    pub expected: u16,
}

/// Who signs, and by which kind of key a node checks that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Issuer {
    /// A secret.
    Hs256,
    /// One public key.
    Pair(KeyPair),
    /// A set of three public keys.
    Set,
}

impl Issuer {
    /// All kinds.
    pub const ALL: [Issuer; 5] = [
        Issuer::Hs256,
        Issuer::Pair(KeyPair::Rs256),
        Issuer::Pair(KeyPair::Es256),
        Issuer::Pair(KeyPair::EdDsa),
        Issuer::Set,
    ];

    /// The names of all kinds, as columns.
    pub fn heading() -> String {
        let names = Issuer::ALL.map(|issuer| format!("{:<6}", issuer.name()));
        names.concat()
    }

    pub fn name(self) -> &'static str {
        match self {
            Issuer::Hs256 => "HS256",
            Issuer::Pair(KeyPair::Rs256) => "RS256",
            Issuer::Pair(KeyPair::Es256) => "ES256",
            Issuer::Pair(KeyPair::EdDsa) => "EdDSA",
            Issuer::Set => "JWKS",
        }
    }

    /// Has a node check tokens by this kind of key.
    pub fn configure(self, node: &mut Node) {
        let file = match self {
            Issuer::Hs256 => return,
            Issuer::Pair(pair) => ("JWT_PUBLIC_KEY_FILE", pair.public_key_file()),
            Issuer::Set => ("JWT_JWKS_FILE", tokens::fixture("keys/jwks.json")),
        };
        node.unset("JWT_SECRET");
        node.set(file.0, &file.1.to_string_lossy());
    }

    /// The pair of keys it signs with, if it has one.
    pub fn pair(self) -> Option<KeyPair> {
        match self {
            Issuer::Hs256 => None,
            Issuer::Pair(pair) => Some(pair),
            Issuer::Set => Some(KeyPair::Es256),
        }
    }

    /// The header of a right token.
    pub fn header(self) -> Value {
        let algorithm = match self.pair() {
            None => "HS256",
            Some(KeyPair::Rs256) => "RS256",
            Some(KeyPair::Es256) => "ES256",
            Some(KeyPair::EdDsa) => "EdDSA",
        };
        match self {
            Issuer::Set => json!({"typ": "JWT", "alg": algorithm, "kid": KEY_ID}),
            Issuer::Hs256 | Issuer::Pair(_) => json!({"typ": "JWT", "alg": algorithm}),
        }
    }

    /// The right header with these members set.
    pub fn header_with(self, changes: Value) -> Value {
        changed(self.header(), changes)
    }

    /// A token with this header and payload, rightly signed whatever they say.
    pub fn sign(self, header: &Value, payload: &str) -> Result<String> {
        self.sign_text(&header.to_string(), payload)
    }

    /// The same of a header that may be no JSON.
    pub fn sign_text(self, header: &str, payload: &str) -> Result<String> {
        let message = message(header, payload);
        let signature = match self.pair() {
            None => tokens::hmac(&message, tokens::SECRET.as_bytes(), Algorithm::HS256),
            Some(pair) => pair.signature(&message, pair.algorithm())?,
        };
        Ok(format!("{message}.{signature}"))
    }

    /// A right token.
    pub fn good(self) -> Result<String> {
        self.sign(&self.header(), &claims().to_string())
    }

    /// A right token but for these claims; null takes one away.
    pub fn claiming(self, changes: Value) -> Result<String> {
        self.sign(&self.header(), &changed(claims(), changes).to_string())
    }
}

/// Claims that every node takes.
pub fn claims() -> Value {
    let mut claims = tokens::claims("somebody");
    claims["iss"] = json!(ISSUER);
    claims["aud"] = json!(AUDIENCE);
    claims
}

/// `base` with these members set, or taken away where they are null.
pub fn changed(mut base: Value, changes: Value) -> Value {
    if let (Value::Object(base), Value::Object(changes)) = (&mut base, changes) {
        for (name, value) in changes {
            match value {
                Value::Null => drop(base.remove(&name)),
                value => drop(base.insert(name, value)),
            }
        }
    }
    base
}

/// What a signature signs.
pub fn message(header: &str, payload: &str) -> String {
    format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(header),
        URL_SAFE_NO_PAD.encode(payload)
    )
}

/// Header, payload and signature, still encoded.
pub fn parts(token: &str) -> Result<[&str; 3]> {
    let parts: Vec<&str> = token.split('.').collect();
    parts.try_into().ok().context("not three parts")
}

/// The token with its signature's bytes changed so.
pub fn with_signature(token: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Result<String> {
    let [header, payload, signature] = parts(token)?;
    let changed = change(URL_SAFE_NO_PAD.decode(signature)?);
    Ok(format!(
        "{header}.{payload}.{}",
        URL_SAFE_NO_PAD.encode(changed)
    ))
}

/// The other of the two valid ECDSA signatures: (r, n − s) for (r, s).
pub fn other_ecdsa_signature(token: &str) -> Result<String> {
    with_signature(token, |bytes| {
        let (r, s) = bytes.split_at(32);
        let mut other = r.to_vec();
        other.extend(difference(&P256_ORDER, s));
        other
    })
}

/// An Ed25519 signature whose second half is beyond the order, as RFC 8032
/// forbids: anybody can make it of a right one.
pub fn oversized_eddsa_signature(token: &str) -> Result<String> {
    with_signature(token, |bytes| {
        let (r, s) = bytes.split_at(32);
        let big_endian: Vec<u8> = s.iter().rev().copied().collect();
        let mut sum = sum(&ED25519_ORDER, &big_endian);
        sum.reverse();
        [r, &sum].concat()
    })
}

/// An RSA signature plus the modulus: the same remainder, if it still fits.
pub fn oversized_rsa_signature(token: &str) -> Result<String> {
    let set: Value = serde_json::from_slice(&std::fs::read(tokens::fixture("keys/jwks.json"))?)?;
    let modulus = set["keys"][0]["n"].as_str().context("a modulus")?;
    let modulus = URL_SAFE_NO_PAD.decode(modulus)?;
    ensure!(modulus.len() == 256, "another key");
    with_signature(token, |bytes| sum(&modulus, &bytes))
}

/// Big-endian numbers of the same length: `a` − `b`.
fn difference(a: &[u8], b: &[u8]) -> Vec<u8> {
    let mut borrow = 0;
    let digits = a.iter().zip(b).rev().map(|(a, b)| {
        let digit = i16::from(*a) - i16::from(*b) - borrow;
        borrow = i16::from(digit < 0);
        u8::try_from(digit.rem_euclid(256)).expect("a byte")
    });
    let mut digits: Vec<u8> = digits.collect();
    digits.reverse();
    digits
}

/// Big-endian numbers of the same length: `a` + `b`, with a byte more where
/// that doesn't fit.
fn sum(a: &[u8], b: &[u8]) -> Vec<u8> {
    let mut carry = 0;
    let digits = a.iter().zip(b).rev().map(|(a, b)| {
        let digit = u16::from(*a) + u16::from(*b) + carry;
        carry = digit >> 8;
        u8::try_from(digit & 0xff).expect("a byte")
    });
    let mut digits: Vec<u8> = digits.collect();
    if carry > 0 {
        digits.push(1);
    }
    digits.reverse();
    digits
}
