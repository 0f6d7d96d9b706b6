//! Programs in Python that judge the API by its description. `tests/scripts/install.sh` puts them into an environment of
//! their own under `target`; what they are told is in `tests/api`.

use std::env;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::tokens;

/// What a program in Python said.
#[derive(Debug)]
pub struct Verdict {
    /// Whether it found nothing wrong.
    pub is_good: bool,
    /// Both its outputs.
    pub text: String,
}

/// What schemathesis is to test, and how.
#[derive(Debug, Clone)]
pub struct Campaign {
    /// Where the API is.
    pub origin: String,
    /// A description to go by; that of the API itself where there is none.
    pub description: Option<PathBuf>,
    /// The only operation to test; all where there is none.
    pub operation: Option<&'static str>,
    /// Test cases for each operation and phase.
    pub cases: u32,
    /// What the cases are made from; the same one makes the same cases.
    pub seed: u64,
    /// How long it may take.
    pub deadline: Duration,
    /// Variables for `tests/api/hooks.py`.
    pub environment: Vec<(&'static str, &'static str)>,
}

/// Has schemathesis test an API by its description, with all of its checks.
///
/// # Errors
/// When it isn't installed, can't be run, or takes too long.
pub async fn schemathesis(campaign: &Campaign) -> Result<Verdict> {
    let own = || PathBuf::from(format!("{}/openapi.json", campaign.origin));
    let only = campaign
        .operation
        .map(|id| format!("--include-operation-id={id}"));
    let mut command = program("schemathesis")?;
    command
        .arg("--config-file")
        .arg(instructions().join("schemathesis.toml"))
        .arg("run")
        .arg(campaign.description.clone().unwrap_or_else(own))
        .arg(format!("--url={}", campaign.origin))
        .args(only)
        .arg(format!("--seed={}", campaign.seed))
        .arg(format!("--max-examples={}", campaign.cases))
        .args(["--no-color", "--continue-on-failure"])
        .arg("--generation-database=none")
        .env("HOLDFAST_JWT_SECRET", tokens::SECRET)
        .env("PYTHONPATH", instructions())
        .envs(campaign.environment.iter().copied());
    run(command, campaign.deadline, "").await
}

/// Has a description checked against the specification of OpenAPI, and its examples against their schemas.
///
/// # Errors
/// When the checker isn't installed, can't be run, or takes too long.
pub async fn check_description(description: &str, deadline: Duration) -> Result<Verdict> {
    let mut command = program("python")?;
    command.arg(instructions().join("check_description.py"));
    run(command, deadline, description).await
}

/// What the programs are told.
fn instructions() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("api")
}

/// One of the environment's programs, where whatever it leaves behind is out of the way.
fn program(name: &str) -> Result<Command> {
    let directory = directory()?;
    let path = directory.join("bin").join(name);
    if !path.is_file() {
        bail!(
            "there is no {}: run tests/scripts/install.sh first (`make test` does)",
            path.display()
        );
    }
    let mut command = Command::new(path);
    command
        .current_dir(directory)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    Ok(command)
}

/// Where `tests/scripts/install.sh` puts the environment: beside the directories of cargo's profiles.
fn directory() -> Result<PathBuf> {
    let executable = env::current_exe().context("cannot find the path of this executable")?;
    let target = executable.ancestors().nth(3);
    Ok(target.context("this executable is nowhere")?.join("python"))
}

async fn run(mut command: Command, deadline: Duration, input: &str) -> Result<Verdict> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("cannot start Python")?;
    let mut stdin = child.stdin.take().context("it has no standard input")?;
    let feeding = async {
        stdin.write_all(input.as_bytes()).await?;
        drop(stdin);
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(deadline, feeding)
        .await
        .with_context(|| format!("it still runs after {deadline:?}"))?
        .context("cannot talk to it")?;
    let said =
        [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
    Ok(Verdict {
        is_good: output.status.success(),
        text: said.concat(),
    })
}
