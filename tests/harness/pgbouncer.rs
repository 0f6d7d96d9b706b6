//! A private PgBouncer in transaction mode: what a client asks runs on whichever server connection is free, one
//! transaction at a time.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor};
use tempfile::TempDir;

use crate::account::Account;
use crate::daemon::Daemon;
use crate::ports::ReservedPort;
use crate::postgres_template::ROLE;
use crate::wait::eventually;

const START_DEADLINE: Duration = Duration::from_secs(30);
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// One command at its console; `PAUSE` waits for transactions to end.
const COMMAND_DEADLINE: Duration = Duration::from_secs(20);
/// As for PostgreSQL: a lost port is replaced a few times.
const PORT_ATTEMPTS: u32 = 5;
/// The first version that keeps its clients' prepared statements apart.
const KEEPS_SINCE: (u32, u32) = (1, 21);

/// What becomes of prepared statements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statements {
    /// Their names reach the server as they are, so that those of different clients meet there: every version before
    /// 1.21, and later ones with `max_prepared_statements = 0`.
    Lost,
    /// They get names of PgBouncer's own, and are prepared again wherever they are missing.
    Kept,
}

/// A PgBouncer on a port of its own, listening on 127.0.0.1 only. Dropping it ends it.
#[derive(Debug)]
pub struct PgBouncer {
    // Declared first, so that it ends before its directory goes.
    server: Option<Daemon>,
    port: ReservedPort,
    program: PathBuf,
    account: Account,
    recipe: Recipe,
    home: TempDir,
}

#[derive(Debug)]
struct Recipe {
    target: u16,
    settings: String,
}

enum Start {
    Answering,
    Ended(String),
}

impl PgBouncer {
    /// Starts one before the server on port `target` of 127.0.0.1, with these settings besides.
    ///
    /// # Errors
    /// When no fitting PgBouncer is installed, or it doesn't come up; with its log.
    pub async fn start(
        target: u16,
        statements: Statements,
        settings: &[(&str, &str)],
    ) -> Result<Self> {
        let (program, version) = find(statements)?;
        let mut lines: Vec<String> = settings
            .iter()
            .map(|(name, value)| format!("{name} = {value}"))
            .collect();
        if version >= KEEPS_SINCE {
            let most = if statements == Statements::Kept {
                100
            } else {
                0
            };
            lines.push(format!("max_prepared_statements = {most}"));
        }
        let home = tempfile::Builder::new()
            .prefix("holdfast-pgbouncer-")
            .tempdir()
            .context("cannot create a temporary directory")?;
        let account = Account::for_servers()?;
        account.give(home.path())?;
        let mut instance = Self {
            server: None,
            port: ReservedPort::claim()?,
            program,
            account,
            recipe: Recipe {
                target,
                settings: lines.join("\n"),
            },
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
                Start::Ended(log) => bail!("PgBouncer ended while starting:\n{log}"),
            }
        }
        bail!("every port tried for PgBouncer was taken by somebody else")
    }

    async fn launch(&mut self) -> Result<Start> {
        let file = self.home.path().join("pgbouncer.ini");
        fs::write(&file, self.configuration()).context("cannot write its configuration")?;
        let users = format!("\"{ROLE}\" \"{ROLE}\"\n\"postgres\" \"\"\n");
        fs::write(self.home.path().join("users"), users).context("cannot write its users")?;
        let mut command = Command::new(&self.program);
        command.current_dir(self.home.path()).arg(&file);
        let log = self.home.path().join("server.log");
        self.server = Some(Daemon::spawn("PgBouncer", &mut command, &log)?);
        self.wait_answering().await
    }

    /// A server that failed is tried again soon, not after a quarter of a minute.
    fn configuration(&self) -> String {
        let Recipe { target, settings } = &self.recipe;
        let home = self.home.path().display();
        let port = self.port.number();
        let user = self.account.name().map(|name| format!("user = {name}"));
        let user = user.unwrap_or_default();
        format!(
            "[databases]\n* = host=127.0.0.1 port={target}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n{user}\n\
             auth_type = trust\nauth_file = {home}/users\nadmin_users = postgres\n\
             pool_mode = transaction\nserver_login_retry = 0.2\n{settings}\n"
        )
    }

    async fn wait_answering(&mut self) -> Result<Start> {
        let console = self.console();
        let server = self.server.as_mut().context("it was not started")?;
        eventually(START_DEADLINE, "PgBouncer to answer", async || {
            match server.exit_status() {
                Ok(None) => {}
                Ok(Some(_)) => return Ok(Start::Ended(server.log_tail(20))),
                Err(error) => return Err(format!("{error:#}")),
            }
            match console.connect().await {
                Ok(_) => Ok(Start::Answering),
                Err(error) => Err(format!("{error:#}")),
            }
        })
        .await
    }

    /// The port it listens on, the same after every restart.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// How another of its clients connects to `database`.
    pub fn options(&self, database: &str) -> PgConnectOptions {
        self.console().username(ROLE).database(database)
    }

    fn console(&self) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.port())
            .username("postgres")
            .database("pgbouncer")
            .ssl_mode(PgSslMode::Disable)
            .extra_float_digits(None)
            .statement_cache_capacity(0)
    }

    /// Runs a command at its console, such as `PAUSE`.
    ///
    /// # Errors
    /// When it is refused, or takes too long.
    pub async fn command(&self, command: &str) -> Result<()> {
        let run = async {
            let mut console: PgConnection = self.console().connect().await?;
            let command = sqlx::raw_sql(AssertSqlSafe(command.to_owned()));
            console.execute(command).await
        };
        let done = tokio::time::timeout(COMMAND_DEADLINE, run).await;
        done.with_context(|| format!("PgBouncer takes too long for {command}"))?
            .with_context(|| format!("PgBouncer refuses {command}"))?;
        Ok(())
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

    /// Starts it again on the same port after a kill.
    ///
    /// # Errors
    /// When it is running, or doesn't come up; with its log.
    pub async fn start_again(&mut self) -> Result<()> {
        ensure!(self.server.is_none(), "PgBouncer is still running");
        match self.launch().await? {
            Start::Answering => Ok(()),
            Start::Ended(log) => bail!("PgBouncer ended while starting again:\n{log}"),
        }
    }
}

/// A PgBouncer that can do this, and its version: the system's, else the newer one that
/// `tests/scripts/install.sh` puts beside the binaries where the system's is too old.
fn find(statements: Statements) -> Result<(PathBuf, (u32, u32))> {
    let own = env::current_exe().context("cannot find the path of this executable")?;
    let beside = own
        .ancestors()
        .map(|directory| directory.join("pgbouncer/pgbouncer"));
    let candidates = [PathBuf::from("/usr/sbin/pgbouncer")]
        .into_iter()
        .chain(beside)
        .filter(|program| program.is_file());
    for program in candidates {
        let version = version(&program)?;
        if statements == Statements::Lost || version >= KEEPS_SINCE {
            return Ok((program, version));
        }
    }
    bail!("no PgBouncer found that can do this; run tests/scripts/install.sh, which installs it")
}

fn version(program: &PathBuf) -> Result<(u32, u32)> {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .with_context(|| format!("cannot ask {} for its version", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let parts = text
        .lines()
        .next()
        .and_then(|line| line.strip_prefix("PgBouncer "));
    let mut numbers = parts.unwrap_or_default().split('.').map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => bail!("{} told no version: {text}", program.display()),
    }
}
