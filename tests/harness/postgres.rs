//! A private PostgreSQL server: real, durable, and easy to hurt.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection, Executor};
use tempfile::TempDir;

use crate::account::Account;
use crate::daemon::Daemon;
use crate::ports::ReservedPort;
use crate::postgres_template::{self as template, Installation, ROLE};
use crate::processes::Process;
use crate::wait::eventually;

/// A start after a crash replays the log first; on a busy machine that and the
/// recovery's fsyncs take seconds.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// An immediate stop takes about 0.1 s.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// One attempt to connect, within the deadlines above.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a start is tried anew on another port when somebody who doesn't
/// know our claims took the first.
const PORT_ATTEMPTS: u32 = 5;

/// Who may come in, and how, once passwords are demanded.
const PASSWORD_RULES: &str = "\
local all postgres trust
host all postgres 127.0.0.1/32 trust
host all all 127.0.0.1/32 scram-sha-256
";

/// A PostgreSQL instance in a temporary directory, on a port of its own,
/// listening on 127.0.0.1 only. Dropping it ends it and removes its data.
#[derive(Debug)]
pub struct Postgres {
    // Declared first, so that the server ends before its directory goes.
    server: Option<Daemon>,
    port: ReservedPort,
    installation: Installation,
    account: Account,
    home: TempDir,
}

enum Start {
    Accepting,
    Ended(String),
}

impl Postgres {
    /// Starts an instance from the cached template and waits until it accepts
    /// connections.
    ///
    /// # Errors
    /// When no PostgreSQL is installed or it doesn't come up; with its log.
    pub async fn start() -> Result<Self> {
        Self::start_with(template::copy_to).await
    }

    /// Starts an instance whose system identifier differs from every other's.
    ///
    /// # Errors
    /// As [`Postgres::start`].
    pub async fn start_foreign() -> Result<Self> {
        Self::start_with(template::initialise).await
    }

    /// Starts an instance on data that `make_data` puts into the directory it is given, which isn't there yet.
    pub(crate) async fn start_with(
        make_data: impl FnOnce(&Path, &Installation, &Account) -> Result<()>,
    ) -> Result<Self> {
        let account = Account::for_servers()?;
        let installation = Installation::find()?;
        let home = tempfile::Builder::new()
            .prefix("holdfast-pg-")
            .tempdir()
            .context("cannot create a temporary directory")?;
        account.give(home.path())?;
        make_data(&home.path().join("data"), &installation, &account)?;
        let mut instance = Self {
            server: None,
            port: ReservedPort::claim()?,
            installation,
            account,
            home,
        };
        instance.first_start().await?;
        Ok(instance)
    }

    async fn first_start(&mut self) -> Result<()> {
        for _ in 0..PORT_ATTEMPTS {
            match self.launch().await? {
                Start::Accepting => return Ok(()),
                Start::Ended(log) if log.contains("could not bind") => {
                    self.port = ReservedPort::claim()?;
                }
                Start::Ended(log) => bail!("PostgreSQL ended while starting:\n{log}"),
            }
        }
        bail!("every port tried for PostgreSQL was taken by somebody else")
    }

    async fn launch(&mut self) -> Result<Start> {
        let mut command = Command::new(self.installation.program("postgres"));
        command
            .env_clear()
            .current_dir(self.home.path())
            .arg("-D")
            .arg(self.data_directory());
        for setting in self.settings() {
            command.args(["-c", &setting]);
        }
        self.account.assign(&mut command);
        let log = self.home.path().join("server.log");
        self.server = Some(Daemon::spawn("PostgreSQL", &mut command, &log)?);
        self.wait_accepting().await
    }

    /// Durability stays at its defaults; what is made small is only memory.
    fn settings(&self) -> Vec<String> {
        vec![
            format!("port={}", self.port.number()),
            String::from("listen_addresses=127.0.0.1"),
            format!("unix_socket_directories={}", self.home.path().display()),
            String::from("shared_buffers=16MB"),
            // So that no shared memory outlives a SIGKILL and the directory.
            String::from("dynamic_shared_memory_type=mmap"),
        ]
    }

