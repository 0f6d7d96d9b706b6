//! `syncd verify`: is the buffer whole?

use holdfast_shared::buffer::{self, Verification};
use holdfast_shared::config::{Config, exit};
use serde::Serialize;
use tokio::task::spawn_blocking;

use super::arguments::VerifyArguments;
use super::database::configured_database;
use super::output::{self, Form};
use super::place;
use crate::Failure;

/// The outcome for programs.
#[derive(Debug, Serialize)]
struct View {
    path: String,
    whole: bool,
    items: u64,
    damaged: u64,
    dead_letters: u64,
    set_aside: u64,
    database: Option<String>,
    findings: Vec<String>,
}

/// Checks the buffer.
///
/// # Errors
/// When there is none, or it can't be read at all. What is wrong with it is the outcome, and exit code 74.
pub async fn verify(arguments: VerifyArguments) -> Result<u8, Failure> {
    let config = Config::load()?;
    let path = config.buffer.path.clone();
    if !place::is_there(&path)? {
        return Err(place::no_file(&path));
    }
    let verifying = spawn_blocking(move || buffer::verify(&path)).await;
    let mut found = verifying
        .map_err(|panic| Failure::internal(format!("verifying the buffer panicked: {panic}")))??;
    let configured = configured_database(&config).await;
    if let (Some(own), Some(configured)) = (found.database, configured)
        && own != configured
    {
        let finding = "it belongs to another database than the one that is configured";
        found.findings.push(finding.to_owned());
    }
    let view = view(&config, found);
    let text = match Form::from(arguments.json) {
        Form::Json => output::json(&view)?,
        Form::Text => describe(&view),
    };
    output::print(&text)?;
    Ok(if view.whole { exit::OK } else { exit::IO })
}

fn view(config: &Config, found: Verification) -> View {
    View {
        path: config.buffer.path.display().to_string(),
        whole: found.findings.is_empty(),
        items: found.items,
        damaged: found.damaged,
        dead_letters: found.letters,
        set_aside: found.set_aside,
        database: found.database.map(|id| id.to_string()),
        findings: found.findings,
    }
}

fn describe(view: &View) -> String {
    let verdict = if view.whole { "whole" } else { "damaged" };
    let (items, letters) = (view.items, view.dead_letters);
    let mut text = format!("{verdict}: {items} items waiting, {letters} dead letters\n");
    for finding in &view.findings {
        text += &format!("- {}\n", output::printable(finding));
    }
    text
}
