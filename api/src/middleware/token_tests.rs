//! A table of attacks on the token check, and the tokens it has to let in.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use secrecy::SecretString;
use serde_json::json;

use super::*;

const SECRET: &str = "a-secret-for-unit-tests-of-more-than-32-bytes";

/// A public key of 1024 bits, which is too short to be safe.
const RSA_1024: &str = "-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQCzSvg2tMd8v0fMWH1hY/u0D4UL
/hbxhEljyuOhYTGlNDA2/pv2hD64ln9WUhnL38ri+Ap3j3huxMJCpYzX+/ynbU2b
R3ARtU/3kkkqqjmi4Nvrxzh16YBBDtagkPXkH9mJkMAH0hM4vc0BcYUjPQCv/GPZ
5UT6oEkZdeKyO0CXnQIDAQAB
-----END PUBLIC KEY-----
";

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures/keys")
        .join(name)
}

fn open(keys: TokenKeys, issuer: Option<&str>, audience: Option<&str>) -> TokenVerifier {
    let config = TokenConfig {
        keys,
        issuer: issuer.map(str::to_owned),
        audience: audience.map(str::to_owned),
    };
    TokenVerifier::open(&config, Path::new("unused")).expect("usable keys")
}

fn by_secret() -> TokenVerifier {
    open(TokenKeys::Secret(SecretString::from(SECRET)), None, None)
}

fn now() -> i64 {
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970");
    i64::try_from(since_epoch.as_secs()).expect("before the year 292 billion")
}

fn good() -> Value {
    json!({"sub": "ann", "exp": now() + 600, "jti": "s-1"})
}

/// The good claims, with these set, or removed where they are null.
fn claims(changes: &Value) -> Value {
    let mut claims = good();
    set_claims(&mut claims, changes);
    claims
}

fn set_claims(claims: &mut Value, changes: &Value) {
    let (claims, changes) = (
        claims.as_object_mut().expect("claims"),
        changes.as_object().expect("changes"),
    );
    for (name, value) in changes {
        match value {
            Value::Null => drop(claims.remove(name)),
            value => drop(claims.insert(name.clone(), value.clone())),
        }
    }
}

fn signed(claims: &Value) -> String {
    signed_with(&Header::new(Algorithm::HS256), claims, SECRET)
}

fn signed_with(header: &Header, claims: &Value, secret: &str) -> String {
    encode(header, claims, &EncodingKey::from_secret(secret.as_bytes()))
        .expect("claims can be signed")
}

fn part(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

/// A token with any header at all, signed by our own secret.
fn signed_raw(header: &Value, payload: &str) -> String {
    let message = format!("{}.{payload}", part(header));
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let signature =
        jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).expect("signed");
    format!("{message}.{signature}")
}

fn private_key(name: &str) -> (Algorithm, EncodingKey) {
    let pem = std::fs::read(fixture(&format!("{name}-private.pem"))).expect("a fixture");
    let (algorithm, key) = match name {
        "rs256" => (Algorithm::RS256, EncodingKey::from_rsa_pem(&pem)),
        "es256" => (Algorithm::ES256, EncodingKey::from_ec_pem(&pem)),
        _ => (Algorithm::EdDSA, EncodingKey::from_ed_pem(&pem)),
    };
    (algorithm, key.expect("a private key"))
}

#[test]
fn a_good_token_says_who_it_is() {
    let token = signed(&claims(
        &json!({"email": "ann@example.org", "name": 7, "iat": 1_600_000_000}),
    ));
    let identity = by_secret().verify(&token).expect("valid");
    assert_eq!(
        (identity.user.as_str(), identity.session.as_str()),
        ("ann", "s-1")
    );
    assert_eq!(identity.claims.email.as_deref(), Some("ann@example.org"));
    assert_eq!(
        identity.claims.name, None,
        "a claim of another type counts as absent"
    );
    assert_eq!(
        identity.issued_at.map(Timestamp::as_micros),
        Some(1_600_000_000_000_000)
    );
    assert!(identity.expires_at.as_micros() > now() * 1_000_000);
}

