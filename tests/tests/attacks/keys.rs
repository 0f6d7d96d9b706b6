//! Attacks by what a token says of its key and its algorithm.

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use holdfast_tests::tokens::{self, KeyPair};
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};

use crate::forge::{self, Attempt, Issuer, changed, claims, message};
use crate::table::attack;

pub fn algorithms(issuer: Issuer) -> Result<Vec<Attempt>> {
    let payload = claims().to_string();
    let under = |algorithm: Value| -> Result<String> {
        issuer.sign(&issuer.header_with(json!({"alg": algorithm})), &payload)
    };
    let unsigned = |algorithm: &str| {
        let header = issuer.header_with(json!({"alg": algorithm})).to_string();
        format!("{}.", message(&header, &payload))
    };
    let without = changed(issuer.header(), json!({"alg": null}));
    Ok(vec![
        attack("alg none, no signature", unsigned("none")),
        attack("alg None", unsigned("None")),
        attack("alg nOnE", unsigned("nOnE")),
        attack("alg none, the signature right", under(json!("none"))?),
        attack("alg empty", under(json!(""))?),
        attack("alg missing", issuer.sign(&without, &payload)?),
        attack("alg a number", under(json!(256))?),
        attack("alg a list", under(json!(["none"]))?),
        attack("alg unknown", under(json!("XS256"))?),
        attack("alg in other case", under(json!(other_case(issuer)))?),
        attack("alg of another family", under(json!(other_family(issuer)))?),
        attack(
            "alg with a null behind",
            under(json!(format!("{}\0", own_algorithm(issuer))))?,
        ),
    ])
}

