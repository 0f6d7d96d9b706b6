//! `syncd salvage`: what a damaged buffer file still holds.

use std::path::{Path, PathBuf};

use holdfast_shared::buffer::{
    Buffer, Manner, Reading, SalvageReport, Salvaged, mark_salvaged, read_wreck, set_aside_files,
};
use holdfast_shared::config::{Config, exit};
use tokio::task::spawn_blocking;

use super::arguments::SalvageArguments;
use super::operation::OperationView;
use super::output;
use super::place;
use crate::{Failure, daemon};

/// Recovers into the buffer, or prints.
///
/// # Errors
/// When the file can't be read at all, belongs to another database, or is the buffer itself; when the buffer can't be
/// written. That some of it couldn't be read is no error, but said, and exit code 74.
pub async fn salvage(arguments: SalvageArguments) -> Result<u8, Failure> {
    let config = Config::load()?;
    let file = arguments.file;
    if arguments.export {
        return export(&file);
    }
    if is_same_file(&file, &config.buffer.path) {
        return Err(Failure::usage(
            "that is the buffer itself: give a file that was set aside, or --export",
        ));
    }
    let buffer = place::buffer(&config).await?;
    let salvaged = take_in(&config, &buffer, file).await;
    daemon::close(buffer, config.shutdown_timeout).await;
    let (report, reading) = salvaged?;
    output::print(&describe(&report, reading))?;
    let is_all = report.unreadable == Some(0) && report.damaged == 0;
    Ok(if is_all { exit::OK } else { exit::IO })
}

/// Recovers what the files that were set aside beside the buffer still hold, as the daemon does by itself, and says on
/// standard error what came of each. One that can't be salvaged stays where it is.
///
/// # Errors
/// When the buffer's directory can't be read.
pub async fn salvage_set_aside(config: &Config, buffer: &Buffer) -> Result<(), Failure> {
    for file in waiting_files(buffer.path())? {
        let said = match take_in(config, buffer, file.clone()).await {
            Ok((report, reading)) => {
                let name = match mark_salvaged(buffer.path(), &file) {
                    Ok(marked) => marked.display().to_string(),
                    Err(error) => format!("{}, which can't be renamed: {error}", file.display()),
                };
                let what = describe(&report, reading);
                format!("salvaged {name}\n{}", what.trim_end())
            }
            Err(failure) => format!("can't salvage {}: {failure}", file.display()),
        };
        output::complain(&format!("syncd: {said}"));
    }
    Ok(())
}

/// Files set aside beside the buffer that have not been salvaged, the oldest first.
///
/// # Errors
/// When the buffer's directory can't be read.
pub fn waiting_files(buffer: &Path) -> Result<Vec<PathBuf>, Failure> {
    set_aside_files(buffer).map_err(|error| {
        Failure::io(format!(
            "can't look for damaged files beside {}: {error}",
            buffer.display()
        ))
    })
}

async fn take_in(
    config: &Config,
    buffer: &Buffer,
    file: PathBuf,
) -> Result<(SalvageReport, Reading), Failure> {
    let manner = match config.postgres {
        Some(_) => Manner::Queued,
        None => Manner::Folded,
    };
    let buffer = buffer.clone();
    let salvaged = spawn_blocking(move || buffer.salvage(&file, manner)).await;
    let salvaged =
        salvaged.map_err(|panic| Failure::internal(format!("salvaging panicked: {panic}")))?;
    Ok(salvaged?)
}

fn export(file: &Path) -> Result<u8, Failure> {
    let mut damaged = 0u64;
    let reading = read_wreck(file, |found| {
        let view = match found {
            Salvaged::Item(item) => OperationView::new(&item.operation, item.record()),
            Salvaged::Letter(letter) => OperationView::new(&letter.item.operation, letter.record()),
            Salvaged::Damaged(item) => {
                damaged += 1;
                OperationView::damaged(&item)
            }
        };
        let line = serde_json::to_string(&view).map_err(Failure::internal)?;
        output::print(&(line + "\n")).map(drop)
    })?;
    let is_all = reading == Reading::Whole && damaged == 0;
    Ok(if is_all { exit::OK } else { exit::IO })
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let canonical = |path: &Path| path.canonicalize().ok();
    canonical(one).is_some_and(|one| Some(one) == canonical(other))
}

fn describe(report: &SalvageReport, reading: Reading) -> String {
    let how = match reading {
        Reading::Whole => "all of its tables could be read",
        Reading::Partly => "some of its tables could be read, the rest was found in its bytes",
        Reading::Carved => "it does not open, all was found in its bytes",
    };
    let unreadable = report.unreadable.map_or_else(
        || "unknown, its counters can't be read".to_owned(),
        |count| count.to_string(),
    );
    format!(
        "{how}\nitems queued again  {}\nalready there       {}\ndead letters        {}\n\
         damaged items       {} (syncd dead list)\nrevocations         {}\nunreadable          {unreadable}\n",
        report.items, report.already_there, report.letters, report.damaged, report.sessions
    )
}
