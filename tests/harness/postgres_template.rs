//! A PostgreSQL data directory made once and copied for each instance.
//!
//! `initdb` takes about a second, a copy a few hundredths. Copies share their
//! system identifier, so a test that needs a *different* server makes its own.

use std::env;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::account::Account;
use crate::node::binaries_directory;

/// Part of the cached directory's name: raise it when the recipe changes.
const RECIPE: u32 = 1;

/// The ordinary role that owns the test databases and that Holdfast connects
/// as: being no superuser, it shows what works without special rights.
pub const ROLE: &str = "holdfast";

/// The programs of one installed PostgreSQL.
#[derive(Debug, Clone)]
pub struct Installation {
    directory: PathBuf,
}

impl Installation {
    /// Finds PostgreSQL 15, else the newest later one, in Debian's place, else
    /// on the `PATH`.
    ///
    /// # Errors
    /// When there is none; says how to get it.
    pub fn find() -> Result<Self> {
        let mut versions = debian_versions();
        // 15 first, since it is the version that Holdfast is measured on.
        versions.sort_by_key(|(version, _)| (*version != 15, std::cmp::Reverse(*version)));
        let on_path =
            env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect::<Vec<_>>();
        let directory = versions
            .into_iter()
            .map(|(_, directory)| directory)
            .chain(on_path)
            .find(|directory| {
                directory.join("initdb").is_file() && directory.join("postgres").is_file()
            });
        match directory {
            Some(directory) => Ok(Self { directory }),
            None => {
                bail!("no PostgreSQL server found; run tests/scripts/install.sh, which installs it")
            }
        }
    }

    /// The path of one of its programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn version(&self) -> Result<String> {
        let output = Command::new(self.program("postgres"))
            .arg("--version")
            .output()
            .context("cannot ask postgres for its version")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.split_whitespace().nth(2);
        Ok(version.context("postgres told no version")?.to_owned())
    }
}

fn debian_versions() -> Vec<(u32, PathBuf)> {
    let Ok(entries) = fs::read_dir("/usr/lib/postgresql") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let version: u32 = path.file_name()?.to_str()?.parse().ok()?;
            (version >= 15).then(|| (version, path.join("bin")))
        })
        .collect()
}

/// Puts a data directory at `target` (which must not exist), copied from the
/// template, which is made first where there is none.
///
/// # Errors
/// When initdb or the copy fails.
pub fn copy_to(target: &Path, installation: &Installation, account: &Account) -> Result<()> {
    let template = cached(installation, account)?;
    copy_tree(&template, target)
}

/// Makes a data directory of its own, with a system identifier of its own, in
/// `target`, whose parent must belong to `account`.
///
/// # Errors
/// When initdb or the first role's creation fails.
pub fn initialise(target: &Path, installation: &Installation, account: &Account) -> Result<()> {
    let mut initdb = Command::new(installation.program("initdb"));
    initdb
        .args(["--username=postgres", "--auth=trust", "--encoding=UTF8"])
        .args(["--locale=C", "--no-sync", "--pgdata"])
        .arg(target);
    run(&mut initdb, account, "")?;
    let mut single = Command::new(installation.program("postgres"));
    single.arg("--single").arg("-D").arg(target).arg("postgres");
    let create_role = format!("CREATE ROLE {ROLE} LOGIN PASSWORD '{ROLE}'\n");
    run(&mut single, account, &create_role)
}

fn cached(installation: &Installation, account: &Account) -> Result<PathBuf> {
    let cache = binaries_directory()?.join("holdfast-tests");
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let name = format!(
        "postgres-{}-uid{}-recipe{RECIPE}",
        installation.version()?,
        account.uid()
    );
    let template = cache.join(&name);
    let lock =
        File::create(cache.join("template.lock")).context("cannot open the template's lock")?;
    lock.lock().context("cannot lock the template")?;
    if !template.is_dir() {
        make(&template, installation, account)?;
    }
    Ok(template)
}

/// Made in the temporary directory, which the account can reach, then copied to
/// the cache, which it perhaps can't, and renamed so that it is there in whole
/// or not at all.
fn make(template: &Path, installation: &Installation, account: &Account) -> Result<()> {
    let workshop = tempfile::Builder::new()
        .prefix("holdfast-initdb-")
        .tempdir()
        .context("cannot create a temporary directory")?;
    account.give(workshop.path())?;
    let data = workshop.path().join("data");
    initialise(&data, installation, account)?;
    let unfinished = template.with_extension("unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).context("cannot remove an unfinished template")?;
    }
    copy_tree(&data, &unfinished)?;
    fs::rename(&unfinished, template).context("cannot put the template in its place")
}

/// `cp -a` keeps owners and modes, both of which PostgreSQL checks.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp")
        .arg("-a")
        .args([from, to])
        .status()
        .context("cannot run cp")?;
    ensure!(
        status.success(),
        "cannot copy {} to {}",
        from.display(),
        to.display()
    );
    Ok(())
}

fn run(command: &mut Command, account: &Account, input: &str) -> Result<()> {
    account.assign(command);
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let mut stdin = child.stdin.take().context("no standard input was made")?;
    stdin
        .write_all(input.as_bytes())
        .context("cannot write to its input")?;
    drop(stdin);
    let output = child
        .wait_with_output()
        .with_context(|| format!("cannot wait for {name}"))?;
    ensure!(
        output.status.success(),
        "{name} failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
