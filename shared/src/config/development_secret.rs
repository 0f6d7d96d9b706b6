//! The secret that tokens are checked with on a developer's machine when none was set: made once, kept beside the
//! buffer, and the same for every process on it.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rand::TryRng;
use rand::rngs::SysRng;
use secrecy::{ExposeSecret, SecretString};

/// Random bytes in the secret: what HS256 asks for.
const SECRET_BYTES: usize = 32;

/// Reads the secret beside the buffer file, or makes it: 32 random bytes in hexadecimal, in a file of mode 0600 named
/// as the buffer with `.jwt-secret` added. Several processes that start at once all get the same one. The buffer's
/// directory is created, mode 0700, if it isn't there.
///
/// # Errors
///
/// Any of the file system, with the path in its message; `InvalidData` if the file holds something else. Nothing
/// half-written is left behind.
pub fn development_secret(buffer_path: &Path) -> io::Result<SecretString> {
    let path = with_suffix(buffer_path, ".jwt-secret");
    let secret = match read_secret(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(&path),
        other => other,
    };
    secret.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

fn read_secret(path: &Path) -> io::Result<SecretString> {
    let mut text = String::new();
    File::open(path)?.take(1024).read_to_string(&mut text)?;
    let secret = text.trim_end();
    let whole =
        secret.len() == SECRET_BYTES * 2 && secret.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !whole {
        let problem = "is not a development secret; remove it and a new one is made";
        return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
    }
    Ok(SecretString::from(secret.to_owned()))
}

/// A whole file appears under the final name by one hard link, which fails if another process was first; its secret
/// is then the one that counts.
fn create(path: &Path) -> io::Result<SecretString> {
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let temporary = with_suffix(path, &format!(".{}", random_hex(8)?.expose_secret()));
    let linked = write_secret(&temporary).and_then(|()| fs::hard_link(&temporary, path));
    let removed = match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    match linked {
        Ok(()) => {
            File::open(directory)?.sync_all()?;
            tracing::warn!(path = %path.display(), "no token key is set: made a secret for development");
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    removed?;
    read_secret(path)
}

fn write_secret(path: &Path) -> io::Result<()> {
    let secret = random_hex(SECRET_BYTES)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    writeln!(file, "{}", secret.expose_secret())?;
    file.sync_all()
}

fn random_hex(byte_count: usize) -> io::Result<SecretString> {
    let mut bytes = vec![0; byte_count];
    SysRng
        .try_fill_bytes(&mut bytes)
        .map_err(io::Error::other)?;
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(SecretString::from(digits))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Barrier;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("it exists").permissions().mode() & 0o777
    }

    #[test]
    fn the_secret_is_made_once_and_kept() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let buffer = directory.path().join("data/buffer.redb");
        let first = development_secret(&buffer).expect("made");
        let second = development_secret(&buffer).expect("read");
        assert_eq!(first.expose_secret(), second.expose_secret());
        assert_eq!(first.expose_secret().len(), 64);
        assert_eq!(mode(&directory.path().join("data")), 0o700);
        assert_eq!(
            mode(&directory.path().join("data/buffer.redb.jwt-secret")),
            0o600
        );
        let left = fs::read_dir(directory.path().join("data"))
            .expect("readable")
            .count();
        assert_eq!(left, 1, "no temporary file stays");
    }

    #[test]
    fn all_who_race_get_the_same_secret() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let buffer = directory.path().join("buffer.redb");
        let barrier = Barrier::new(8);
        let secrets: Vec<String> = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        barrier.wait();
                        development_secret(&buffer)
                            .expect("a secret")
                            .expose_secret()
                            .to_owned()
                    })
                })
                .collect();
            racers
                .into_iter()
                .map(|racer| racer.join().expect("no panic"))
                .collect()
        });
        assert!(secrets.iter().all(|secret| *secret == secrets[0]));
        assert_eq!(fs::read_dir(directory.path()).expect("readable").count(), 1);
    }

    #[test]
    fn a_file_that_holds_something_else_is_refused() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let buffer = directory.path().join("buffer.redb");
        fs::write(directory.path().join("buffer.redb.jwt-secret"), "short").expect("written");
        let error = development_secret(&buffer).expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(
            error.to_string().contains("buffer.redb.jwt-secret"),
            "{error}"
        );
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_an_error_with_its_path() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("file");
        fs::write(&file, "").expect("written");
        let error = development_secret(&file.join("buffer.redb")).expect_err("refused");
        assert!(
            error.to_string().contains("buffer.redb.jwt-secret"),
            "{error}"
        );
    }
}
