//! Does any attack on tokens get in? A table of them against the real program,
//! for each kind of key, over HTTP.

mod claims;
mod forge;
mod keys;
mod signatures;
mod table;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use holdfast_tests::tokens::{self, KeyPair};
use holdfast_tests::{Answer, Node, Program, eventually, raw_http};
use serde_json::{Value, json};

use crate::forge::{Attempt, Issuer};

const PATIENCE: Duration = Duration::from_secs(20);

/// An API that checks tokens by one kind of key.
struct Site {
    issuer: Issuer,
    address: String,
    api: Program,
    node: Node,
}

impl Site {
    async fn start(issuer: Issuer) -> Result<Self> {
        let mut node = Node::new()?
            .with("JWT_ISSUER", forge::ISSUER)
            .with("JWT_AUDIENCE", forge::AUDIENCE);
        issuer.configure(&mut node);
        let api = node.start_api().await?;
        Ok(Site {
            issuer,
            address: node.api_address(),
            api,
            node,
        })
    }

    /// What a read is answered that carries these `Authorization` headers.
    async fn answer(&self, credentials: &[String]) -> Result<Answer> {
        self.ask("GET", "/api/v1/sessions", credentials).await
    }

    async fn ask(&self, method: &str, path: &str, credentials: &[String]) -> Result<Answer> {
        let lines = credentials
            .iter()
            .map(|value| format!("Authorization: {value}\r\n"));
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{}\r\n",
            lines.collect::<String>()
        );
        raw_http::exchange(&self.address, request.as_bytes(), PATIENCE).await
    }
}

/// What refused it, in the words that the client was told.
fn words(answer: &Answer) -> String {
    let detail = answer.json()["detail"].as_str().unwrap_or_default();
    let challenge = answer.header("www-authenticate").unwrap_or_default();
    let code = if challenge.contains("invalid_token") {
        "invalid_token"
    } else {
        "-"
    };
    format!("{code}: {detail}")
}

