//! One process that a test started, with its log in a file.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use crate::processes::Process;
use crate::wait::eventually;

/// A running child, killed and collected when it is dropped.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command` with both of its outputs appended to `log`.
    ///
    /// # Errors
    /// When the log can't be opened or the program can't be started.
    pub fn spawn(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot open {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("cannot share the log")?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
        })
    }

    /// Its process; `None` once it has ended.
    pub fn process(&self) -> Option<Process> {
        Process::find(self.child.id())
    }

    /// Sends a signal; nothing happens when the process has ended.
    ///
    /// # Errors
    /// When the signal can't be sent.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        // Not collected yet, so the id can't have been given to anyone else.
        if self.exit_status()?.is_some() {
            return Ok(());
        }
        let pid = i32::try_from(self.child.id()).context("no process has such an id")?;
        signal::kill(Pid::from_raw(pid), signal)
            .with_context(|| format!("cannot send {signal} to {}", self.name))
    }

    /// How it ended, when it has.
    ///
    /// # Errors
    /// When the kernel won't say.
    pub fn exit_status(&mut self) -> Result<Option<ExitStatus>> {
        self.child
            .try_wait()
            .with_context(|| format!("cannot ask whether {} has ended", self.name))
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// When it still runs after `deadline`.
    pub async fn wait_exit(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        eventually(deadline, &what, async || match self.exit_status() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err(String::from("still running")),
            Err(error) => Err(format!("{error:#}")),
        })
        .await
    }

    /// The last `lines` lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.log, lines)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only for a process that has been collected already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last `lines` lines of a text file, or why it can't be read.
pub fn tail(path: &Path, lines: usize) -> String {
    let text = match fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => return format!("(cannot read {}: {error})", path.display()),
    };
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
