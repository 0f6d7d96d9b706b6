//! A private Redis server: real, and easy to hurt.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::account::Account;
use crate::certificates::Authority;
use crate::daemon::Daemon;
use crate::ports::ReservedPort;
use crate::wait::eventually;

const START_DEADLINE: Duration = Duration::from_secs(30);
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// One question to the server.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// As for PostgreSQL: a lost port is replaced a few times.
const PORT_ATTEMPTS: u32 = 5;

/// A sentinel's configuration, which it rewrites.
const SENTINEL_FILE: &str = "sentinel.conf";

/// What is left of its data after a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persistence {
    /// Nothing: a restart begins empty.
    None,
    /// All: every write is in an append-only file before it is answered.
    EveryWrite,
}

/// How an instance is set up.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    arguments: Vec<String>,
    ports: Vec<&'static str>,
    password: Option<String>,
    authority: Option<Arc<Authority>>,
    watches: Option<String>,
}

impl Setup {
    /// Keeps what `persistence` says.
    #[must_use]
    pub fn keeping(self, persistence: Persistence) -> Self {
        match persistence {
            Persistence::None => self,
            Persistence::EveryWrite => {
                self.with(&["--appendonly", "yes", "--appendfsync", "always"])
            }
        }
    }

    /// With these arguments for `redis-server`.
    #[must_use]
    pub fn with(mut self, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|argument| String::from(*argument));
        self.arguments.extend(arguments);
        self
    }

    /// With a port of its own for this option; [`Redis::port_of`] tells which.
    #[must_use]
    pub fn with_port(mut self, option: &'static str) -> Self {
        self.ports.push(option);
        self
    }

    /// Lets nobody in without this password, and sends it to its master.
    #[must_use]
    pub fn protected_by(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self.with(&["--requirepass", password, "--masterauth", password])
    }

    /// Speaks TLS on the port of `--tls-port`, with a certificate for
    /// 127.0.0.1 by this authority, and wants one of its clients too. It still
    /// answers without TLS on its own port, which the tests ask it by.
    #[must_use]
    pub fn certified_by(mut self, authority: &Arc<Authority>) -> Self {
        self.authority = Some(Arc::clone(authority));
        self.with_port("--tls-port")
    }

    /// Is a sentinel, with these lines in its configuration.
    #[must_use]
    pub fn watching(mut self, lines: String) -> Self {
        self.watches = Some(lines);
        self
    }
}

/// A Redis instance in a temporary directory, on a port of its own, listening
/// on 127.0.0.1 only. Dropping it ends it and removes its data.
#[derive(Debug)]
pub struct Redis {
    // Declared first, so that the server ends before its directory goes.
    server: Option<Daemon>,
    port: ReservedPort,
    more_ports: Vec<(&'static str, ReservedPort)>,
    setup: Setup,
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
        Self::start_as(Setup::default()).await
    }

    /// Starts an instance that is set up like this.
    ///
    /// # Errors
    /// As [`Redis::start`].
    pub async fn start_as(setup: Setup) -> Result<Self> {
        let account = Account::for_servers()?;
        let home = tempfile::Builder::new()
            .prefix("holdfast-redis-")
            .tempdir()
            .context("cannot create a temporary directory")?;
        account.give(home.path())?;
        let claim = |option: &&'static str| Ok((*option, ReservedPort::claim()?));
        let mut instance = Self {
            server: None,
            port: ReservedPort::claim()?,
            more_ports: setup.ports.iter().map(claim).collect::<Result<_>>()?,
            setup,
            account,
            home,
        };
        instance.write_files()?;
        instance.first_start().await?;
        Ok(instance)
    }

    fn write_files(&self) -> Result<()> {
        if let Some(authority) = &self.setup.authority {
            let files = authority.certify("127.0.0.1", self.home.path())?;
            self.account.give(&files.key)?;
        }
        if let Some(lines) = &self.setup.watches {
            let path = self.home.path().join(SENTINEL_FILE);
            fs::write(&path, lines).context("cannot write a sentinel's configuration")?;
            self.account.give(&path)?;
        }
        Ok(())
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
        let mut command = Command::new("redis-server");
        command.current_dir(self.home.path());
        if self.setup.watches.is_some() {
            command.arg(SENTINEL_FILE).arg("--sentinel");
        } else {
            command.args(["--save", ""]);
        }
        command
            .args(["--port", &port, "--bind", "127.0.0.1", "--daemonize", "no"])
            .arg("--dir")
            .arg(self.home.path());
        for (option, port) in &self.more_ports {
            command.args([*option, &port.number().to_string()]);
        }
        if let Some(authority) = &self.setup.authority {
            command.args(authority.server_arguments(self.home.path()));
        }
        command.args(&self.setup.arguments);
        self.account.assign(&mut command);
        let log = self.home.path().join("server.log");
        let server = Daemon::spawn("Redis", &mut command, &log)
            .context("is redis-server installed? tests/scripts/install.sh installs it")?;
        self.server = Some(server);
        self.wait_answering().await
    }

    async fn wait_answering(&mut self) -> Result<Start> {
        let port = self.port();
        let password = self.setup.password.as_deref();
        let server = self.server.as_mut().context("Redis was not started")?;
        eventually(START_DEADLINE, "Redis to answer", async || {
            match server.exit_status() {
                Ok(None) => {}
                Ok(Some(_)) => return Ok(Start::Ended(server.log_tail(20))),
                Err(error) => return Err(format!("{error:#}")),
            }
            match ask(port, password, "PING").await {
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

    /// The port it was given for an option, as [`Setup::with_port`] said.
    ///
    /// # Panics
    /// When it was given none.
    pub fn port_of(&self, option: &str) -> u16 {
        let found = self.more_ports.iter().find(|(name, _)| *name == option);
        let (_, port) = found.expect("the setup asks for this port");
        port.number()
    }

    /// Its directory, which it works in.
    pub fn directory(&self) -> &Path {
        self.home.path()
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
        ask(self.port(), self.setup.password.as_deref(), command).await
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

async fn ask(port: u16, password: Option<&str>, command: &str) -> Result<String> {
    tokio::time::timeout(ANSWER_TIMEOUT, async {
        let mut stream = TcpStream::connect(("127.0.0.1", port))
            .await
            .context("cannot connect to Redis")?;
        if let Some(password) = password {
            let answer = exchange(&mut stream, &format!("AUTH {password}")).await?;
            ensure!(answer == "+OK\r\n", "cannot log in to Redis: {answer}");
        }
        exchange(&mut stream, command).await
    })
    .await
    .context("Redis takes too long to answer")?
}

async fn exchange(stream: &mut TcpStream, command: &str) -> Result<String> {
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
}
