//! The command line: one file for each group of commands.
//!
//! Commands read the buffer beside whoever has it open, and act on it as one more writer, so they work with the daemon
//! running or not. They write results to standard output, everything else to standard error.

mod arguments;
mod operation;
mod output;

mod config;
mod database;
mod dead;
mod document;
mod drain;
mod items;
mod place;
mod run;
mod salvage;
mod status;
mod verify;

use std::ffi::OsString;
use std::future::Future;
use std::time::Duration;

use clap::Parser;
use holdfast_shared::config::exit;

use crate::Failure;
use arguments::{Arguments, Command};

/// How long the process waits at its end for threads that are still reading a file.
const THREADS_DEADLINE: Duration = Duration::from_secs(1);

/// Runs a command line, the program's name first; gives the exit code.
pub fn run(words: impl IntoIterator<Item = OsString>) -> u8 {
    let arguments = match Arguments::try_parse_from(words) {
        Ok(arguments) => arguments,
        Err(error) => return refuse(&error),
    };
    match obey(arguments.command.unwrap_or_default()) {
        Ok(code) => code,
        Err(failure) => {
            output::complain(&format!("syncd: {failure}"));
            failure.code
        }
    }
}

/// Help and version are no errors; anything else is a usage error, whose code isn't clap's own.
fn refuse(error: &clap::Error) -> u8 {
    let _nobody_listens = error.print();
    if error.use_stderr() {
        exit::USAGE
    } else {
        exit::OK
    }
}

fn obey(command: Command) -> Result<u8, Failure> {
    match command {
        Command::Run(arguments) => block_on(run::run(arguments)),
        Command::Status(arguments) => block_on(status::status(arguments)),
        Command::Items { command } => items::items(&command),
        Command::Dead { command } => block_on(dead::dead(command)),
        Command::Drain(arguments) => block_on(drain::drain(arguments)),
        Command::Verify(arguments) => block_on(verify::verify(arguments)),
        Command::Salvage(arguments) => block_on(salvage::salvage(arguments)),
        Command::Migrate => block_on(database::migrate()),
        Command::Adopt => block_on(database::adopt()),
        Command::Config { command } => config::config(&command),
        Command::Completions { shell } => document::completions(shell),
        Command::Man => document::man(),
    }
}

fn block_on(work: impl Future<Output = Result<u8, Failure>>) -> Result<u8, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime =
        runtime.map_err(|error| Failure::internal(format!("can't start the runtime: {error}")))?;
    let outcome = runtime.block_on(work);
    runtime.shutdown_timeout(THREADS_DEADLINE);
    outcome
}
