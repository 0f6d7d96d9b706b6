//! `make run`: Holdfast in the foreground, ready to be tried out.
//!
//! Starts `holdfast-api` and `syncd run` from beside this program with the
//! user's own environment (embedded mode, then, unless that or a `.env` says
//! otherwise), and prints a token and commands to paste. The API starts first:
//! a mistake that both would complain about is then told once.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures_util::future::select_all;
use holdfast_tests::{Client, eventually, node, tokens};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde_json::json;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal as listen};
use uuid::Uuid;

/// What a shell reports for a program that Ctrl-C has ended.
const INTERRUPTED: u8 = 130;
/// A start takes milliseconds, or seconds where a large buffer is looked through.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// What the processes are given beyond their own deadline.
const GRACE: Duration = Duration::from_secs(5);
/// How long the printed token is good.
const TOKEN_SECONDS: i64 = 24 * 60 * 60;

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("holdfast-run: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<u8> {
    let settings = Settings::read();
    let mut stops = Stops::listen()?;
    let mut running = Vec::new();
    for (name, arguments, address) in settings.programs() {
        let foreign = address.is_some_and(answers_already);
        running.push(Running::start(name, arguments)?);
        let live = async {
            match address {
                // Who answers there isn't ours, and ours is about to say so.
                Some(_) if foreign => std::future::pending().await,
                Some(address) => wait_live(name, address).await,
                None => Ok(()),
            }
        };
        tokio::select! {
            live = live => live?,
            (index, status) = first_end(&mut running) => {
                return ended_early(running, index, status, &mut stops, &settings).await;
            }
            () = stops.next() => return stop_all(running, &mut stops, &settings).await,
        }
    }
    println!("{}", settings.welcome().await?);
    tokio::select! {
        (index, status) = first_end(&mut running) => {
            ended_early(running, index, status, &mut stops, &settings).await
        }
        () = stops.next() => stop_all(running, &mut stops, &settings).await,
    }
}

struct Running {
    name: &'static str,
    child: Child,
}

impl Running {
    /// In a process group of its own, so that a Ctrl-C in the terminal reaches
    /// it once, as the SIGTERM sent from here.
    fn start(name: &'static str, arguments: &[&str]) -> Result<Self> {
        let path = node::binary(name)?;
        let child = Command::new(&path)
            .args(arguments)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", path.display()))?;
        Ok(Self { name, child })
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        // No id any more means that it has ended and been collected.
        let Some(id) = self.child.id() else {
            return Ok(());
        };
        let pid = Pid::from_raw(i32::try_from(id).context("no process has such an id")?);
        signal::kill(pid, signal).with_context(|| format!("cannot send {signal} to {}", self.name))
    }
}

/// Waits for the first of them to end; gives its index and how it ended.
async fn first_end(running: &mut [Running]) -> (usize, ExitStatus) {
    let ends = running.iter_mut().map(|one| Box::pin(one.child.wait()));
    let (status, index, _) = select_all(ends).await;
    (index, status.unwrap_or_default())
}

/// Its own message has been printed by then; only what follows from it is said.
async fn ended_early(
    mut running: Vec<Running>,
    index: usize,
    status: ExitStatus,
    stops: &mut Stops,
    settings: &Settings,
) -> Result<u8> {
    let ended = running.remove(index);
    if running.is_empty() {
        return Ok(exit_code(status));
    }
    stop_all(running, stops, settings).await?;
    eprintln!(
        "holdfast-run: stopped, because {} ended ({status}); its own message is above",
        ended.name
    );
    Ok(exit_code(status))
}

