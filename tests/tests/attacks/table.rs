//! The table of attacks, and the odd but right tokens beside them, in groups.

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use holdfast_tests::tokens;
use jsonwebtoken::Algorithm;
use serde_json::json;

use crate::claims::{issuers, sessions, subjects, times};
use crate::forge::{self, Attempt, Issuer, changed, claims, message, parts};
use crate::keys::{algorithms, brought_keys, confusions, critical, key_ids};
use crate::signatures::{encodings, own_signatures, signatures};

/// Attempts for one kind of key.
pub type Group = fn(Issuer) -> Result<Vec<Attempt>>;

/// All groups.
pub const GROUPS: &[Group] = &[
    right,
    schemes,
    algorithms,
    confusions,
    brought_keys,
    key_ids,
    critical,
    times,
    issuers,
    subjects,
    sessions,
    shapes,
    encodings,
    signatures,
    own_signatures,
];

/// The names of a group's attempts, each once.
pub fn names(group: Group) -> Vec<&'static str> {
    let mut names = Vec::new();
    for issuer in Issuer::ALL {
        let attempts = group(issuer).expect("fixtures can be read");
        for attempt in attempts {
            if !names.contains(&attempt.name) {
                names.push(attempt.name);
            }
        }
    }
    names
}

/// What has to be refused.
pub fn attack(name: &'static str, token: impl Into<String>) -> Attempt {
    with_credentials(name, vec![format!("Bearer {}", token.into())])
}

fn with_credentials(name: &'static str, credentials: Vec<String>) -> Attempt {
    Attempt {
        name,
        credentials,
        expected: 401,
    }
}

fn good(name: &'static str, token: impl Into<String>) -> Attempt {
    Attempt {
        expected: 200,
        ..attack(name, token)
    }
}

/// Seconds since 1970.
pub fn now() -> i64 {
    chrono::Utc::now().timestamp()
}

fn right(issuer: Issuer) -> Result<Vec<Attempt>> {
    let claiming = |changes| issuer.claiming(changes);
    let headed = |changes| issuer.sign(&issuer.header_with(changes), &claims().to_string());
    Ok(vec![
        good("right", issuer.good()?),
        good(
            "right: expired within the leeway",
            claiming(json!({"exp": now() - 20}))?,
        ),
        good(
            "right: valid soon, within the leeway",
            claiming(json!({"nbf": now() + 20}))?,
        ),
        good(
            "right: exp with a fraction",
            claiming(json!({"exp": now() as f64 + 60.5}))?,
        ),
        good(
            "right: exp beyond every calendar",
            claiming(json!({"exp": u64::MAX}))?,
        ),
        good(
            "right: one audience of several",
            claiming(json!({"aud": ["x", forge::AUDIENCE]}))?,
        ),
        good(
            "right: sub of 255 characters, 1020 bytes",
            claiming(json!({"sub": "😀".repeat(255)}))?,
        ),
        good(
            "right: sid of 255 characters",
            claiming(json!({"sid": "é".repeat(255)}))?,
        ),
        good(
            "right: neither sid nor jti",
            claiming(json!({"jti": null}))?,
        ),
        good(
            "right: a jku nobody looks at",
            headed(json!({"jku": "https://x.example/keys"}))?,
        ),
        good("right: another typ", headed(json!({"typ": "at+jwt"}))?),
    ])
}

