//! Which keys tokens are checked with. The files are looked into at the start, since a wrong one would only show
//! as every client being turned away.

use std::path::{Path, PathBuf};

use rustls::pki_types::pem::{PemObject, SectionKind};
use secrecy::ExposeSecret;
use serde_json::Value;

use super::fault::quoted;
use super::settings::{TokenConfig, TokenKeys};
use super::source::read_bounded;
use super::values::Values;
use super::variable::{
    JWT_AUDIENCE, JWT_ISSUER, JWT_JWKS_FILE, JWT_PUBLIC_KEY_FILE, JWT_SECRET, Variable,
};

/// As many bytes as HS256's hash puts out, which RFC 7518 section 3.2 demands.
const MIN_SECRET_BYTES: usize = 32;

/// A public RSA key of 2048 bits takes 294 bytes in DER, one of 1024 bits 162. Verification refuses keys below 2048
/// bits (RFC 7518 section 3.3), and would do so for each token.
const MIN_RSA_DER_BYTES: usize = 256;

/// DER of the object identifiers that tell the kinds of public keys apart.
const OID_RSA: &[u8] = &[
    0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01,
];
const OID_P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const OID_ED25519: &[u8] = &[0x06, 0x03, 0x2b, 0x65, 0x70];

/// How tokens are checked. Which of the key variables a production process must set is for the caller to demand.
pub(super) fn token(values: &mut Values) -> TokenConfig {
    refuse_several(values);
    let keys = if let Some(path) = key_path(values, &JWT_PUBLIC_KEY_FILE, public_key_problem) {
        TokenKeys::PublicKeyFile(path)
    } else if let Some(path) = key_path(values, &JWT_JWKS_FILE, key_set_problem) {
        TokenKeys::JwksFile(path)
    } else {
        secret(values)
    };
    TokenConfig {
        keys,
        issuer: values.text(&JWT_ISSUER),
        audience: values.text(&JWT_AUDIENCE),
    }
}

/// Whether any key was set, even one with faults.
pub(super) fn any_set(values: &Values) -> bool {
    [JWT_SECRET, JWT_PUBLIC_KEY_FILE, JWT_JWKS_FILE]
        .iter()
        .any(|key| values.is_set(key))
}

fn refuse_several(values: &mut Values) {
    let keys = [JWT_SECRET, JWT_PUBLIC_KEY_FILE, JWT_JWKS_FILE];
    let set: Vec<Variable> = keys.into_iter().filter(|key| values.is_set(key)).collect();
    if let [first, others @ ..] = set.as_slice()
        && !others.is_empty()
    {
        let names: Vec<&str> = others.iter().map(|key| key.name).collect();
        let problem = format!("set together with {}", names.join(" and "));
        values.refuse(
            first,
            &problem,
            "set exactly one of the three kinds of keys",
        );
    }
}

fn secret(values: &mut Values) -> TokenKeys {
    let Some(secret) = values.secret(&JWT_SECRET) else {
        return TokenKeys::DevelopmentSecret;
    };
    let length = secret.expose_secret().len();
    if length < MIN_SECRET_BYTES {
        let problem = format!("has {length} bytes, fewer than {MIN_SECRET_BYTES}");
        values.refuse(&JWT_SECRET, &problem, "make one with: openssl rand -hex 32");
    }
    TokenKeys::Secret(secret)
}

type Problem = (String, &'static str);

fn key_path(
    values: &mut Values,
    variable: &Variable,
    problem_of: fn(&[u8]) -> Option<Problem>,
) -> Option<PathBuf> {
    let text = values.text(variable)?;
    let problem = match read_bounded(Path::new(&text)) {
        Ok(bytes) => problem_of(&bytes),
        Err(error) => Some((
            format!("can't be read ({error})"),
            "name a file this user may read",
        )),
    };
    if let Some((problem, remedy)) = problem {
        values.refuse(variable, &format!("{} {problem}", quoted(&text)), remedy);
    }
    Some(PathBuf::from(text))
}

fn public_key_problem(pem: &[u8]) -> Option<Problem> {
    const WANTED: &str =
        "give it one PEM section \"PUBLIC KEY\": openssl pkey -in private.pem -pubout";
    let sections: Result<Vec<(SectionKind, Vec<u8>)>, _> = PemObject::pem_slice_iter(pem).collect();
    let Ok(sections) = sections else {
        return Some(("is not valid PEM".to_owned(), WANTED));
    };
    match sections.as_slice() {
        [(SectionKind::PublicKey, der)] => unsupported_key(der),
        sections if sections.iter().any(|(kind, _)| is_private(*kind)) => Some((
            "holds a private key, which must not be here".to_owned(),
            WANTED,
        )),
        [] => Some(("holds no PEM section \"PUBLIC KEY\"".to_owned(), WANTED)),
        _ => Some((
            "holds something other than one public key".to_owned(),
            WANTED,
        )),
    }
}

fn is_private(kind: SectionKind) -> bool {
    matches!(
        kind,
        SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey
    )
}

fn unsupported_key(der: &[u8]) -> Option<Problem> {
    const WANTED: &str = "use RSA of at least 2048 bits, P-256 or Ed25519";
    // The algorithm comes first in the structure (RFC 5280 section 4.1), so the key's own bits can't be mistaken for it.
    let header = &der[..der.len().min(32)];
    let names = |oid: &[u8]| header.windows(oid.len()).any(|window| window == oid);
    if names(OID_RSA) && der.len() < MIN_RSA_DER_BYTES {
        return Some((
            "holds an RSA key of fewer than 2048 bits".to_owned(),
            WANTED,
        ));
    }
    let supported = names(OID_RSA) || names(OID_P256) || names(OID_ED25519);
    (!supported).then(|| ("holds a public key of another kind".to_owned(), WANTED))
}

fn key_set_problem(text: &[u8]) -> Option<Problem> {
    const WANTED: &str = "give it the form {\"keys\":[{\"kid\":…,\"kty\":…}]} of RFC 7517";
    let Ok(document) = serde_json::from_slice::<Value>(text) else {
        return Some(("is not valid JSON".to_owned(), WANTED));
    };
    let Some(keys) = document["keys"].as_array() else {
        return Some(("has no array \"keys\"".to_owned(), WANTED));
    };
    let usable = keys.iter().any(|key| {
        key["kid"].is_string() && matches!(key["kty"].as_str(), Some("RSA" | "EC" | "OKP"))
    });
    (!usable).then(|| {
        (
            "has no public key (RSA, EC, OKP) with a kid".to_owned(),
            WANTED,
        )
    })
}