    async fn wait_accepting(&mut self) -> Result<Start> {
        let url = self.admin_url("postgres");
        let server = self.server.as_mut().context("PostgreSQL was not started")?;
        eventually(
            START_DEADLINE,
            "PostgreSQL to accept connections",
            async || {
                match server.exit_status() {
                    Ok(None) => {}
                    Ok(Some(_)) => return Ok(Start::Ended(server.log_tail(20))),
                    Err(error) => return Err(format!("{error:#}")),
                }
                match connect(&url).await {
                    Ok(_) => Ok(Start::Accepting),
                    Err(error) => Err(format!("{error:#}")),
                }
            },
        )
        .await
    }

    /// The port it listens on, the same after every restart.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The URL of `database` for the ordinary role that owns it.
    pub fn url(&self, database: &str) -> String {
        self.url_through(self.port(), database)
    }

    /// As [`Postgres::url`], through a proxy that listens on `port`.
    pub fn url_through(&self, port: u16, database: &str) -> String {
        format!("postgres://{ROLE}:{ROLE}@127.0.0.1:{port}/{database}?sslmode=disable")
    }

    /// The URL of `database` for the superuser.
    pub fn admin_url(&self, database: &str) -> String {
        let port = self.port();
        format!("postgres://postgres@127.0.0.1:{port}/{database}?sslmode=disable")
    }

    /// Creates an empty database owned by the ordinary role; gives its URL.
    ///
    /// # Errors
    /// When it exists or the server doesn't answer.
    pub async fn create_database(&self, name: &str) -> Result<String> {
        let mut admin = connect(&self.admin_url("postgres")).await?;
        let create = format!("CREATE DATABASE \"{name}\" OWNER {ROLE}");
        admin
            .execute(sqlx::raw_sql(sqlx::AssertSqlSafe(create)))
            .await
            .with_context(|| format!("cannot create database {name}"))?;
        Ok(self.url(name))
    }

    /// A connection to `database` as the ordinary role.
    ///
    /// # Errors
    /// When the server doesn't accept it within two seconds.
    pub async fn connect(&self, database: &str) -> Result<PgConnection> {
        connect(&self.url(database)).await
    }

    /// A connection to `database` as the superuser.
    ///
    /// # Errors
    /// As [`Postgres::connect`].
    pub async fn connect_admin(&self, database: &str) -> Result<PgConnection> {
        connect(&self.admin_url(database)).await
    }

    /// Makes it ask the ordinary role for its password, which it doesn't do by
    /// itself, so that a wrong one can be tried; the superuser comes in without.
    ///
    /// # Errors
    /// When the rules can't be written or the server doesn't read them.
    pub async fn demand_passwords(&self) -> Result<()> {
        self.set_rules(PASSWORD_RULES).await
    }

    /// Makes it read these rules of who may come in (`pg_hba.conf`).
    pub(crate) async fn set_rules(&self, rules: &str) -> Result<()> {
        let file = self.data_directory().join("pg_hba.conf");
        fs::write(&file, rules).with_context(|| format!("cannot write {}", file.display()))?;
        self.reload().await
    }

    /// Changes a setting that takes no restart, for new sessions and after restarts too.
    ///
    /// # Errors
    /// When it isn't taken.
    pub async fn configure(&self, setting: &str, value: &str) -> Result<()> {
        let mut admin = connect(&self.admin_url("postgres")).await?;
        let alter = format!("ALTER SYSTEM SET {setting} = '{value}'");
        admin
            .execute(sqlx::raw_sql(sqlx::AssertSqlSafe(alter)))
            .await
            .with_context(|| format!("cannot set {setting}"))?;
        self.reload().await
    }

