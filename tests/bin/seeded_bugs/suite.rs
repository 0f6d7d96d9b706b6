//! The tests, built with the bugs in them, and run one at a time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::cases::Case;

const PACKAGES: [&str; 4] = ["holdfast-shared", "holdfast-api", "syncd", "holdfast-tests"];
const FEATURE: &str = "holdfast-shared/seeded-bugs";
/// The variable that names the bug (`shared/src/seeded.rs`).
const VARIABLE: &str = "HOLDFAST_SEEDED_BUG";

/// What a test said.
#[derive(Debug, Clone, Copy)]
pub enum Verdict {
    /// All is as it should be.
    Passed,
    /// Something isn't; it took so long to say so.
    Failed(Duration),
}

/// The test executables by the name of their target.
#[derive(Debug)]
pub struct Suite {
    executables: BTreeMap<String, PathBuf>,
}

impl Suite {
    /// Builds programs and tests with the feature, beside the ordinary ones.
    ///
    /// # Errors
    /// When they don't build.
    pub fn build() -> Result<Self> {
        cargo(&["build", "--bins"], &PACKAGES[..3])?;
        let messages = cargo(
            &[
                "test",
                "--no-run",
                "--message-format=json-render-diagnostics",
            ],
            &PACKAGES,
        )?;
        let built = messages.lines().filter_map(executable);
        Ok(Self {
            executables: built.collect(),
        })
    }

    /// Runs the case's test with this bug, or none.
    ///
    /// # Errors
    /// When there is no such test, or it can't be run.
    pub fn run(&self, case: &Case, bug: Option<&str>) -> Result<Verdict> {
        let executable = self.executables.get(case.executable);
        let executable =
            executable.with_context(|| format!("no tests are called {}", case.executable))?;
        let mut command = Command::new(executable);
        command
            .args(["--exact", case.test])
            .env_remove(VARIABLE)
            // What a bug breaks is no case to be kept for later runs.
            .env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "true")
            .stdin(Stdio::null());
        if let Some(bug) = bug {
            command.env(VARIABLE, bug);
        }
        let started = Instant::now();
        let output = command
            .output()
            .with_context(|| format!("cannot run {}", executable.display()))?;
        let said = String::from_utf8_lossy(&output.stdout);
        if said.contains("test result: ok. 1 passed; 0 failed;") {
            return Ok(Verdict::Passed);
        }
        ensure!(
            said.contains("test result: FAILED. 0 passed; 1 failed;"),
            "{} has no test {}: {said}",
            case.executable,
            case.test
        );
        Ok(Verdict::Failed(started.elapsed()))
    }
}

/// Runs cargo in the workspace; gives its standard output.
fn cargo(arguments: &[&str], packages: &[&str]) -> Result<String> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(&workspace).args(arguments);
    command.args(["--target-dir", "target/seeded-bugs", "--features", FEATURE]);
    for package in packages {
        command.args(["-p", package]);
    }
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("cargo {} ended with {}", arguments.join(" "), output.status);
    }
    String::from_utf8(output.stdout).context("cargo wrote something else than text")
}

/// The test executable that a line of cargo's messages tells of. A library and
/// a program of one name differ in their kind; only the first has tests.
fn executable(line: &str) -> Option<(String, PathBuf)> {
    let message: Value = serde_json::from_str(line).ok()?;
    let is_test = message["profile"]["test"].as_bool()?;
    let is_program = message["target"]["kind"][0] == "bin";
    let path = message["executable"].as_str()?;
    let name = message["target"]["name"].as_str()?;
    (is_test && !is_program).then(|| (name.to_owned(), PathBuf::from(path)))
}
