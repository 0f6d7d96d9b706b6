//! A private Redis server: real, and easy to hurt.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::account::Account;
use crate::daemon::Daemon;
use crate::ports::ReservedPort;
use crate::wait::eventually;

const START_DEADLINE: Duration = Duration::from_secs(30);
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// One question to the server.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// As for PostgreSQL: a lost port is replaced a few times.
const PORT_ATTEMPTS: u32 = 5;

/// What is left of its data after a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persistence {
    /// Nothing: a restart begins empty.
    None,
    /// All: every write is in an append-only file before it is answered.
    EveryWrite,
}

/// A Redis instance in a temporary directory, on a port of its own, listening
/// on 127.0.0.1 only. Dropping it ends it and removes its data.
#[derive(Debug)]
pub struct Redis {
    // Declared first, so that the server ends before its directory goes.
    server: Option<Daemon>,
    port: ReservedPort,
    persistence: Persistence,
    account: Account,
    home: TempDir,
}

enum Start {
    Answering,
    Ended(String),
}

impl Redis {
    /// Starts an instance that forgets everything with a restart.
    ///
    /// # Errors
    /// When `redis-server` isn't installed or doesn't come up; with its log.
    pub async fn start() -> Result<Self> {
        Self::start_with(Persistence::None).await
    }

    /// Starts an instance that keeps what `persistence` says.
    ///
    /// # Errors
    /// As [`Redis::start`].
    pub async fn start_with(persistence: Persistence) -> Result<Self> {
        let account = Account::for_servers()?;
        let home = tempfile::Builder::new()
            .prefix("holdfast-redis-")
            .tempdir()
            .context("cannot create a temporary directory")?;
        account.give(home.path())?;
        let mut instance = Self {
            server: None,
            port: ReservedPort::claim()?,
            persistence,
            account,
            home,
        };
        instance.first_start().await?;
        Ok(instance)
    }

    async fn first_start(&mut self) -> Result<()> {
        for _ in 0..PORT_ATTEMPTS {
            match self.launch().await? {
                Start::Answering => return Ok(()),
                Start::Ended(log) if log.contains("Address already in use") => {
                    self.port = ReservedPort::claim()?;
                }
                Start::Ended(log) => bail!("Redis ended while starting:\n{log}"),
            }
        }
        bail!("every port tried for Redis was taken by somebody else")
    }

    async fn launch(&mut self) -> Result<Start> {
        let port = self.port.number().to_string();
        let append_only = match self.persistence {
            Persistence::None => "no",
            Persistence::EveryWrite => "yes",
        };
        let mut command = Command::new("redis-server");
        command
            .current_dir(self.home.path())
            .args(["--port", &port, "--bind", "127.0.0.1", "--daemonize", "no"])
            .args(["--save", "", "--appendonly", append_only])
            .args(["--appendfsync", "always", "--dir"])
            .arg(self.home.path());
        self.account.assign(&mut command);
        let log = self.home.path().join("server.log");
        let server = Daemon::spawn("Redis", &mut command, &log)
            .context("is redis-server installed? tests/scripts/install.sh installs it")?;
        self.server = Some(server);
        self.wait_answering().await
    }

    async fn wait_answering(&mut self) -> Result<Start> {
        let port = self.port();
        let server = self.server.as_mut().context("Redis was not started")?;
        eventually(START_DEADLINE, "Redis to answer", async || {
            match server.exit_status() {
                Ok(None) => {}
                Ok(Some(_)) => return Ok(Start::Ended(server.log_tail(20))),
                Err(error) => return Err(format!("{error:#}")),
            }
            match ask(port, "PING").await {
                Ok(answer) if answer.starts_with("+PONG") => Ok(Start::Answering),
                Ok(answer) => Err(answer),
                Err(error) => Err(format!("{error:#}")),
            }
        })
        .await
    }

    /// The port it listens on, the same after every restart.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Its URL.
    pub fn url(&self) -> String {
        self.url_through(self.port())
    }

    /// Its URL through a proxy that listens on `port`.
    pub fn url_through(&self, port: u16) -> String {
        format!("redis://127.0.0.1:{port}")
    }

    /// Sends one command, words separated by spaces, and gives back the start
    /// of the raw reply (at most 64 KiB), such as `+PONG` or `:3`.
    ///
    /// # Errors
    /// When it isn't answered within two seconds.
    pub async fn ask(&self, command: &str) -> Result<String> {
        ask(self.port(), command).await
    }

    /// Kills it with SIGKILL.
    ///
    /// # Errors
    /// When it doesn't end.
    pub async fn kill9(&mut self) -> Result<()> {
        let Some(mut server) = self.server.take() else {
            return Ok(());
        };
        server.signal(Signal::SIGKILL)?;
        server.wait_exit(STOP_DEADLINE).await.map(drop)
    }

    /// Stops its process: connections stay open and nothing is answered.
    ///
    /// # Errors
    /// When the signal can't be sent.
    pub fn freeze(&mut self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets a frozen server go on.
    ///
    /// # Errors
    /// When the signal can't be sent.
    pub fn thaw(&mut self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&mut self, signal: Signal) -> Result<()> {
        let server = self.server.as_mut().context("Redis is not running")?;
        server.signal(signal)
    }

    /// Starts it again on the same port after a kill.
    ///
    /// # Errors
    /// When it is running, or doesn't come up; with its log.
    pub async fn start_again(&mut self) -> Result<()> {
        ensure!(self.server.is_none(), "Redis is still running");
        match self.launch().await? {
            Start::Answering => Ok(()),
            Start::Ended(log) => bail!("Redis ended while starting again:\n{log}"),
        }
    }
}

async fn ask(port: u16, command: &str) -> Result<String> {
    tokio::time::timeout(ANSWER_TIMEOUT, async {
        let mut stream = TcpStream::connect(("127.0.0.1", port))
            .await
            .context("cannot connect to Redis")?;
        stream
            .write_all(format!("{command}\r\n").as_bytes())
            .await
            .context("cannot write to Redis")?;
        let mut reply = vec![0; 64 * 1024];
        let length = stream
            .read(&mut reply)
            .await
            .context("cannot read from Redis")?;
        Ok(String::from_utf8_lossy(&reply[..length]).into_owned())
    })
    .await
    .context("no answer within two seconds")?
}
