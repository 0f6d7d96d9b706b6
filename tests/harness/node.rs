//! One Holdfast node: a directory with a buffer, and the processes on it.

use std::collections::BTreeMap;
use std::env;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::ports::ReservedPort;
use crate::program::{Program, Recipe};
use crate::tokens;
use crate::wait::eventually;

/// The most that a command of `syncd` may take in a test.
const COMMAND_DEADLINE: Duration = Duration::from_secs(60);

/// `STORE_TIMEOUT_MS` of a node, unless a test says otherwise: a disk that stalls for a second or two isn't taken for
/// an outage of PostgreSQL, which answers late then.
const PATIENT_MS: &str = "5000";

/// The bug that `make seeded-bugs` has switched on, for the programs too.
const SEEDED_BUG: &str = "HOLDFAST_SEEDED_BUG";

/// A directory, two ports and a set of variables, from which `holdfast-api`
/// and `syncd` are started any number of times.
#[derive(Debug)]
pub struct Node {
    directory: Arc<TempDir>,
    environment: BTreeMap<String, String>,
    api_port: ReservedPort,
    syncd_port: ReservedPort,
}

/// A command that has run to its end.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
    /// How long it ran.
    pub elapsed: Duration,
}

impl Finished {
    /// The non-empty lines of both outputs.
    pub fn lines(&self) -> Vec<&str> {
        let all = self.stdout.lines().chain(self.stderr.lines());
        all.filter(|line| !line.trim().is_empty()).collect()
    }

    /// Asserts the exit code.
    ///
    /// # Panics
    /// When it is another; shows both outputs.
    #[track_caller]
    pub fn expect_code(&self, code: i32) -> &Self {
        self.expect_code_in(&[code])
    }

    /// Asserts that the exit code is one of `codes`.
    ///
    /// # Panics
    /// When it isn't; shows both outputs.
    #[track_caller]
    pub fn expect_code_in(&self, codes: &[i32]) -> &Self {
        let expected = self.code.is_some_and(|code| codes.contains(&code));
        assert!(
            expected,
            "exit code {:?} instead of {codes:?}\nstdout: {}\nstderr: {}",
            self.code, self.stdout, self.stderr
        );
        self
    }

    /// Standard output as JSON.
    ///
    /// # Errors
    /// When it isn't JSON; shows it.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("no JSON: {}", self.stdout))
    }
}