fn schemes(issuer: Issuer) -> Result<Vec<Attempt>> {
    let token = issuer.good()?;
    let bearer = format!("Bearer {token}");
    Ok(vec![
        with_credentials("no header", vec![]),
        with_credentials("an empty header", vec![String::new()]),
        with_credentials("Bearer without a token", vec!["Bearer".to_owned()]),
        with_credentials("Bearer and a space", vec!["Bearer ".to_owned()]),
        with_credentials("the token alone", vec![token.clone()]),
        with_credentials("Basic", vec!["Basic c29tZWJvZHk6cGFzcw==".to_owned()]),
        with_credentials("another scheme", vec![format!("Token {token}")]),
        with_credentials(
            "two headers, both right",
            vec![bearer.clone(), bearer.clone()],
        ),
        with_credentials(
            "two headers, the second right",
            vec!["Bearer x".to_owned(), bearer.clone()],
        ),
        with_credentials(
            "two tokens in one header",
            vec![format!("{bearer}, {bearer}")],
        ),
        with_credentials("two tokens and a space", vec![format!("{bearer} {token}")]),
        with_credentials("in quotes", vec![format!("Bearer \"{token}\"")]),
        with_credentials("letters beyond ASCII", vec![format!("{bearer}é")]),
    ])
}

fn shapes(issuer: Issuer) -> Result<Vec<Attempt>> {
    let token = issuer.good()?;
    let [header, payload, signature] = parts(&token)?;
    let signed = |payload: &str| issuer.sign(&issuer.header(), payload);
    let stranger = URL_SAFE_NO_PAD.encode(changed(claims(), json!({"sub": "else"})).to_string());
    let header_text = issuer.header().to_string();
    let headed = |text: &str| issuer.sign_text(text, &claims().to_string());
    let twice = |name: &str| {
        let text = claims().to_string();
        signed(&text.replacen('{', &format!("{{{name},"), 1))
    };
    let huge = changed(claims(), json!({"filler": "x".repeat(18 * 1024)})).to_string();
    let beyond = "x".repeat(40 * 1024);
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(2_000), "]".repeat(2_000));
    Ok(vec![
        attack("no parts", "x"),
        attack("dots alone", ".."),
        attack("two parts", format!("{header}.{payload}")),
        attack("no signature", format!("{header}.{payload}.")),
        attack("no payload", format!("{header}..{signature}")),
        attack("no header", format!(".{payload}.{signature}")),
        attack("four parts", format!("{token}.{signature}")),
        attack(
            "five parts, as if encrypted",
            format!("{token}.{signature}.{signature}"),
        ),
        attack("a dot behind", format!("{token}.")),
        attack("a dot before", format!(".{token}")),
        attack(
            "other claims under the same signature",
            format!("{header}.{stranger}.{signature}"),
        ),
        attack("truncated by a character", &token[..token.len() - 1]),
        attack(
            "truncated in its payload",
            &token[..header.len() + payload.len() / 2],
        ),
        attack("a payload that is a list", signed("[]")?),
        attack("a payload that is a text", signed("\"somebody\"")?),
        attack("a payload that is null", signed("null")?),
        attack("a payload that is no JSON", signed("sub=somebody")?),
        attack("an empty payload", signed("")?),
        attack("a payload 2000 levels deep", signed(&deep)?),
        attack(
            "JSON with more behind",
            signed(&format!("{}{{}}", claims()))?,
        ),
        attack("sub given twice", twice("\"sub\":\"else\"")?),
        attack("exp given twice", twice("\"exp\":1")?),
        attack("a header that is no JSON", headed("alg=none")?),
        attack(
            "a header with alg twice",
            headed(&header_text.replacen('{', "{\"alg\":\"none\",", 1))?,
        ),
        attack(
            "claims in the header's place",
            format!("{payload}.{header}.{signature}"),
        ),
        attack("24 KiB of it, signed by another", foreign(issuer, &huge)?),
        Attempt {
            expected: 431,
            ..attack("40 KiB of it", beyond)
        },
    ])
}

/// Signed by somebody this node doesn't know.
fn foreign(issuer: Issuer, payload: &str) -> Result<String> {
    let message = message(&issuer.header().to_string(), payload);
    let secret = tokens::FOREIGN_SECRET.as_bytes();
    Ok(format!(
        "{message}.{}",
        tokens::hmac(&message, secret, Algorithm::HS256)
    ))
}