fn own_algorithm(issuer: Issuer) -> String {
    issuer.header()["alg"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

fn other_case(issuer: Issuer) -> String {
    let own = own_algorithm(issuer);
    if own == "EdDSA" {
        own.to_uppercase()
    } else {
        own.to_lowercase()
    }
}

fn other_family(issuer: Issuer) -> &'static str {
    match issuer.pair() {
        None => "RS256",
        Some(KeyPair::Rs256) => "ES256",
        Some(KeyPair::Es256) => "RS256",
        Some(KeyPair::EdDsa) => "ES256",
    }
}

/// What everybody knows of a public key, taken for a secret.
pub fn confusions(issuer: Issuer) -> Result<Vec<Attempt>> {
    let payload = claims().to_string();
    let by_secret = |secret: &[u8], algorithm: Algorithm| {
        let header = issuer.header_with(json!({"alg": format!("{algorithm:?}")}));
        let message = message(&header.to_string(), &payload);
        format!("{message}.{}", tokens::hmac(&message, secret, algorithm))
    };
    let mut attempts = vec![
        attack(
            "HS256 with an empty secret",
            by_secret(b"", Algorithm::HS256),
        ),
        attack(
            "HS256 with another secret",
            by_secret(tokens::FOREIGN_SECRET.as_bytes(), Algorithm::HS256),
        ),
        attack(
            "HS384 with the secret of HS256",
            by_secret(tokens::SECRET.as_bytes(), Algorithm::HS384),
        ),
        attack(
            "HS512 with the secret of HS256",
            by_secret(tokens::SECRET.as_bytes(), Algorithm::HS512),
        ),
    ];
    let Some(pair) = issuer.pair() else {
        return Ok(attempts);
    };
    let pem = std::fs::read_to_string(pair.public_key_file())?;
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let set = std::fs::read(tokens::fixture("keys/jwks.json"))?;
    attempts.extend([
        attack(
            "HS256 with the public key's PEM",
            by_secret(pem.as_bytes(), Algorithm::HS256),
        ),
        attack(
            "HS256 with its PEM, trimmed",
            by_secret(pem.trim().as_bytes(), Algorithm::HS256),
        ),
        attack(
            "HS256 with its base64",
            by_secret(body.as_bytes(), Algorithm::HS256),
        ),
        attack(
            "HS256 with its DER",
            by_secret(&STANDARD.decode(&body)?, Algorithm::HS256),
        ),
        attack(
            "HS512 with its DER",
            by_secret(&STANDARD.decode(&body)?, Algorithm::HS512),
        ),
        attack(
            "HS256 with the key set's text",
            by_secret(&set, Algorithm::HS256),
        ),
        attack(
            "HS256 with the secret of other nodes",
            by_secret(tokens::SECRET.as_bytes(), Algorithm::HS256),
        ),
    ]);
    Ok(attempts)
}

/// Keys, or places of keys, that the token brings along.
pub fn brought_keys(issuer: Issuer) -> Result<Vec<Attempt>> {
    // The attacker's own pair: one that this node doesn't trust.
    let own = match issuer {
        Issuer::Pair(KeyPair::EdDsa) => KeyPair::Es256,
        _ => KeyPair::EdDsa,
    };
    let set: Value = serde_json::from_slice(&std::fs::read(tokens::fixture("keys/jwks.json"))?)?;
    let kid = if own == KeyPair::EdDsa {
        "eddsa"
    } else {
        "es256"
    };
    let key = set["keys"]
        .as_array()
        .context("keys")?
        .iter()
        .find(|key| key["kid"] == kid);
    let key = changed(key.context("a key")?.clone(), json!({"kid": "mine"}));
    let brought = |changes: Value| -> Result<String> {
        let header = json!({"typ": "JWT", "alg": format!("{:?}", own.algorithm()), "kid": "mine"});
        let message = message(&changed(header, changes).to_string(), &claims().to_string());
        Ok(format!(
            "{message}.{}",
            own.signature(&message, own.algorithm())?
        ))
    };
    let symmetric =
        json!({"kty": "oct", "kid": "mine", "k": URL_SAFE_NO_PAD.encode(tokens::FOREIGN_SECRET)});
    let by_symmetric = {
        let header = json!({"alg": "HS256", "kid": "mine", "jwk": symmetric});
        let message = message(&header.to_string(), &claims().to_string());
        let secret = tokens::FOREIGN_SECRET.as_bytes();
        format!(
            "{message}.{}",
            tokens::hmac(&message, secret, Algorithm::HS256)
        )
    };
    Ok(vec![
        attack("jwk: its own public key", brought(json!({"jwk": key}))?),
        attack("jwk: its own secret", by_symmetric),
        attack(
            "jku",
            brought(json!({"jku": "https://attacker.example/jwks.json"}))?,
        ),
        attack(
            "jku to this machine",
            brought(json!({"jku": "http://127.0.0.1:22/"}))?,
        ),
        attack(
            "x5u",
            brought(json!({"x5u": "https://attacker.example/cert.pem"}))?,
        ),
        attack(
            "x5c",
            brought(json!({"x5c": ["MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8A"]}))?,
        ),
        attack("x5c that is no list", brought(json!({"x5c": "MIIB"}))?),
        attack(
            "x5t",
            brought(json!({"x5t": "AAAAAAAAAAAAAAAAAAAAAAAAAAA"}))?,
        ),
    ])
}

/// Names of keys: signed with nothing where there is one key, which no name
/// changes, and rightly where keys are chosen by them.
pub fn key_ids(issuer: Issuer) -> Result<Vec<Attempt>> {
    let payload = claims().to_string();
    let named = |kid: Value| -> Result<String> {
        let header = issuer.header_with(json!({"kid": kid}));
        if issuer == Issuer::Set {
            return issuer.sign(&header, &payload);
        }
        let message = message(
            &changed(header, json!({"alg": "HS256"})).to_string(),
            &payload,
        );
        Ok(format!(
            "{message}.{}",
            tokens::hmac(&message, b"", Algorithm::HS256)
        ))
    };
    let mut attempts = vec![
        attack(
            "kid: a path to nothing",
            named(json!("../../../../dev/null"))?,
        ),
        attack(
            "kid: a path to a file",
            named(json!("/proc/sys/kernel/hostname"))?,
        ),
        attack("kid: SQL", named(json!("x' UNION SELECT 'secret' --"))?),
        attack("kid: a command", named(json!("keys.json|/bin/true"))?),
        attack("kid: a URL", named(json!("https://attacker.example/key"))?),
        attack("kid: empty", named(json!(""))?),
        attack("kid: 8 KiB", named(json!("k".repeat(8192)))?),
        attack("kid: a number", named(json!(1))?),
        attack("kid: a list", named(json!([forge::KEY_ID]))?),
        attack(
            "kid: with a null behind",
            named(json!(format!("{}\0", forge::KEY_ID)))?,
        ),
        attack(
            "kid: in other case",
            named(json!(forge::KEY_ID.to_uppercase()))?,
        ),
        attack("kid: of another key", named(json!("rs256"))?),
    ];
    if issuer == Issuer::Set {
        let none = changed(issuer.header(), json!({"kid": null}));
        attempts.push(attack("kid: missing", issuer.sign(&none, &payload)?));
        let twice = r#"{"alg":"ES256","kid":"rs256","kid":"es256"}"#;
        attempts.push(attack("kid: twice", issuer.sign_text(twice, &payload)?));
    }
    Ok(attempts)
}

pub fn critical(issuer: Issuer) -> Result<Vec<Attempt>> {
    let headed = |changes| issuer.sign(&issuer.header_with(changes), &claims().to_string());
    Ok(vec![
        attack("crit: exp", headed(json!({"crit": ["exp"]}))?),
        attack(
            "crit: unknown",
            headed(json!({"crit": ["urn:x"], "urn:x": true}))?,
        ),
        attack("crit: b64", headed(json!({"crit": ["b64"], "b64": false}))?),
        attack("crit: empty", headed(json!({"crit": []}))?),
        attack("crit: no list", headed(json!({"crit": "exp"}))?),
    ])
}