#[test]
fn what_the_claims_must_not_say() {
    let table = [
        (json!({"exp": now() - 60}), TokenFault::Expired),
        (json!({"exp": 0}), TokenFault::Expired),
        (json!({"exp": null}), TokenFault::Expiry),
        (json!({"exp": "2099-01-01"}), TokenFault::Expiry),
        (json!({"exp": -1}), TokenFault::Expiry),
        (json!({"exp": true}), TokenFault::Expiry),
        (json!({"exp": [4_102_444_800_i64]}), TokenFault::Invalid),
        (json!({"nbf": now() + 60}), TokenFault::Immature),
        (json!({"nbf": "later"}), TokenFault::NotBefore),
        (json!({"sub": null}), TokenFault::Subject),
        (json!({"sub": 7}), TokenFault::Subject),
        (json!({"sub": ["ann"]}), TokenFault::Invalid),
        (json!({"sub": ""}), TokenFault::Subject),
        (json!({"sub": "x".repeat(256)}), TokenFault::Subject),
        (json!({"sub": "a\u{0}b"}), TokenFault::Subject),
        (json!({"sid": 7}), TokenFault::Session),
        (json!({"sid": ""}), TokenFault::Session),
        (json!({"sid": "x".repeat(256)}), TokenFault::Session),
        (json!({"jti": {"a": 1}}), TokenFault::Session),
    ];
    let verifier = by_secret();
    for (changes, fault) in table {
        assert_eq!(
            verifier.verify(&signed(&claims(&changes))),
            Err(fault),
            "{changes}"
        );
    }
}

#[test]
fn clocks_may_differ_by_the_leeway() {
    let verifier = by_secret();
    assert!(
        verifier
            .verify(&signed(&claims(&json!({"exp": now() - 20}))))
            .is_ok()
    );
    assert!(
        verifier
            .verify(&signed(&claims(&json!({"nbf": now() + 20}))))
            .is_ok()
    );
    assert_eq!(
        verifier.verify(&signed(&claims(&json!({"exp": now() - 40})))),
        Err(TokenFault::Expired)
    );
}

#[test]
fn an_end_beyond_all_bounds_is_kept_in_them() {
    for exp in [json!(u64::MAX), json!(1e15)] {
        let identity = by_secret()
            .verify(&signed(&claims(&json!({"exp": exp}))))
            .expect("valid");
        assert_eq!(
            identity.expires_at.to_string(),
            "9999-12-31T23:59:59Z",
            "{exp}"
        );
    }
}

#[test]
fn texts_that_are_no_tokens_are_refused() {
    let good = signed(&good());
    let parts: Vec<&str> = good.split('.').collect();
    let (header, payload, signature) = (parts[0], parts[1], parts[2]);
    let other = part(&claims(&json!({"sub": "bob"})));
    let table = [
        String::new(),
        ".".to_owned(),
        "..".to_owned(),
        "a.b.c".to_owned(),
        format!("{header}.{payload}"),
        format!("{header}.{payload}."),
        format!("{good}.{signature}"),
        format!("{good}="),
        format!("{header}.{other}.{signature}"),
        format!(
            "{header}.{payload}.{}",
            signature.chars().rev().collect::<String>()
        ),
        format!("{}.{payload}.", part(&json!({"alg": "none"}))),
        format!(
            "{}.{payload}.{signature}",
            part(&json!({"alg": "none", "typ": "JWT"}))
        ),
        format!("{}.{payload}.{signature}", part(&json!({"alg": "nOnE"}))),
        signed_with(
            &Header::new(Algorithm::HS256),
            &claims(&json!({})),
            "another-secret-of-more-than-thirty-two-bytes",
        ),
        signed_with(&Header::new(Algorithm::HS384), &claims(&json!({})), SECRET),
        signed_with(&Header::new(Algorithm::HS512), &claims(&json!({})), SECRET),
        signed_raw(&json!({"alg": "RS256"}), payload),
        signed_raw(&json!({"typ": "JWT"}), payload),
        signed_raw(&json!({"alg": "HS256", "crit": ["exp"]}), payload),
        signed_raw(&json!({"alg": "HS256", "crit": []}), payload),
        signed_raw(&json!({"alg": "HS256"}), &URL_SAFE_NO_PAD.encode("[]")),
        signed_raw(
            &json!({"alg": "HS256"}),
            &URL_SAFE_NO_PAD.encode("not json"),
        ),
        signed_raw(&json!({"alg": "HS256"}), ""),
        format!("{}\u{0}", good),
        good.replacen('.', " .", 1),
    ];
    let verifier = by_secret();
    for token in table {
        assert_eq!(verifier.verify(&token), Err(TokenFault::Invalid), "{token}");
    }
    assert!(verifier.verify(&good).is_ok());
}

