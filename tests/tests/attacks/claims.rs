//! Attacks by what a token says of its time, its issuer and its bearer.

use anyhow::Result;
use serde_json::json;

use crate::forge::{self, Attempt, Issuer, claims};
use crate::table::{attack, now};

pub fn times(issuer: Issuer) -> Result<Vec<Attempt>> {
    let claiming = |changes| issuer.claiming(changes);
    let infinite = claims()
        .to_string()
        .replacen("\"exp\":", "\"exp\":1e999,\"old\":", 1);
    Ok(vec![
        attack("expired", claiming(json!({"exp": now() - 60}))?),
        attack(
            "expired just beyond the leeway",
            claiming(json!({"exp": now() - 32}))?,
        ),
        attack(
            "expired, with a fraction",
            claiming(json!({"exp": now() as f64 - 60.5}))?,
        ),
        attack("exp missing", claiming(json!({"exp": null}))?),
        attack("exp zero", claiming(json!({"exp": 0}))?),
        attack(
            "exp negative",
            claiming(json!({"exp": -4_102_444_800_i64}))?,
        ),
        attack("exp a text", claiming(json!({"exp": "4102444800"}))?),
        attack(
            "exp a date",
            claiming(json!({"exp": "2099-01-01T00:00:00Z"}))?,
        ),
        attack("exp true", claiming(json!({"exp": true}))?),
        attack("exp a list", claiming(json!({"exp": [4_102_444_800_i64]}))?),
        attack("exp an object", claiming(json!({"exp": {"$gt": 0}}))?),
        attack(
            "exp beyond all numbers",
            issuer.sign(&issuer.header(), &infinite)?,
        ),
        attack("not valid yet", claiming(json!({"nbf": now() + 60}))?),
        attack(
            "nbf beyond every calendar",
            claiming(json!({"nbf": u64::MAX}))?,
        ),
        attack("nbf a text", claiming(json!({"nbf": "0"}))?),
        attack("nbf a list", claiming(json!({"nbf": [0]}))?),
    ])
}

pub fn issuers(issuer: Issuer) -> Result<Vec<Attempt>> {
    let claiming = |changes| issuer.claiming(changes);
    Ok(vec![
        attack("iss missing", claiming(json!({"iss": null}))?),
        attack(
            "iss of another",
            claiming(json!({"iss": "https://other.example"}))?,
        ),
        attack(
            "iss longer by a slash",
            claiming(json!({"iss": format!("{}/", forge::ISSUER)}))?,
        ),
        attack(
            "iss a list without it",
            claiming(json!({"iss": ["https://other.example"]}))?,
        ),
        attack("iss a number", claiming(json!({"iss": 7}))?),
        attack("aud missing", claiming(json!({"aud": null}))?),
        attack("aud of another", claiming(json!({"aud": "other"}))?),
        attack(
            "aud a list without it",
            claiming(json!({"aud": ["other", "hold fast"]}))?,
        ),
        attack("aud an empty list", claiming(json!({"aud": []}))?),
        attack(
            "aud a list in a list",
            claiming(json!({"aud": [[forge::AUDIENCE]]}))?,
        ),
        attack(
            "aud an object",
            claiming(json!({"aud": {"holdfast": true}}))?,
        ),
        attack(
            "aud with more behind",
            claiming(json!({"aud": "holdfast.attacker.example"}))?,
        ),
    ])
}

pub fn subjects(issuer: Issuer) -> Result<Vec<Attempt>> {
    let claiming = |changes| issuer.claiming(changes);
    Ok(vec![
        attack("sub missing", claiming(json!({"sub": null}))?),
        attack("sub empty", claiming(json!({"sub": ""}))?),
        attack(
            "sub of 256 characters",
            claiming(json!({"sub": "x".repeat(256)}))?,
        ),
        attack(
            "sub of 256 wide characters",
            claiming(json!({"sub": "😀".repeat(256)}))?,
        ),
        attack("sub with a null", claiming(json!({"sub": "some\0body"}))?),
        attack(
            "sub with a line's end",
            claiming(json!({"sub": "a\r\nX-Injected: yes"}))?,
        ),
        attack(
            "sub with an escape",
            claiming(json!({"sub": "a\u{1b}[2J"}))?,
        ),
        attack(
            "sub with a control character of C1",
            claiming(json!({"sub": "a\u{85}b"}))?,
        ),
        attack("sub a number", claiming(json!({"sub": 7}))?),
        attack("sub a list", claiming(json!({"sub": ["somebody"]}))?),
        attack("sub an object", claiming(json!({"sub": {"$ne": null}}))?),
        attack("sub true", claiming(json!({"sub": true}))?),
    ])
}

pub fn sessions(issuer: Issuer) -> Result<Vec<Attempt>> {
    let claiming = |changes| issuer.claiming(changes);
    Ok(vec![
        attack("sid empty", claiming(json!({"sid": ""}))?),
        attack(
            "sid of 256 characters",
            claiming(json!({"sid": "x".repeat(256)}))?,
        ),
        attack("sid with a null", claiming(json!({"sid": "a\0"}))?),
        attack(
            "sid with a line's end",
            claiming(json!({"sid": "a\r\nX-Injected: yes"}))?,
        ),
        attack("sid a number", claiming(json!({"sid": 7}))?),
        attack("sid a list", claiming(json!({"sid": ["a"]}))?),
        attack("sid false", claiming(json!({"sid": false}))?),
        attack("jti empty", claiming(json!({"jti": ""}))?),
        attack("jti with a line's end", claiming(json!({"jti": "a\nb"}))?),
        attack("jti an object", claiming(json!({"jti": {"a": 1}}))?),
    ])
}