    /// Every connection made afterwards has the settings as they are in the files.
    async fn reload(&self) -> Result<()> {
        let mut admin = connect(&self.admin_url("postgres")).await?;
        let before = settings_read_at(&mut admin).await?;
        admin
            .execute("SELECT pg_reload_conf()")
            .await
            .context("cannot make PostgreSQL read its settings")?;
        eventually(START_DEADLINE, "the settings to be read", async || {
            let look = async {
                let mut fresh = connect(&self.admin_url("postgres")).await?;
                settings_read_at(&mut fresh).await
            };
            match look.await {
                Ok(at) if at > before => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await
    }

    /// Kills the postmaster with SIGKILL and waits until its children are gone
    /// too, since until then a new start is refused.
    ///
    /// # Errors
    /// When a child survives it.
    pub async fn kill9(&mut self) -> Result<()> {
        self.end_with(Signal::SIGKILL).await
    }

    /// Stops it at once without a checkpoint, as `pg_ctl stop -m immediate`.
    ///
    /// # Errors
    /// When it doesn't end in time.
    pub async fn stop_immediate(&mut self) -> Result<()> {
        self.end_with(Signal::SIGQUIT).await
    }

    async fn end_with(&mut self, signal: Signal) -> Result<()> {
        let Some(mut server) = self.server.take() else {
            return Ok(());
        };
        let children = children(&server);
        // A frozen child would never notice that its parent has died.
        server.signal(Signal::SIGCONT)?;
        for child in &children {
            child.signal(Signal::SIGCONT)?;
        }
        server.signal(signal)?;
        server.wait_exit(STOP_DEADLINE).await?;
        eventually(STOP_DEADLINE, "PostgreSQL's children to end", async || {
            let left = children.iter().filter(|child| !child.is_gone()).count();
            if left == 0 {
                Ok(())
            } else {
                Err(format!("{left} still there"))
            }
        })
        .await
    }

    /// Stops every process of the server (SIGSTOP): connections stay open, new
    /// ones are accepted by the kernel, and nothing is ever answered.
    ///
    /// # Errors
    /// When a signal can't be sent.
    pub fn freeze(&mut self) -> Result<()> {
        // The postmaster first, or it could fork a child that goes on serving.
        self.signal_all(Signal::SIGSTOP)
    }

    /// Lets a frozen server go on.
    ///
    /// # Errors
    /// When a signal can't be sent.
    pub fn thaw(&mut self) -> Result<()> {
        self.signal_all(Signal::SIGCONT)
    }

    fn signal_all(&mut self, signal: Signal) -> Result<()> {
        let server = self.server.as_mut().context("PostgreSQL is not running")?;
        server.signal(signal)?;
        for child in children(server) {
            child.signal(signal)?;
        }
        Ok(())
    }

    /// Starts it again on the same port and data after a kill or a stop, and
    /// returns with the first connection that succeeds.
    ///
    /// # Errors
    /// When it is running, or doesn't come up; with its log.
    pub async fn start_again(&mut self) -> Result<()> {
        if self.server.is_some() {
            bail!("PostgreSQL is still running");
        }
        match self.launch().await? {
            Start::Accepting => Ok(()),
            Start::Ended(log) => bail!("PostgreSQL ended while starting again:\n{log}"),
        }
    }

    pub(crate) fn account(&self) -> &Account {
        &self.account
    }

    pub(crate) fn data_directory(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// SIGKILL leaves a small System V segment behind (the lock against a
    /// second server), which only a next start on the same data would remove.
    fn remove_shared_memory(&self) {
        let Ok(text) = fs::read_to_string(self.data_directory().join("postmaster.pid")) else {
            return;
        };
        let segment = text
            .lines()
            .nth(6)
            .and_then(|line| line.split_whitespace().nth(1));
        if let Some(id) = segment {
            // Nothing is lost but a few bytes of the kernel's when this fails.
            let _ = Command::new("ipcrm").args(["-m", id]).output();
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            let family = children(&server);
            drop(server);
            for child in family {
                // It can only fail for one that is gone already.
                let _ = child.signal(Signal::SIGKILL);
            }
        }
        self.remove_shared_memory();
    }
}

fn children(server: &Daemon) -> Vec<Process> {
    server
        .process()
        .map(|postmaster| postmaster.children())
        .unwrap_or_default()
}

/// When the settings that a connection has were read.
async fn settings_read_at(connection: &mut PgConnection) -> Result<f64> {
    let query = "SELECT extract(epoch FROM pg_conf_load_time())::float8";
    let at = sqlx::query_scalar(query).fetch_one(connection).await;
    at.context("cannot ask PostgreSQL when it read its settings")
}

async fn connect(url: &str) -> Result<PgConnection> {
    let options = PgConnectOptions::from_str(url).context("not a PostgreSQL URL")?;
    tokio::time::timeout(CONNECT_TIMEOUT, PgConnection::connect_with(&options))
        .await
        .context("no answer within two seconds")?
        .context("cannot connect to PostgreSQL")
}
