//! Runs a command with a private, migrated PostgreSQL: what `make sqlx` needs
//! to let sqlx look at the real tables.
//!
//! `holdfast-postgres MIGRATIONS COMMAND [ARGUMENT…]` starts a server, applies
//! the migrations of that directory, runs the command with `DATABASE_URL` set,
//! and ends with its exit code.

use std::env;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use holdfast_tests::Postgres;
use sqlx::migrate::Migrator;
use tokio::process::Command;

/// `EX_USAGE` of sysexits.
const USAGE: u8 = 64;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [migrations, program, rest @ ..] = arguments.as_slice() else {
        eprintln!("usage: holdfast-postgres MIGRATIONS COMMAND [ARGUMENT…]");
        return ExitCode::from(USAGE);
    };
    let outcome = tokio::select! {
        outcome = run(Path::new(migrations), program, rest) => outcome,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("holdfast-postgres: {error:#}");
        ExitCode::FAILURE
    })
}

async fn run(migrations: &Path, program: &str, arguments: &[String]) -> Result<ExitCode> {
    let postgres = Postgres::start().await?;
    let url = postgres.create_database("holdfast").await?;
    let migrator = Migrator::new(migrations)
        .await
        .with_context(|| format!("cannot read the migrations in {}", migrations.display()))?;
    let mut connection = postgres.connect("holdfast").await?;
    migrator
        .run(&mut connection)
        .await
        .context("cannot apply the migrations")?;
    let status = Command::new(program)
        .args(arguments)
        .env("DATABASE_URL", url)
        .status()
        .await
        .with_context(|| format!("cannot start {program}"))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}
