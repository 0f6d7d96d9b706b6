//! A JSON Web Key Set in a file, read again when the file changes, so that keys rotate without a restart.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use jsonwebtoken::jwk::Jwk;
use serde_json::Value;
use thiserror::Error;
use tokio::time::MissedTickBehavior;

use super::key::TokenKey;

/// How often the file is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Largest file that is read: some hundred keys.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Why a key set can't be used.
#[derive(Debug, Error)]
pub enum KeySetError {
    /// The file can't be read.
    #[error("can't read the key set {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// What it holds is no key set, or one without a usable key.
    #[error("the key set {path} has no public key with a kid for RS256, ES256 or EdDSA")]
    NoKeys {
        /// The file.
        path: PathBuf,
    },
}

/// The usable keys of a set, by their `kid`.
type Keys = Vec<(String, TokenKey)>;

/// What tells one version of a file from the next. A file moved into place, as Kubernetes does, has another inode.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Version {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// The keys of a file, as they were when it was last read well.
#[derive(Debug)]
pub struct KeySetFile {
    path: PathBuf,
    keys: ArcSwap<Keys>,
    /// The version last looked at, whether it was any good or not.
    seen: Mutex<Option<Version>>,
}

impl KeySetFile {
    /// Reads the file.
    ///
    /// # Errors
    /// [`KeySetError`].
    pub fn open(path: &Path) -> Result<Self, KeySetError> {
        let seen = version(path).ok();
        let keys = read(path)?;
        Ok(KeySetFile {
            path: path.to_owned(),
            keys: ArcSwap::from_pointee(keys),
            seen: Mutex::new(seen),
        })
    }

    /// The key with this `kid`.
    pub fn find(&self, kid: &str) -> Option<TokenKey> {
        let keys = self.keys.load();
        keys.iter()
            .find(|(known, _)| known == kid)
            .map(|(_, key)| key.clone())
    }

    /// Looks at the file once a second, for ever, and reads it when it has changed.
    pub async fn follow(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let file = Arc::clone(&self);
            if let Err(error) = tokio::task::spawn_blocking(move || file.refresh()).await {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "reading the key set met a defect"
                );
            }
        }
    }

    /// Reads the file if it has changed since the last look. What can't be used leaves the keys as they are.
    fn refresh(&self) {
        let version = version(&self.path).ok();
        let changed = {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *seen, version.clone()) != version
        };
        if !changed {
            return;
        }
        match read(&self.path) {
            Ok(keys) => {
                tracing::info!(path = %self.path.display(), keys = keys.len(), "read the key set again");
                self.keys.store(Arc::new(keys));
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "keeping the token keys as they were: put a valid key set in place"
                );
            }
        }
    }
}

fn version(path: &Path) -> io::Result<Version> {
    let metadata = fs::metadata(path)?;
    Ok(Version {
        device: metadata.dev(),
        inode: metadata.ino(),
        bytes: metadata.len(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    })
}

fn read(path: &Path) -> Result<Keys, KeySetError> {
    let mut text = Vec::new();
    let file = File::open(path).and_then(|file| file.take(MAX_FILE_BYTES).read_to_end(&mut text));
    file.map_err(|source| KeySetError::Io {
        path: path.to_owned(),
        source,
    })?;
    let keys = parse(&text);
    if keys.is_empty() {
        Err(KeySetError::NoKeys {
            path: path.to_owned(),
        })
    } else {
        Ok(keys)
    }
}

/// The usable keys; one that isn't costs only itself. Of several with one `kid` the first counts.
fn parse(text: &[u8]) -> Keys {
    let document: Value = serde_json::from_slice(text).unwrap_or_default();
    let listed = document["keys"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let mut keys = Keys::new();
    for value in listed {
        let Ok(jwk) = serde_json::from_value::<Jwk>(value.clone()) else {
            continue;
        };
        let Some(kid) = jwk.common.key_id.clone() else {
            continue;
        };
        match TokenKey::from_jwk(&jwk) {
            Ok(_) if keys.iter().any(|(known, _)| *known == kid) => {
                tracing::warn!(kid, "the key set has this kid twice: the first counts");
            }
            Ok(key) => keys.push((kid, key)),
            Err(error) => tracing::debug!(kid, %error, "left out a key of the key set"),
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED25519: &str = r#"{"kty":"OKP","crv":"Ed25519","kid":"KID","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;

    fn set(kids: &[&str]) -> String {
        let keys: Vec<String> = kids.iter().map(|kid| ED25519.replace("KID", kid)).collect();
        format!("{{\"keys\":[{}]}}", keys.join(","))
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_bad_one_is_not_taken() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("keys.json");
        fs::write(&path, set(&["a"])).expect("written");
        let file = KeySetFile::open(&path).expect("a key");
        assert!(file.find("a").is_some() && file.find("b").is_none());

        fs::write(&path, set(&["b", "c"])).expect("written");
        file.refresh();
        assert!(file.find("a").is_none() && file.find("b").is_some() && file.find("c").is_some());

        fs::write(&path, "{\"keys\":[]}").expect("written");
        file.refresh();
        assert!(file.find("b").is_some(), "an empty set keeps the old keys");
        fs::remove_file(&path).expect("removed");
        file.refresh();
        assert!(
            file.find("b").is_some(),
            "a missing file keeps the old keys"
        );

        let next = directory.path().join("next.json");
        fs::write(&next, set(&["d"])).expect("written");
        fs::rename(&next, &path).expect("moved");
        file.refresh();
        assert!(file.find("d").is_some() && file.find("b").is_none());
    }

    #[test]
    fn keys_that_are_not_for_checking_signatures_are_left_out() {
        let table = [
            r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#,
            r#"{"kty":"OKP","crv":"Ed25519","kid":"k","use":"enc","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#,
            r#"{"kty":"OKP","crv":"Ed25519","kid":"k","alg":"HS256","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#,
            r#"{"kty":"OKP","crv":"Ed25519","kid":"k","key_ops":["sign"],"x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#,
            r#"{"kty":"OKP","crv":"Ed25519","kid":"k","x":"AAAA"}"#,
            r#"{"kty":"oct","kid":"k","k":"c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA"}"#,
            r#"{"kty":"RSA","kid":"k","n":"sXch","e":"AQAB"}"#,
            r#"{"kty":"EC","crv":"P-384","kid":"k","x":"AA","y":"AA"}"#,
            r#"{"kid":"k"}"#,
            "7",
        ];
        for key in table {
            assert!(
                parse(format!("{{\"keys\":[{key}]}}").as_bytes()).is_empty(),
                "{key}"
            );
        }
        let mixed = format!("{{\"keys\":[{},{}]}}", table[1], ED25519);
        assert_eq!(parse(mixed.as_bytes()).len(), 1);
    }

    #[test]
    fn a_file_without_a_key_is_refused_at_the_start() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("keys.json");
        assert!(matches!(
            KeySetFile::open(&path),
            Err(KeySetError::Io { .. })
        ));
        for text in ["", "[]", "{}", "{\"keys\":{}}"] {
            fs::write(&path, text).expect("written");
            assert!(
                matches!(KeySetFile::open(&path), Err(KeySetError::NoKeys { .. })),
                "{text}"
            );
        }
    }
}