fn judge(issuer: Issuer, attempt: &Attempt, answer: &Answer) -> Result<()> {
    let what = format!("{} ({})", attempt.name, issuer.name());
    ensure!(
        answer.status() == attempt.expected,
        "{what}: {} instead of {}: {}",
        answer.status(),
        attempt.expected,
        answer.text()
    );
    if attempt.expected == 401 {
        answer.expect_problem(401);
        let challenge = answer.expect_header("www-authenticate");
        ensure!(
            challenge.starts_with("Bearer realm="),
            "{what}: {challenge}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn no_attack_gets_in_and_what_is_right_does() -> Result<()> {
    let mut sites = Vec::new();
    for issuer in Issuer::ALL {
        sites.push(Site::start(issuer).await?);
    }
    println!("{:<52} {:<26} error", "attack", Issuer::heading());
    let mut count = 0;
    for group in table::GROUPS {
        for name in table::names(*group) {
            let (mut statuses, mut error) = (String::new(), String::new());
            for site in &sites {
                let attempts = group(site.issuer)?;
                let Some(attempt) = attempts.iter().find(|attempt| attempt.name == name) else {
                    statuses.push_str("-     ");
                    continue;
                };
                let answer = site.answer(&attempt.credentials).await?;
                judge(site.issuer, attempt, &answer)?;
                statuses.push_str(&format!("{:<6}", answer.status()));
                if error.is_empty() && !answer.is_success() {
                    error = words(&answer);
                }
                count += 1;
            }
            println!("{name:<52} {statuses:<30} {error}");
        }
    }
    ensure!(count > 300, "only {count} attempts");
    Ok(())
}

/// A second valid signature of the same claims is not a second session: else
/// whoever was logged out could make himself one that wasn't.
#[tokio::test]
async fn a_signature_made_anew_by_anybody_is_the_same_session() -> Result<()> {
    let site = Site::start(Issuer::Pair(KeyPair::Es256)).await?;
    let mut claims = forge::claims();
    claims.as_object_mut().context("claims")?.remove("jti");
    let token = site
        .issuer
        .sign(&site.issuer.header(), &claims.to_string())?;
    let twin = forge::other_ecdsa_signature(&token)?;
    ensure!(twin != token, "the signature is the same");
    let bearer = |token: &str| vec![format!("Bearer {token}")];
    for token in [&token, &twin] {
        site.answer(&bearer(token)).await?.expect(200);
    }
    let gone = site
        .ask("DELETE", "/api/v1/sessions/current", &bearer(&token))
        .await?;
    gone.expect(204);
    for token in [&token, &twin] {
        site.answer(&bearer(token)).await?.expect_problem(401);
    }
    Ok(())
}

/// What a token says of its bearer is text, wherever it is shown.
#[tokio::test]
async fn nothing_of_a_token_breaks_out_of_where_it_is_shown() -> Result<()> {
    let tricky = "a\", X-Injected: yes\\ %0d%0aX-Injected: yes {\"level\":\"ERROR\"} \u{2028}X-Injected \u{202e}<b>";
    for format in ["text", "json"] {
        let mut site = Site::start(Issuer::Hs256).await?;
        site.node.set("LOG_FORMAT", format);
        site.node.set("LOG_LEVEL", "debug");
        drop(site.api);
        site.api = site.node.start_api().await?;
        let claims = forge::changed(forge::claims(), json!({"sub": tricky, "sid": tricky}));
        let token = site
            .issuer
            .sign(&site.issuer.header(), &claims.to_string())?;
        let bearer = [format!("Bearer {token}")];
        let refused = site.ask("POST", "/api/v1/tasks", &bearer).await?;
        let sessions = eventually(PATIENCE, "the session to be listed", async || {
            match site.answer(&bearer).await {
                Ok(answer) if answer.json()["items"][0]["id"] == tricky => Ok(answer),
                Ok(answer) => Err(answer.text().to_owned()),
                Err(error) => Err(format!("{error:#}")),
            }
        })
        .await?;
        let current = "/api/v1/sessions/current";
        let gone = site.ask("DELETE", current, &bearer).await?;
        for answer in [
            refused.expect_problem(415),
            sessions.expect(200),
            gone.expect(204),
        ] {
            assert_eq!(answer.header("x-injected"), None);
        }
        let log = eventually(PATIENCE, "the user in the log", async || {
            let log = site.api.log();
            if log.contains("X-Injected") {
                Ok(log)
            } else {
                Err(log)
            }
        })
        .await?;
        let names_it = log.lines().filter(|line| line.contains("X-Injected"));
        for line in names_it {
            let is_whole = match format {
                "json" => serde_json::from_str::<Value>(line)?["user_id"] == tricky,
                _ => line.starts_with("20") && line.contains("user_id="),
            };
            assert!(is_whole, "{format}: {line}");
        }
    }
    Ok(())
}

/// A file of keys as an operator would change it: written beside and moved.
fn put_keys(node: &Node, text: &str) -> Result<()> {
    let path = node.directory().join("keys.json");
    let next = node.directory().join("next.json");
    std::fs::write(&next, text).context("cannot write the keys")?;
    std::fs::rename(&next, &path).context("cannot move the keys")
}

fn keys_named(names: &[&str]) -> Result<String> {
    let text = std::fs::read_to_string(tokens::fixture("keys/jwks.json"))?;
    let all: Value = serde_json::from_str(&text)?;
    let keys = all["keys"].as_array().context("keys")?;
    let chosen: Vec<&Value> = keys
        .iter()
        .filter(|key| names.iter().any(|name| key["kid"] == *name))
        .collect();
    Ok(json!({"keys": chosen}).to_string())
}

#[tokio::test]
async fn keys_rotate_with_their_file_and_a_broken_one_changes_nothing() -> Result<()> {
    let mut node = Node::new()?;
    put_keys(&node, &keys_named(&["es256"])?)?;
    let path = node.directory().join("keys.json").display().to_string();
    node.unset("JWT_SECRET");
    node.set("JWT_JWKS_FILE", &path);
    let api = node.start_api().await?;
    let pairs = [
        ("rs256", KeyPair::Rs256),
        ("es256", KeyPair::Es256),
        ("eddsa", KeyPair::EdDsa),
    ];
    let takes = async |names: &[&str]| -> Result<()> {
        let what = format!("the keys {names:?}");
        eventually(PATIENCE, &what, async || {
            for (name, pair) in pairs {
                let token = pair
                    .sign(&tokens::claims("somebody"), Some(name))
                    .map_err(|error| error.to_string())?;
                let answer = api.client(&token).get("/tasks").await;
                let status = answer.map_err(|error| error.to_string())?.status();
                let expected = if names.contains(&name) { 200 } else { 401 };
                if status != expected {
                    return Err(format!("{name}: {status}"));
                }
            }
            Ok(())
        })
        .await
    };
    takes(&["es256"]).await?;
    // Both for a while, then only the new one: how keys are rotated.
    put_keys(&node, &keys_named(&["es256", "eddsa"])?)?;
    takes(&["es256", "eddsa"]).await?;
    put_keys(&node, &keys_named(&["eddsa"])?)?;
    takes(&["eddsa"]).await?;
    let secret = URL_SAFE_NO_PAD.encode(tokens::SECRET);
    let symmetric = json!({"keys": [{"kty": "oct", "kid": "eddsa", "k": secret}]});
    for (number, broken) in ["", "{\"keys\":", "{\"keys\":[]}", &symmetric.to_string()]
        .into_iter()
        .enumerate()
    {
        put_keys(&node, broken)?;
        let said = "keeping the token keys as they were";
        eventually(PATIENCE, "a word about the broken file", async || {
            let times = api.log().matches(said).count();
            if times > number { Ok(()) } else { Err(times) }
        })
        .await?;
        takes(&["eddsa"]).await?;
    }
    std::fs::remove_file(&path).context("cannot remove the keys")?;
    takes(&["eddsa"]).await?;
    put_keys(&node, &keys_named(&["rs256"])?)?;
    takes(&["rs256"]).await
}
