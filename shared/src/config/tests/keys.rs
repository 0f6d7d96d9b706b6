//! Faults of the keys that tokens are checked with.

use std::path::Path;

use super::{SECRET, TokenKeys, file, load, only_fault};

/// Made with `openssl genpkey` for these tests; their private halves were thrown away.
const P256_PEM: &str = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEYSWtF+CnclgcEucspP2gFeA63H1A\n\
    jmebcNJFQiVlEz2/8KV70kMwhrqcnQFwQ5cZECwukkrwN+UceMtzIKDIow==\n-----END PUBLIC KEY-----\n";
const ED25519_PEM: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAp9xbY4nVYlPKYdaiqxG8cxq5erGKCOFH7xNIvXcTAtY=\n-----END PUBLIC KEY-----\n";
const RSA_2048_PEM: &str = "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA7egmJ5Dk/p7nh0F8BR+3\n\
    EshwuX/FN1hQ/afNKtIE+wPUzF+yByIS9ovDPWlUfvCMMbl9dwQM5zCqjDBJ2vCE\n\
    mSHre0tPZjXLPo9NyH6BUAE1xOxYHbqIkKNdy0YhIhYV1McmpkmxMvp6aUdqp0I9\n\
    pVgdr83mlFq3SFDhfkD0s7Br6Dab5wWHFwZEgxVgobAIh2qiwalYEGEGyhH09XKJ\n\
    83fIkuA1GYma09NODY5Hild5EC9FjyWGCM0HIYqG1xoWdisPJsTwSrSpomLMKnLp\n\
    QiOxOODjZQmYSX4xSCw7khVmXPox4x+ARZhVkrIVd68rQKK6hu7vXmhpEWed+Dr+\n\
    LQIDAQAB\n-----END PUBLIC KEY-----\n";
const RSA_1024_PEM: &str = "-----BEGIN PUBLIC KEY-----\nMIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDaCXNBAmwhs2Gqg1SDN2IXqiTF\n\
    kFGW6YiHgDGrkPVZ8UcNfAhC/3aAg4f/16JWtqw3OoAywEL50RRW7MRuvyh7m9la\n\
    JChSr8AG37zAVZaXpy/n+msayQ77zvQ/i1r+c05A099SjucR8uzerkm80usQUkwl\n\
    ERsywMOsAwflGOORiQIDAQAB\n-----END PUBLIC KEY-----\n";
const P384_PEM: &str = "-----BEGIN PUBLIC KEY-----\nMHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEddB29sZx7iHAYifDY9PlFTpWVRLjzTe8\n\
    NYJatCuWuCpZC6tcjpZLm42SLoFlWFbVHoBeY81Ni6yhYpJYq6Nqw5w+kYdeAMT+\n\
    68uL1KybDhwP/zXOqd6z0KE80nI3dr8t\n-----END PUBLIC KEY-----\n";

#[test]
fn only_one_kind_of_token_key_may_be_set() {
    let (_pem, pem) = file(P256_PEM);
    let fault = only_fault(&[("JWT_SECRET", SECRET), ("JWT_PUBLIC_KEY_FILE", &pem)]);
    assert!(
        fault.starts_with("JWT_SECRET: set together with JWT_PUBLIC_KEY_FILE;"),
        "{fault}"
    );
}

#[test]
fn a_short_token_secret_is_refused_and_not_shown() {
    let fault = only_fault(&[("JWT_SECRET", "hunter2")]);
    assert!(fault.contains("has 7 bytes, fewer than 32"), "{fault}");
    assert!(!fault.contains("hunter2"), "{fault}");
}

#[test]
fn public_keys_of_the_supported_kinds_are_accepted() {
    for pem in [P256_PEM, ED25519_PEM, RSA_2048_PEM] {
        let (_pem, path) = file(pem);
        let config = load(&[("JWT_PUBLIC_KEY_FILE", &path)]);
        assert!(
            matches!(config.token.keys, TokenKeys::PublicKeyFile(found) if found == Path::new(&path))
        );
    }
}

#[test]
fn files_that_hold_no_usable_public_key_are_refused() {
    let private = P256_PEM.replace("PUBLIC", "PRIVATE");
    let twice = format!("{P256_PEM}{P256_PEM}");
    for (text, problem) in [
        ("", "holds no PEM section"),
        (
            "-----BEGIN PUBLIC KEY-----\nnot base64!\n-----END PUBLIC KEY-----\n",
            "is not valid PEM",
        ),
        (private.as_str(), "holds a private key"),
        (twice.as_str(), "something other than one public key"),
        (RSA_1024_PEM, "fewer than 2048 bits"),
        (P384_PEM, "of another kind"),
    ] {
        let (_pem, path) = file(text);
        let fault = only_fault(&[("JWT_PUBLIC_KEY_FILE", &path)]);
        assert!(
            fault.starts_with("JWT_PUBLIC_KEY_FILE: ") && fault.contains(problem),
            "{fault}"
        );
    }
    let fault = only_fault(&[("JWT_PUBLIC_KEY_FILE", "/nonexistent.pem")]);
    assert!(fault.contains("can't be read"), "{fault}");
}

#[test]
fn key_sets_are_looked_into() {
    let (_set, path) = file(r#"{"keys":[{"kid":"a","kty":"EC","crv":"P-256"}]}"#);
    let config = load(&[("JWT_JWKS_FILE", &path)]);
    assert!(matches!(config.token.keys, TokenKeys::JwksFile(_)));
    for (text, problem) in [
        ("{", "is not valid JSON"),
        ("[]", "has no array \"keys\""),
        (r#"{"keys":[]}"#, "has no public key"),
        (
            r#"{"keys":[{"kty":"EC"},{"kid":"a","kty":"oct"}]}"#,
            "has no public key",
        ),
    ] {
        let (_set, path) = file(text);
        let fault = only_fault(&[("JWT_JWKS_FILE", &path)]);
        assert!(fault.contains(problem), "{fault}");
    }
    assert!(only_fault(&[("JWT_JWKS_FILE", "/nonexistent.json")]).contains("can't be read"));
}

#[test]
fn a_file_beyond_all_reason_is_refused() {
    let (_file, path) = file(vec![b' '; 1024 * 1024 + 1]);
    assert!(only_fault(&[("JWT_JWKS_FILE", &path)]).contains("larger than"));
}
