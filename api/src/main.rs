//! The HTTP process, from its start to its end.

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use clap::error::ErrorKind;
use holdfast_api::middleware::token::VerifierError;
use holdfast_api::signal::StopSignals;
use holdfast_api::systemd;
use holdfast_shared::config::{Config, ConfigFaults, exit};
use holdfast_shared::repository::{ForeignBuffer, OpenError};
use holdfast_shared::telemetry;
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Runtime;

/// How long the end waits for work on files that has not come back, such as a lock a stopped process holds.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// Connections that wait to be taken; a client beyond them tries again after a second, then two, then four. The runtime
/// would let 128 wait. More would only make the last of them wait longer, when there are as many as are taken at once:
/// then they are taken at the pace of [`holdfast_api::server::SPARE_CONNECTIONS`] a second.
const BACKLOG: u32 = 1024;

/// glibc's allocator took a fifth of the CPU of a drain, and of a request and kept what its threads had freed.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Holdfast's HTTP process. It is configured by environment variables and, outside production, by .env in the working
/// directory; `syncd config show` lists them.
#[derive(Debug, Parser)]
#[command(name = "holdfast-api", version)]
struct CommandLine {}

/// Why the process ends: a line for people, a number for service managers.
struct Failure {
    code: u8,
    line: String,
}

fn main() -> ExitCode {
    if let Err(code) = read_command_line() {
        return ExitCode::from(code);
    }
    match start() {
        Ok(()) => ExitCode::from(exit::OK),
        Err(failure) => {
            eprintln!("holdfast-api: {}", failure.line);
            ExitCode::from(failure.code)
        }
    }
}

fn start() -> Result<(), Failure> {
    install_crypto();
    let config = Config::load().map_err(|faults| Failure {
        code: exit::CONFIG,
        line: told(&faults),
    })?;
    let runtime = Runtime::new().map_err(failing(exit::INTERNAL))?;
    let lived = runtime.block_on(live(config));
    runtime.shutdown_timeout(LAST_WAIT);
    lived
}

async fn live(config: Config) -> Result<(), Failure> {
    let telemetry = telemetry::init("holdfast-api", &config.log).map_err(failing(exit::CONFIG))?;
    let signals = StopSignals::listen().map_err(failing(exit::INTERNAL))?;
    let listener = listen(config.api_addr).await?;
    let upkeep = telemetry.spawn_upkeep();
    let served = holdfast_api::run(listener, config, telemetry.metrics(), signals.first()).await;
    upkeep.abort();
    if served.is_ok() {
        tracing::info!("ended");
    }
    served.map_err(|error| Failure {
        code: exit_code(&error),
        line: format!("{error:#}"),
    })
}

/// All faults of the configuration, one line for each, as if each were the only one.
fn told(faults: &ConfigFaults) -> String {
    let lines: Vec<String> = faults.faults().iter().map(ToString::to_string).collect();
    lines.join("\nholdfast-api: ")
}

/// One provider for every TLS connection of the process, chosen before any is made.
fn install_crypto() {
    let installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    installed.expect("nothing has chosen a provider before main");
}

/// Help and version are asked for and end well; anything else that ends here is a wrong use.
fn read_command_line() -> Result<(), u8> {
    let Err(error) = CommandLine::try_parse() else {
        return Ok(());
    };
    let code = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => exit::OK,
        _ => exit::USAGE,
    };
    match error.print() {
        Ok(()) => Err(code),
        Err(_) => Err(exit::IO),
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, Failure> {
    let passed = systemd::passed_listener();
    if let Some(listener) = passed.map_err(|error| Failure {
        code: exit::UNAVAILABLE,
        line: format!("{error:#}"),
    })? {
        return Ok(listener);
    }
    bind(address).map_err(|error| cannot_listen(address, &error))
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // A restart must not wait for the connections of the process before.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn cannot_listen(address: SocketAddr, error: &io::Error) -> Failure {
    let (code, line) = match error.kind() {
        io::ErrorKind::AddrInUse => (
            exit::UNAVAILABLE,
            format!(
                "{address} is in use by another process: stop that one, or set API_ADDR to a free address"
            ),
        ),
        io::ErrorKind::AddrNotAvailable => (
            exit::CONFIG,
            format!(
                "this machine has no address {}: set API_ADDR to one it has",
                address.ip()
            ),
        ),
        io::ErrorKind::PermissionDenied => (
            exit::UNAVAILABLE,
            format!("not allowed to listen on {address}: set API_ADDR to a port above 1023"),
        ),
        _ => (
            exit::UNAVAILABLE,
            format!("can't listen on {address}: {error}"),
        ),
    };
    Failure { code, line }
}

fn failing<E: Display>(code: u8) -> impl FnOnce(E) -> Failure {
    move |error| Failure {
        code,
        line: error.to_string(),
    }
}

/// What a service manager is told: another database or a bad key is for a person to set right, a disk may be.
fn exit_code(error: &anyhow::Error) -> u8 {
    let of_keys = error.downcast_ref().map(|error| match error {
        VerifierError::Io(_) | VerifierError::DevelopmentSecret(_) => exit::IO,
        _ => exit::CONFIG,
    });
    let of_opening = error.downcast_ref().map(|error| match error {
        OpenError::Buffer(_) => exit::IO,
        OpenError::Foreign(_) => exit::CONFIG,
    });
    let of_meeting = error.downcast_ref::<ForeignBuffer>().map(|_| exit::CONFIG);
    of_keys
        .or(of_opening)
        .or(of_meeting)
        .unwrap_or(exit::INTERNAL)
}
