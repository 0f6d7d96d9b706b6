//! Who sends a request: the bearer of a valid token whose session hasn't been revoked. Everything under the base path
//! passes here before anything else of it is read.

use holdfast_shared::domain::{Claims, Session, SessionId, Timestamp, UserId};
use holdfast_shared::repository::{Admission, Awaited, Repository};
use http::header::{AUTHORIZATION, USER_AGENT, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue};

use super::token::{Identity, TokenVerifier};
use crate::transport::problem::{Kind, Problem};

/// Most characters of a client's `User-Agent` that are kept with its session.
const MAX_USER_AGENT: usize = 200;

/// Who sends a request.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The user.
    pub user: UserId,
    /// The session of the token.
    pub session: SessionId,
    /// When the token ends.
    pub expires_at: Timestamp,
    /// What the token says of the user.
    pub claims: Claims,
}

/// Lets a request in.
///
/// # Errors
/// 401 without a valid token of a session that isn't revoked; 503 when that can't be known and the policy is strict.
pub async fn authenticate(
    verifier: &TokenVerifier,
    repository: &Repository,
    headers: &HeaderMap,
) -> Result<Caller, Problem> {
    let token = bearer_token(headers)?;
    let identity = verifier
        .verify(token)
        .map_err(|fault| invalid_token(&fault.to_string()))?;
    let session = session_of(&identity, repository.now(), headers);
    match repository.admit(&session).await {
        Admission::Admitted => Ok(Caller {
            user: identity.user,
            session: identity.session,
            expires_at: identity.expires_at,
            claims: identity.claims,
        }),
        Admission::Revoked => Err(revoked()),
        Admission::Unknown => {
            let detail = "whether the session was revoked is not known now; try again later";
            Err(Problem::new(Kind::Unavailable, detail).awaiting(Awaited::Redis))
        }
    }
}

/// Looks again whether the session of somebody who was let in is still in force, after a wait.
///
/// # Errors
/// 401 when it was revoked meanwhile.
pub fn expect_in_force(repository: &Repository, caller: &Caller) -> Result<(), Problem> {
    if repository.is_revoked(&caller.session) {
        return Err(revoked());
    }
    Ok(())
}

fn revoked() -> Problem {
    invalid_token("the session was revoked")
}

/// The token of `Authorization: Bearer …` (RFC 6750 §2.1).
fn bearer_token(headers: &HeaderMap) -> Result<&str, Problem> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (first, second) = (values.next(), values.next());
    let text = match (first, second) {
        (None, _) => return Err(missing_token()),
        (Some(_), Some(_)) => {
            return Err(invalid_token("there is more than one Authorization header"));
        }
        (Some(value), None) => value
            .to_str()
            .map_err(|_| invalid_token("the token is malformed"))?,
    };
    match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(token.trim()),
        _ => Err(missing_token()),
    }
}

/// A request that didn't try gets no error code (RFC 6750 §3.1).
fn missing_token() -> Problem {
    let detail = "a token is needed, as Authorization: Bearer TOKEN";
    let challenge = HeaderValue::from_static("Bearer realm=\"holdfast\"");
    Problem::new(Kind::Unauthorized, detail).with_header(WWW_AUTHENTICATE, challenge)
}

/// `description` is one of our own texts: plain ASCII without quotes.
fn invalid_token(description: &str) -> Problem {
    let challenge = format!(
        "Bearer realm=\"holdfast\", error=\"invalid_token\", error_description=\"{description}\""
    );
    let challenge = HeaderValue::try_from(challenge).expect("descriptions are ASCII");
    Problem::new(Kind::Unauthorized, description).with_header(WWW_AUTHENTICATE, challenge)
}

fn session_of(identity: &Identity, now: Timestamp, headers: &HeaderMap) -> Session {
    Session {
        id: identity.session.clone(),
        user_id: identity.user.clone(),
        created_at: identity.issued_at.map_or(now, |issued| issued.min(now)),
        last_seen_at: now,
        expires_at: identity.expires_at,
        user_agent: headers.get(USER_AGENT).map(user_agent),
    }
}

fn user_agent(value: &HeaderValue) -> String {
    let text = String::from_utf8_lossy(value.as_bytes());
    text.chars()
        .filter(|character| !character.is_control())
        .take(MAX_USER_AGENT)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authorization(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(
                AUTHORIZATION,
                HeaderValue::from_str(value).expect("a valid value"),
            );
        }
        headers
    }

    #[test]
    fn the_scheme_is_bearer_in_any_case() {
        for value in ["Bearer a.b.c", "bearer a.b.c", "BEARER  a.b.c "] {
            assert_eq!(
                bearer_token(&authorization(&[value])),
                Ok("a.b.c"),
                "{value}"
            );
        }
    }

    #[test]
    fn anything_else_is_401_with_a_challenge() {
        for values in [
            &[][..],
            &["Basic YTpi"],
            &["Bearer"],
            &[""],
            &["Bearer a", "Bearer b"],
        ] {
            let problem = bearer_token(&authorization(values)).expect_err("refused");
            let response = problem.into_response("r-1");
            assert_eq!(response.status().as_u16(), 401, "{values:?}");
            assert!(
                response.headers().contains_key(WWW_AUTHENTICATE),
                "{values:?}"
            );
        }
    }

    #[test]
    fn a_user_agent_is_cut_and_cleaned() {
        let long = HeaderValue::from_bytes(&[b'x'; 500]).expect("a valid value");
        assert_eq!(user_agent(&long).len(), MAX_USER_AGENT);
        let odd = HeaderValue::from_bytes(b"a\tb\xff").expect("a valid value");
        assert_eq!(user_agent(&odd), "ab\u{fffd}");
    }
}
