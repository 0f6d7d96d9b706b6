//! One of Holdfast's own programs, run as in production and hurt as in life.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::client::Client;
use crate::daemon::Daemon;
use crate::wait::eventually;

/// From a start to the first answer on `/livez`: milliseconds, unless the
/// machine is busy compiling something.
const LIVE_DEADLINE: Duration = Duration::from_secs(30);
const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// Lines of its log that a failed test shows.
const LOG_LINES: usize = 60;

/// How a program is started, so that it can be started again in the same way.
#[derive(Debug, Clone)]
pub(crate) struct Recipe {
    pub name: &'static str,
    pub path: PathBuf,
    pub arguments: Vec<String>,
    pub environment: BTreeMap<String, String>,
    pub directory: Arc<TempDir>,
    pub log_name: String,
    pub address: String,
}

impl Recipe {
    /// The same, under a program and its arguments that end in the command.
    pub fn under(mut self, wrapper: &[&str]) -> Self {
        let Some((first, rest)) = wrapper.split_first() else {
            return self;
        };
        let own = std::mem::take(&mut self.arguments);
        self.arguments = rest.iter().map(|word| String::from(*word)).collect();
        self.arguments.push(self.path.display().to_string());
        self.arguments.extend(own);
        self.path = PathBuf::from(first);
        self
    }

    /// The command, with nothing of the tests' own environment in it.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command
            .args(&self.arguments)
            .env_clear()
            .envs(&self.environment)
            .current_dir(self.directory.path());
        command
    }
}

/// A running (or killed) `holdfast-api` or `syncd`. Dropping it kills it. Its
/// log goes to standard error then, which `cargo test` shows for failed tests.
#[derive(Debug)]
pub struct Program {
    recipe: Recipe,
    daemon: Option<Daemon>,
}

impl Program {
    /// Starts it and waits until it answers on `/livez`.
    pub(crate) async fn start(recipe: Recipe) -> Result<Self> {
        let mut program = Self {
            recipe,
            daemon: None,
        };
        program.launch()?;
        program.wait_livez().await?;
        Ok(program)
    }

    /// Starts it without waiting for anything.
    pub(crate) fn launch_only(recipe: Recipe) -> Result<Self> {
        let mut program = Self {
            recipe,
            daemon: None,
        };
        program.launch()?;
        Ok(program)
    }

    fn launch(&mut self) -> Result<()> {
        let log = self.recipe.directory.path().join(&self.recipe.log_name);
        let daemon = Daemon::spawn(self.recipe.name, &mut self.recipe.command(), &log)?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// `http://` and the address it listens on.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.recipe.address)
    }

    /// A client for it, with this token.
    pub fn client(&self, token: &str) -> Client {
        Client::new(&self.base_url(), token)
    }

    /// A client for it without a token.
    pub fn anonymous(&self) -> Client {
        Client::anonymous(&self.base_url())
    }

    /// Waits until `/livez` answers 200.
    ///
    /// # Errors
    /// When the process ends (with its log) or half a minute has passed.
    pub async fn wait_livez(&mut self) -> Result<()> {
        let client = self.anonymous();
        let name = self.recipe.name;
        let daemon = self.daemon.as_mut().context("it was not started")?;
        let what = format!("{name} to be alive");
        let ended = eventually(LIVE_DEADLINE, &what, async || {
            if let Ok(Some(status)) = daemon.exit_status() {
                return Ok(Some(status));
            }
            match client.get_outside("/livez").await {
                Ok(answer) if answer.status() == 200 => Ok(None),
                Ok(answer) => Err(format!("status {}", answer.status())),
                Err(error) => Err(format!("{error:#}")),
            }
        })
        .await?;
        match ended {
            None => Ok(()),
            Some(status) => bail!("{name} ended ({status}) while starting:\n{}", self.log()),
        }
    }

    /// What `/health` says. For the API only; syncd tells by its command line.
    ///
    /// # Errors
    /// When it isn't answered.
    pub async fn health(&self) -> Result<Value> {
        Ok(self
            .anonymous()
            .get_outside("/health")
            .await?
            .json()
            .clone())
    }

    /// Waits until `/health` satisfies `reached`, and gives it back.
    ///
    /// # Errors
    /// After `deadline`, with the last health seen.
    pub async fn wait_health(
        &self,
        deadline: Duration,
        what: &str,
        reached: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        eventually(deadline, what, async || match self.health().await {
            Ok(health) if reached(&health) => Ok(health),
            Ok(health) => Err(health.to_string()),
            Err(error) => Err(format!("{error:#}")),
        })
        .await
    }

    /// Waits until `/health` has this `status`, and gives it back.
    ///
    /// # Errors
    /// As [`Program::wait_health`].
    pub async fn wait_status(&self, deadline: Duration, status: &str) -> Result<Value> {
        let what = format!("the status {status}");
        self.wait_health(deadline, &what, |health| health["status"] == status)
            .await
    }

    /// Kills it with SIGKILL.
    ///
    /// # Errors
    /// When it doesn't end.
    pub async fn kill9(&mut self) -> Result<()> {
        let Some(mut daemon) = self.daemon.take() else {
            return Ok(());
        };
        daemon.signal(Signal::SIGKILL)?;
        daemon.wait_exit(KILL_DEADLINE).await.map(drop)
    }

    /// Sends SIGTERM and waits for its end.
    ///
    /// # Errors
    /// When it still runs after `deadline`; it is killed then.
    pub async fn terminate(&mut self, deadline: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait_exit(deadline).await
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it still runs after `deadline`; it is killed then.
    pub async fn wait_exit(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let mut daemon = self.daemon.take().context("it is not running")?;
        daemon.wait_exit(deadline).await
    }

    /// Whether the process runs.
    ///
    /// # Errors
    /// When the kernel won't say.
    pub fn is_running(&mut self) -> Result<bool> {
        match self.daemon.as_mut() {
            None => Ok(false),
            Some(daemon) => Ok(daemon.exit_status()?.is_none()),
        }
    }

    /// Memory of it that is resident now, in bytes.
    ///
    /// # Errors
    /// When it isn't running.
    pub fn resident_bytes(&self) -> Result<u64> {
        let process = self.daemon.as_ref().and_then(Daemon::process);
        let bytes = process.and_then(|process| process.resident_bytes());
        bytes.context("it is not running")
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it isn't running.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        let daemon = self.daemon.as_mut().context("it is not running")?;
        daemon.signal(signal)
    }

    /// Stops the process where it is (SIGSTOP).
    ///
    /// # Errors
    /// When it isn't running.
    pub fn freeze(&mut self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets a frozen process go on.
    ///
    /// # Errors
    /// When it isn't running.
    pub fn thaw(&mut self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Starts it again, as before, and waits until it answers on `/livez`.
    ///
    /// # Errors
    /// When it is running, or doesn't come up.
    pub async fn restart(&mut self) -> Result<()> {
        if self.is_running()? {
            bail!("{} is still running", self.recipe.name);
        }
        self.launch()?;
        self.wait_livez().await
    }

    /// The end of its log, both outputs in one, over all its starts.
    pub fn log(&self) -> String {
        let path = self.recipe.directory.path().join(&self.recipe.log_name);
        crate::daemon::tail(&path, LOG_LINES)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.daemon = None;
        if shows_logs() {
            eprintln!("--- {} ---\n{}", self.recipe.log_name, self.log());
        }
    }
}

/// In a test always, since its output is shown only when it fails, and it may
/// fail by returning an error; elsewhere only when something panics.
fn shows_logs() -> bool {
    std::thread::panicking() || crate::node::is_test_executable()
}