/// Asks all to end and waits for them, a second Ctrl-C for nothing.
async fn stop_all(running: Vec<Running>, stops: &mut Stops, settings: &Settings) -> Result<u8> {
    for one in &running {
        one.signal(Signal::SIGTERM)?;
    }
    let deadline = settings.shutdown_timeout() + GRACE;
    let mut code = 0;
    let ends = async {
        for mut one in running {
            let status = one.child.wait().await.context("cannot wait for a child")?;
            println!("holdfast-run: {} ended ({status})", one.name);
            code = if code == 0 { exit_code(status) } else { code };
        }
        Ok(code)
    };
    // Whatever still runs when this returns is killed by being dropped.
    tokio::select! {
        code = ends => code,
        () = stops.next() => Ok(INTERRUPTED),
        () = tokio::time::sleep(deadline) => bail!("killed what had not ended after {deadline:?}"),
    }
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// SIGINT, SIGTERM and SIGHUP (a closed terminal), all of which mean: stop.
struct Stops {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
}

impl Stops {
    fn listen() -> Result<Self> {
        Ok(Self {
            interrupt: listen(SignalKind::interrupt()).context("cannot listen for SIGINT")?,
            terminate: listen(SignalKind::terminate()).context("cannot listen for SIGTERM")?,
            hang_up: listen(SignalKind::hangup()).context("cannot listen for SIGHUP")?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}

fn answers_already(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok()
}

async fn wait_live(name: &str, address: SocketAddr) -> Result<()> {
    let client = Client::anonymous(&format!("http://{address}"));
    let what = format!("{name} to answer on http://{address}/livez");
    eventually(START_DEADLINE, &what, async || {
        match client.get_outside("/livez").await {
            Ok(answer) if answer.status() == 200 => Ok(()),
            Ok(answer) => Err(format!("status {}", answer.status())),
            Err(error) => Err(format!("{error:#}")),
        }
    })
    .await
}

/// The few variables that this program must know itself; both processes read
/// and check all of them on their own.
struct Settings {
    values: BTreeMap<String, String>,
}

impl Settings {
    /// The environment, and what a `.env` adds to it. One that can't be read is
    /// left to the processes to complain about.
    fn read() -> Self {
        let mut values = BTreeMap::new();
        if let Ok(entries) = dotenvy::from_path_iter(".env") {
            values.extend(entries.filter_map(Result::ok));
        }
        values.extend(env::vars());
        Self { values }
    }

    fn value(&self, name: &str) -> Option<&str> {
        let value = self.values.get(name)?.trim();
        (!value.is_empty()).then_some(value)
    }

    /// In the order of their start, with the address on which each can be asked.
    fn programs(&self) -> [(&'static str, &'static [&'static str], Option<SocketAddr>); 2] {
        [
            ("holdfast-api", &[], self.api_address()),
            ("syncd", &["run"], self.syncd_address()),
        ]
    }

    fn api_address(&self) -> Option<SocketAddr> {
        reachable(self.value("API_ADDR").unwrap_or("127.0.0.1:8080"))
    }

    /// `None` also for `off`.
    fn syncd_address(&self) -> Option<SocketAddr> {
        reachable(self.value("SYNCD_ADDR").unwrap_or("127.0.0.1:8081"))
    }

    fn buffer_path(&self) -> &str {
        let path = self
            .value("BUFFER_PATH")
            .or_else(|| self.value("BOLTDB_PATH"));
        path.unwrap_or("./data/buffer.redb")
    }

    fn shutdown_timeout(&self) -> Duration {
        let seconds = self
            .value("SHUTDOWN_TIMEOUT_SECONDS")
            .and_then(|text| text.parse().ok());
        Duration::from_secs(seconds.unwrap_or(20))
    }

    /// A token for development; `None` where only an issuer can make one.
    fn token(&self) -> Result<Option<String>> {
        if self
            .value("JWT_PUBLIC_KEY_FILE")
            .or_else(|| self.value("JWT_JWKS_FILE"))
            .is_some()
        {
            return Ok(None);
        }
        let mut claims = tokens::claims("dev-user");
        claims["exp"] = json!(claims["iat"].as_i64().unwrap_or_default() + TOKEN_SECONDS);
        claims["jti"] = json!(Uuid::new_v4());
        claims["name"] = json!("Development User");
        for (claim, variable) in [("iss", "JWT_ISSUER"), ("aud", "JWT_AUDIENCE")] {
            if let Some(value) = self.value(variable) {
                claims[claim] = json!(value);
            }
        }
        Ok(Some(tokens::hs256(&self.secret()?, &claims)))
    }

    fn secret(&self) -> Result<String> {
        if let Some(secret) = self.value("JWT_SECRET") {
            return Ok(secret.to_owned());
        }
        let beside_the_buffer = format!("{}.jwt-secret", self.buffer_path());
        let path = self.value("JWT_SECRET_FILE").unwrap_or(&beside_the_buffer);
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
        Ok(text.trim().to_owned())
    }

    async fn welcome(&self) -> Result<String> {
        let api = self.api_address().context("API_ADDR is no address")?;
        let syncd = match self.syncd_address() {
            Some(address) => format!("http://{address}"),
            None => String::from("not listening"),
        };
        let health = Client::anonymous(&format!("http://{api}"))
            .get_outside("/health")
            .await?;
        let mode = health.json()["status"].as_str().unwrap_or("unknown");
        let buffer = self.buffer_path();
        let token = match self.token()? {
            Some(token) => format!(
                "A token for development, good for 24 hours, of the user dev-user:\n\n  export TOKEN={token}"
            ),
            None => String::from(
                "Tokens come from the issuer whose keys are configured:\n\n  export TOKEN=…",
            ),
        };
        Ok(format!(
            "\nHoldfast runs ({mode}).\n  \
             API     http://{api}\n  \
             syncd   {syncd}  (status page)\n  \
             buffer  {buffer}\n\n\
             {token}\n\n{}\n\
             Ctrl-C stops both.\n",
            try_out(api)
        ))
    }
}

/// Commands that work when pasted, alone or all at once.
fn try_out(api: SocketAddr) -> String {
    let base = format!("http://{api}/api/v1");
    let curl = "curl -sS -w '\\n' -H \"Authorization: Bearer $TOKEN\"";
    let json = "-H 'Content-Type: application/json'";
    let id = Uuid::new_v4();
    format!(
        "  {curl} {json} -d '{{\"title\":\"Buy milk\"}}' {base}/tasks\n  \
         {curl} {json} -X PUT -d '{{\"title\":\"Call home\"}}' {base}/tasks/{id}\n  \
         {curl} {json} -X PATCH -d '{{\"status\":\"done\"}}' {base}/tasks/{id}\n  \
         {curl} {base}/tasks\n  \
         curl -sS -w '\\n' http://{api}/health\n"
    )
}

/// The address to ask a process on that listens on `text`; one that listens on
/// every interface is asked on the loopback one.
fn reachable(text: &str) -> Option<SocketAddr> {
    let mut address: SocketAddr = text.parse().ok()?;
    if address.ip().is_unspecified() {
        let loopback: std::net::IpAddr = match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        };
        address.set_ip(loopback);
    }
    Some(address)
}