impl Node {
    /// A node in embedded mode with an empty directory, a secret for tokens,
    /// ports of its own, and more patience with the stores than the programs
    /// have by themselves. Nothing is started yet.
    ///
    /// # Errors
    /// When there is no room for a directory or a port.
    pub fn new() -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("holdfast-node-")
            .tempdir()
            .context("cannot create a temporary directory")?;
        let path = env::var("PATH").unwrap_or_else(|_| String::from("/usr/bin:/bin"));
        let buffer = directory.path().join("data/buffer.redb");
        let mut node = Self::on(Arc::new(directory), BTreeMap::new())?;
        if let Ok(bug) = env::var(SEEDED_BUG) {
            node.set(SEEDED_BUG, &bug);
        }
        Ok(node
            .with("PATH", &path)
            .with("NO_COLOR", "1")
            .with("APP_ENV", "testing")
            .with("LOG_FORMAT", "text")
            .with("JWT_SECRET", tokens::SECRET)
            .with("STORE_TIMEOUT_MS", PATIENT_MS)
            .with("BUFFER_PATH", &buffer.to_string_lossy()))
    }

    /// Another pair of processes on the same directory, buffer and variables,
    /// with ports of their own.
    ///
    /// # Errors
    /// When no port is free.
    pub fn beside(&self) -> Result<Self> {
        Self::on(Arc::clone(&self.directory), self.environment.clone())
    }

    fn on(directory: Arc<TempDir>, environment: BTreeMap<String, String>) -> Result<Self> {
        let node = Self {
            api_port: ReservedPort::claim()?,
            syncd_port: ReservedPort::claim()?,
            environment,
            directory,
        };
        let (api, syncd) = (node.api_address(), node.syncd_address());
        Ok(node.with("API_ADDR", &api).with("SYNCD_ADDR", &syncd))
    }

    /// The node with a variable set for whatever is started from now on.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.set(name, value);
        self
    }

    /// The node with the programs' own deadline for the stores (0.75 s): for
    /// tests of stores that hang.
    #[must_use]
    pub fn hasty(mut self) -> Self {
        self.unset("STORE_TIMEOUT_MS");
        self
    }

    /// Sets a variable for whatever is started from now on.
    pub fn set(&mut self, name: &str, value: &str) {
        self.environment.insert(name.to_owned(), value.to_owned());
    }

    /// Removes a variable for whatever is started from now on.
    pub fn unset(&mut self, name: &str) {
        self.environment.remove(name);
    }

    /// Its directory, which is also the working directory of its processes.
    pub fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// Where its buffer is.
    pub fn buffer_path(&self) -> PathBuf {
        PathBuf::from(&self.environment["BUFFER_PATH"])
    }

    /// The address that its API listens on.
    pub fn api_address(&self) -> String {
        self.api_port.address()
    }

    /// The address that its syncd listens on.
    pub fn syncd_address(&self) -> String {
        self.syncd_port.address()
    }

    /// Starts `holdfast-api` and waits until it is alive.
    ///
    /// # Errors
    /// When it isn't built or doesn't come up; with its log.
    pub async fn start_api(&self) -> Result<Program> {
        Program::start(self.recipe("holdfast-api", &[])?).await
    }

    /// As [`Node::start_api`], but under `wrapper`, a program and its arguments
    /// that end in becoming the command they are given, such as `nice`.
    ///
    /// # Errors
    /// As [`Node::start_api`].
    pub async fn start_api_under(&self, wrapper: &[&str]) -> Result<Program> {
        Program::start(self.recipe("holdfast-api", &[])?.under(wrapper)).await
    }

    /// Starts `syncd run` and waits until it is alive.
    ///
    /// # Errors
    /// When it isn't built or doesn't come up; with its log.
    pub async fn start_syncd(&self) -> Result<Program> {
        Program::start(self.recipe("syncd", &["run"])?).await
    }

    /// Starts `syncd` with these arguments and waits for nothing.
    ///
    /// # Errors
    /// When it isn't built.
    pub fn launch_syncd(&self, arguments: &[&str]) -> Result<Program> {
        Program::launch_only(self.recipe("syncd", arguments)?)
    }

    /// Runs `syncd` with these arguments to its end.
    ///
    /// # Errors
    /// When it isn't built or runs for more than a minute.
    pub async fn syncd(&self, arguments: &[&str]) -> Result<Finished> {
        self.run("syncd", arguments).await
    }

    /// Waits until `syncd status` says this.
    ///
    /// # Errors
    /// When it doesn't within `deadline`.
    pub async fn wait_told(&self, deadline: Duration, said: &str) -> Result<()> {
        eventually(deadline, "syncd status to say so", async || {
            let status = self.syncd(&["status"]).await;
            let status = status.map_err(|error| format!("{error:#}"))?;
            let is_said = status.code == Some(0) && status.stdout.contains(said);
            if is_said {
                Ok(())
            } else {
                Err(format!(
                    "{:?}: {}{}",
                    status.code, status.stdout, status.stderr
                ))
            }
        })
        .await
    }

    /// Runs one of the programs to its end.
    ///
    /// # Errors
    /// When it isn't built or runs for more than a minute.
    pub async fn run(&self, program: &'static str, arguments: &[&str]) -> Result<Finished> {
        let recipe = self.recipe(program, arguments)?;
        finish(recipe.command(), program).await
    }

    /// As [`Node::run`], but under `wrapper`, a program and its arguments that
    /// end in running a command, such as `setpriv …`.
    ///
    /// # Errors
    /// As [`Node::run`].
    pub async fn run_under(&self, wrapper: &[&str], program: &'static str) -> Result<Finished> {
        let recipe = self.recipe(program, &[])?.under(wrapper);
        finish(recipe.command(), program).await
    }

    fn recipe(&self, name: &'static str, arguments: &[&str]) -> Result<Recipe> {
        let address = match name {
            "syncd" => self.syncd_port.address(),
            _ => self.api_port.address(),
        };
        Ok(Recipe {
            name,
            path: binary(name)?,
            arguments: arguments.iter().map(|word| String::from(*word)).collect(),
            environment: self.environment.clone(),
            directory: Arc::clone(&self.directory),
            log_name: format!("{name}-{}.log", address.rsplit(':').next().unwrap_or("")),
            address,
        })
    }
}

async fn finish(command: std::process::Command, program: &str) -> Result<Finished> {
    let started = Instant::now();
    let child = tokio::process::Command::from(command)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let output = tokio::time::timeout(COMMAND_DEADLINE, child.wait_with_output())
        .await
        .with_context(|| format!("{program} still runs after {COMMAND_DEADLINE:?}"))?
        .with_context(|| format!("cannot wait for {program}"))?;
    Ok(Finished {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        elapsed: started.elapsed(),
    })
}

/// The path of one of the workspace's programs.
///
/// # Errors
/// When it isn't there; says how to build it.
pub fn binary(name: &str) -> Result<PathBuf> {
    let path = binaries_directory()?.join(name);
    if !path.is_file() {
        bail!(
            "there is no {}: run `cargo build -p holdfast-api -p syncd` first (`make test` does), \
             or set HOLDFAST_BIN_DIR",
            path.display()
        );
    }
    Ok(path)
}

/// `HOLDFAST_BIN_DIR`, else the directory that cargo put this executable in.
///
/// # Errors
/// When this executable's own path is unknown.
pub fn binaries_directory() -> Result<PathBuf> {
    if let Some(directory) = env::var_os("HOLDFAST_BIN_DIR") {
        return Ok(PathBuf::from(directory));
    }
    let executable = env::current_exe().context("cannot find the path of this executable")?;
    let mut directory = executable;
    directory.pop();
    if directory.ends_with("deps") {
        directory.pop();
    }
    Ok(directory)
}

/// Whether this is one of cargo's test executables and not a program.
pub(crate) fn is_test_executable() -> bool {
    let executable = env::current_exe();
    executable.is_ok_and(|path| path.parent().is_some_and(|parent| parent.ends_with("deps")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_beside_has_its_variables_and_addresses_of_its_own() -> Result<()> {
        let node = Node::new()?.hasty().with("DATABASE_URL", "some");
        let beside = node.beside()?;
        assert_ne!(node.api_address(), beside.api_address());
        assert_ne!(node.syncd_address(), beside.syncd_address());
        let mut expected = node.environment.clone();
        expected.insert(String::from("API_ADDR"), beside.api_address());
        expected.insert(String::from("SYNCD_ADDR"), beside.syncd_address());
        assert_eq!(beside.environment, expected);
        Ok(())
    }
}
