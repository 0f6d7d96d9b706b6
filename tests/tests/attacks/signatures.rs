//! Attacks by how a token is encoded and signed.

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use holdfast_tests::tokens::KeyPair;
use jsonwebtoken::Algorithm;
use serde_json::json;

use crate::forge::{
    Attempt, Issuer, claims, message, oversized_eddsa_signature, oversized_rsa_signature, parts,
    with_signature,
};
use crate::table::attack;

/// The same bytes, encoded as base64url without padding doesn't.
pub fn encodings(issuer: Issuer) -> Result<Vec<Attempt>> {
    let token = issuer.good()?;
    let [header, payload, signature] = parts(&token)?;
    let padded =
        |part: &str| -> Result<String> { Ok(URL_SAFE.encode(URL_SAFE_NO_PAD.decode(part)?)) };
    let mut attempts = vec![
        attack("padding behind", format!("{token}=")),
        attack(
            "padding in each part",
            format!(
                "{}.{}.{}=",
                padded(header)?,
                padded(payload)?,
                padded(signature)?
            ),
        ),
        attack("a space in it", token.replacen('.', ". ", 1)),
        attack("a tab in it", token.replacen('.', ".\t", 1)),
        attack("percent-encoded", token.replace('.', "%2E")),
        attack("letters of standard base64", format!("{token}+/")),
    ];
    if let Some(loose) = with_loose_bits(signature) {
        attempts.push(attack(
            "bits left over in the signature",
            format!("{header}.{payload}.{loose}"),
        ));
    }
    Ok(attempts)
}

/// The same bytes by a last character whose unused bits are set: another text
/// for one signature.
fn with_loose_bits(signature: &str) -> Option<String> {
    const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    if signature.len().is_multiple_of(4) {
        return None;
    }
    let (start, last) = signature.split_at(signature.len() - 1);
    let place = LETTERS.find(last)?;
    Some(format!("{start}{}", &LETTERS[place + 1..place + 2]))
}

pub fn signatures(issuer: Issuer) -> Result<Vec<Attempt>> {
    let token = issuer.good()?;
    let flip = |place: usize| {
        with_signature(&token, |mut bytes| {
            let place = place.min(bytes.len() - 1);
            bytes[place] ^= 1;
            bytes
        })
    };
    Ok(vec![
        attack("the first bit flipped", flip(0)?),
        attack("a middle bit flipped", flip(31)?),
        attack("the last bit flipped", flip(usize::MAX)?),
        attack(
            "all zero",
            with_signature(&token, |bytes| vec![0; bytes.len()])?,
        ),
        attack(
            "all ones",
            with_signature(&token, |bytes| vec![0xff; bytes.len()])?,
        ),
        attack(
            "reversed",
            with_signature(&token, |bytes| bytes.into_iter().rev().collect())?,
        ),
        attack(
            "a zero byte before",
            with_signature(&token, |bytes| [vec![0], bytes].concat())?,
        ),
        attack(
            "a zero byte behind",
            with_signature(&token, |bytes| [bytes, vec![0]].concat())?,
        ),
        attack(
            "its first half",
            with_signature(&token, |bytes| bytes[..bytes.len() / 2].to_vec())?,
        ),
        attack(
            "a megabyte's thousandth",
            with_signature(&token, |_| vec![7; 1000])?,
        ),
        attack("of another token", {
            let other = issuer.claiming(json!({"sub": "else"}))?;
            let [header, payload, _] = parts(&token)?;
            let [_, _, signature] = parts(&other)?;
            format!("{header}.{payload}.{signature}")
        }),
    ])
}

/// What is special to one algorithm.
pub fn own_signatures(issuer: Issuer) -> Result<Vec<Attempt>> {
    let token = issuer.good()?;
    let by = |algorithm: Algorithm| -> Result<String> {
        let header = issuer.header_with(json!({"alg": format!("{algorithm:?}")}));
        let message = message(&header.to_string(), &claims().to_string());
        let pair = issuer.pair().context("a pair")?;
        Ok(format!(
            "{message}.{}",
            pair.signature(&message, algorithm)?
        ))
    };
    Ok(match issuer.pair() {
        None => vec![],
        Some(KeyPair::Rs256) => vec![
            attack("RS384 with the key of RS256", by(Algorithm::RS384)?),
            attack("RS512 with the key of RS256", by(Algorithm::RS512)?),
            attack("PS256 with the key of RS256", by(Algorithm::PS256)?),
            attack("plus the modulus", oversized_rsa_signature(&token)?),
        ],
        Some(KeyPair::Es256) => vec![
            attack("r and s zero", with_signature(&token, |_| vec![0; 64])?),
            attack(
                "s zero",
                with_signature(&token, |bytes| [&bytes[..32], &[0; 32]].concat())?,
            ),
            attack("as DER", with_signature(&token, |bytes| der(&bytes))?),
        ],
        Some(KeyPair::EdDsa) => vec![
            attack("s beyond the order", oversized_eddsa_signature(&token)?),
            attack(
                "R of small order, s zero",
                with_signature(&token, |_| {
                    let mut signature = vec![0; 64];
                    signature[0] = 1;
                    signature
                })?,
            ),
        ],
    })
}

/// An ECDSA signature as other protocols have it.
fn der(bytes: &[u8]) -> Vec<u8> {
    let integer = |number: &[u8]| {
        let sign: &[u8] = if number[0] >= 0x80 { &[0] } else { &[] };
        let value = [sign, number].concat();
        [&[2, value.len() as u8], value.as_slice()].concat()
    };
    let (r, s) = bytes.split_at(32);
    let body = [integer(r), integer(s)].concat();
    [&[0x30, body.len() as u8], body.as_slice()].concat()
}