#[test]
fn claims_given_twice_are_refused() {
    let payload = format!(r#"{{"sub":"ann","exp":{},"exp":1,"jti":"s"}}"#, now() + 600);
    let token = signed_raw(&json!({"alg": "HS256"}), &URL_SAFE_NO_PAD.encode(payload));
    assert!(by_secret().verify(&token).is_err());
}

#[test]
fn issuer_and_audience_are_demanded_when_they_are_set() {
    let verifier = open(
        TokenKeys::Secret(SecretString::from(SECRET)),
        Some("https://issuer"),
        Some("holdfast"),
    );
    let right = json!({"iss": "https://issuer", "aud": "holdfast"});
    assert!(verifier.verify(&signed(&claims(&right))).is_ok());
    let among_others = json!({"iss": "https://issuer", "aud": ["other", "holdfast"]});
    assert!(verifier.verify(&signed(&claims(&among_others))).is_ok());
    let table = [
        (json!({"aud": "holdfast"}), TokenFault::Issuer),
        (
            json!({"iss": "https://other", "aud": "holdfast"}),
            TokenFault::Issuer,
        ),
        (json!({"iss": 7, "aud": "holdfast"}), TokenFault::Issuer),
        (json!({"iss": "https://issuer"}), TokenFault::Audience),
        (
            json!({"iss": "https://issuer", "aud": "other"}),
            TokenFault::Audience,
        ),
        (
            json!({"iss": "https://issuer", "aud": []}),
            TokenFault::Audience,
        ),
        (
            json!({"iss": "https://issuer", "aud": 7}),
            TokenFault::Audience,
        ),
        (
            json!({"iss": "https://issuer", "aud": {"holdfast": true}}),
            TokenFault::Audience,
        ),
    ];
    for (changes, fault) in table {
        assert_eq!(
            verifier.verify(&signed(&claims(&changes))),
            Err(fault),
            "{changes}"
        );
    }
}

#[test]
fn issuer_and_audience_do_not_matter_when_they_are_not_set() {
    let token = signed(&claims(&json!({"iss": 7, "aud": ["anyone"]})));
    assert!(by_secret().verify(&token).is_ok());
}

#[test]
fn the_session_is_sid_else_jti_else_a_hash() {
    let session = |changes: &Value| {
        let identity = by_secret()
            .verify(&signed(&claims(changes)))
            .expect("valid");
        identity.session.as_str().to_owned()
    };
    assert_eq!(session(&json!({"sid": "a", "jti": "b"})), "a");
    assert_eq!(session(&json!({"jti": "b"})), "b");
    let hash = session(&json!({"jti": null}));
    assert_eq!(hash.len(), 64);
    assert_ne!(session(&json!({"jti": null, "sub": "bob"})), hash);
}

#[test]
fn a_second_signature_of_the_same_claims_is_the_same_session() {
    let claims = claims(&json!({"jti": null}));
    let (algorithm, key) = private_key("es256");
    let header = Header::new(algorithm);
    let one = encode(&header, &claims, &key).expect("signed");
    let two = encode(&header, &claims, &key).expect("signed");
    assert_ne!(one, two, "ECDSA signatures are random");
    let verifier = open(
        TokenKeys::PublicKeyFile(fixture("es256-public.pem")),
        None,
        None,
    );
    let session = |token: &str| verifier.verify(token).expect("valid").session;
    assert_eq!(session(&one), session(&two));
}

#[test]
fn a_public_key_fixes_the_algorithm() {
    for name in ["rs256", "es256", "eddsa"] {
        let public = fixture(&format!("{name}-public.pem"));
        let verifier = open(TokenKeys::PublicKeyFile(public.clone()), None, None);
        for other in ["rs256", "es256", "eddsa"] {
            let (algorithm, key) = private_key(other);
            let token = encode(&Header::new(algorithm), &good(), &key).expect("signed");
            assert_eq!(
                verifier.verify(&token).is_ok(),
                name == other,
                "{other} for {name}"
            );
        }
        // The classic: the public key, which everybody has, taken for an HMAC secret.
        let pem = std::fs::read_to_string(public).expect("a fixture");
        for secret in [pem.as_str(), pem.trim()] {
            let token = signed_with(&Header::new(Algorithm::HS256), &good(), secret);
            assert_eq!(verifier.verify(&token), Err(TokenFault::Invalid), "{name}");
        }
        assert_eq!(
            verifier.verify(&signed(&good())),
            Err(TokenFault::Invalid),
            "{name}"
        );
    }
}

#[test]
fn other_algorithms_of_the_same_family_are_refused() {
    let verifier = open(
        TokenKeys::PublicKeyFile(fixture("rs256-public.pem")),
        None,
        None,
    );
    let (_, key) = private_key("rs256");
    for algorithm in [Algorithm::RS384, Algorithm::RS512, Algorithm::PS256] {
        let token = encode(&Header::new(algorithm), &good(), &key).expect("signed");
        assert_eq!(
            verifier.verify(&token),
            Err(TokenFault::Invalid),
            "{algorithm:?}"
        );
    }
}

#[test]
fn a_key_that_the_token_brings_along_is_not_used() {
    let (algorithm, key) = private_key("eddsa");
    let set: Value =
        serde_json::from_slice(&std::fs::read(fixture("jwks.json")).expect("a fixture"))
            .expect("JSON");
    let own_keys = set["keys"].as_array().expect("keys");
    let verifier = open(
        TokenKeys::PublicKeyFile(fixture("es256-public.pem")),
        None,
        None,
    );
    for own in own_keys {
        let mut header = Header::new(algorithm);
        header.jwk = serde_json::from_value(own.clone()).ok();
        header.jku = Some("https://attacker.example/keys".to_owned());
        let token = encode(&header, &good(), &key).expect("signed");
        assert_eq!(verifier.verify(&token), Err(TokenFault::Invalid));
    }
}

#[test]
fn a_key_set_is_searched_by_kid_alone() {
    let verifier = open(TokenKeys::JwksFile(fixture("jwks.json")), None, None);
    let set: Value =
        serde_json::from_slice(&std::fs::read(fixture("jwks.json")).expect("a fixture"))
            .expect("JSON");
    let kids: Vec<(String, String)> = set["keys"]
        .as_array()
        .expect("keys")
        .iter()
        .map(|key| {
            (
                key["kid"].as_str().expect("a kid").to_owned(),
                key["kty"].as_str().expect("a kty").to_owned(),
            )
        })
        .collect();
    for (kid, kty) in &kids {
        for (name, own_kty) in [("rs256", "RSA"), ("es256", "EC"), ("eddsa", "OKP")] {
            let (algorithm, key) = private_key(name);
            let mut header = Header::new(algorithm);
            header.kid = Some(kid.clone());
            let token = encode(&header, &good(), &key).expect("signed");
            assert_eq!(
                verifier.verify(&token).is_ok(),
                kty == own_kty,
                "{name} under {kid}"
            );
        }
    }
    let (algorithm, key) = private_key("eddsa");
    let without = encode(&Header::new(algorithm), &good(), &key).expect("signed");
    assert_eq!(verifier.verify(&without), Err(TokenFault::UnknownKey));
    let mut header = Header::new(algorithm);
    header.kid = Some("../../etc/passwd".to_owned());
    let unknown = encode(&header, &good(), &key).expect("signed");
    assert_eq!(verifier.verify(&unknown), Err(TokenFault::UnknownKey));
}

#[test]
fn keys_that_are_no_good_are_refused_at_the_start() {
    let open = |keys| {
        let config = TokenConfig {
            keys,
            issuer: None,
            audience: None,
        };
        TokenVerifier::open(&config, Path::new("unused"))
    };
    assert!(matches!(
        open(TokenKeys::Secret(SecretString::from("short"))),
        Err(VerifierError::Secret(KeyError::ShortSecret))
    ));
    for name in [
        "rs256-private.pem",
        "es256-private.pem",
        "eddsa-private.pem",
        "jwks.json",
    ] {
        let opened = open(TokenKeys::PublicKeyFile(fixture(name)));
        assert!(matches!(opened, Err(VerifierError::PublicKey(_))), "{name}");
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let small = directory.path().join("rsa-1024.pem");
    std::fs::write(&small, RSA_1024).expect("written");
    assert!(matches!(
        open(TokenKeys::PublicKeyFile(small)),
        Err(VerifierError::PublicKey(KeyError::ShortRsa))
    ));
    assert!(matches!(
        open(TokenKeys::PublicKeyFile(fixture("none.pem"))),
        Err(VerifierError::Io(_))
    ));
    assert!(matches!(
        open(TokenKeys::JwksFile(fixture("README.md"))),
        Err(VerifierError::KeySet(_))
    ));
}

#[test]
fn the_development_secret_is_made_beside_the_buffer() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let buffer = directory.path().join("buffer.redb");
    let config = TokenConfig {
        keys: TokenKeys::DevelopmentSecret,
        issuer: None,
        audience: None,
    };
    let verifier = TokenVerifier::open(&config, &buffer).expect("made");
    let secret = development_secret(&buffer).expect("readable");
    let token = signed_with(
        &Header::new(Algorithm::HS256),
        &good(),
        secret.expose_secret(),
    );
    assert!(verifier.verify(&token).is_ok());
}
