//! `syncd dead`: dead letters, in the buffer and in its archive.

use std::collections::HashSet;
use std::path::Path;

use holdfast_shared::buffer::{BufferError, DeadLetter, Reader, read_archive};
use holdfast_shared::config::{Config, exit};
use holdfast_shared::domain::OperationId;

use super::arguments::{Chosen, DeadCommand};
use super::operation::{OperationView, print_list, print_one};
use super::output::{self, Form};
use super::place;
use crate::Failure;
use crate::drain::Cause;

/// Letters read, queued again or discarded in one transaction.
const STEP: usize = 500;

/// Does what was asked.
///
/// # Errors
/// When the buffer or the archive can't be used, or a letter that was named isn't there.
pub async fn dead(command: DeadCommand) -> Result<u8, Failure> {
    let config = Config::load()?;
    match command {
        DeadCommand::List { limit, from, json } => {
            list(&config, limit, from.as_deref(), json.into())?
        }
        DeadCommand::Show { id, json } => show(&config, id, json.into())?,
        DeadCommand::Retry(Chosen {
            ids,
            from: Some(file),
            ..
        }) => retry_archived(&config, &file, ids).await?,
        DeadCommand::Retry(chosen) => retry(&config, &chosen).await?,
        DeadCommand::Discard { ids, all } => {
            discard(
                &config,
                &Chosen {
                    ids,
                    all,
                    from: None,
                },
            )
            .await?
        }
        DeadCommand::Export(chosen) => export(&config, &chosen)?,
    }
    Ok(exit::OK)
}

fn list(config: &Config, limit: usize, from: Option<&Path>, form: Form) -> Result<(), Failure> {
    let mut letters = match from {
        Some(file) => archived(file)?,
        None => place::reader(config)?
            .map(|reader| first(&reader, limit))
            .transpose()?
            .unwrap_or_default(),
    };
    letters.truncate(limit);
    let mut views = views(&letters);
    if from.is_none() {
        views.extend(damaged(config, limit - letters.len())?);
    }
    print_list(&views, form)
}

/// Up to `limit` items that were set aside as damaged.
fn damaged(config: &Config, limit: usize) -> Result<Vec<OperationView>, Failure> {
    let Some(reader) = place::reader(config)? else {
        return Ok(Vec::new());
    };
    let damaged = reader.list_damaged(limit)?;
    Ok(damaged.iter().map(OperationView::damaged).collect())
}

fn show(config: &Config, id: OperationId, form: Form) -> Result<(), Failure> {
    let reader = place::reader(config)?;
    let letter = reader
        .map(|reader| reader.find_dead(id))
        .transpose()?
        .flatten();
    let letter = letter.ok_or_else(|| not_dead(id))?;
    print_one(
        OperationView::new(&letter.item.operation, letter.record()),
        form,
    )
}

fn export(config: &Config, chosen: &Chosen) -> Result<(), Failure> {
    let letters = match &chosen.from {
        Some(file) => only(archived(file)?, &chosen.ids)?,
        None => chosen_letters(config, chosen)?,
    };
    let mut views = views(&letters);
    if chosen.all {
        views.extend(damaged(config, usize::MAX)?);
    }
    print_list(&views, Form::Json)
}

async fn retry(config: &Config, chosen: &Chosen) -> Result<(), Failure> {
    let ids = ids_in_order(with_followers(config, chosen_letters(config, chosen)?)?);
    let buffer = place::buffer(config).await?;
    let mut queued = 0;
    for step in ids.chunks(STEP) {
        queued += buffer.retry_dead(step.to_vec()).await?.len();
    }
    output::print(&format!("queued again: {queued}\n")).map(drop)
}

async fn discard(config: &Config, chosen: &Chosen) -> Result<(), Failure> {
    let ids = ids_in_order(chosen_letters(config, chosen)?);
    let buffer = place::buffer(config).await?;
    let mut discarded = 0;
    for step in ids.chunks(STEP) {
        discarded += buffer.discard_dead(step.to_vec()).await?.len() as u64;
    }
    if chosen.all {
        discarded += buffer.discard_damaged().await?;
    }
    output::print(&format!("discarded: {discarded}\n")).map(drop)
}

/// Queues letters of the archive again, but for those the buffer still knows: they have been retried already, or have
/// not left it yet.
async fn retry_archived(
    config: &Config,
    file: &Path,
    ids: Vec<OperationId>,
) -> Result<(), Failure> {
    let mut letters = only(archived(file)?, &ids)?;
    let reader = place::reader(config)?;
    let known = |letter: &DeadLetter| -> Result<bool, BufferError> {
        let Some(reader) = &reader else {
            return Ok(false);
        };
        Ok(reader.find_operation(letter.item.operation.id)?.is_some())
    };
    let mut fresh = Vec::new();
    for letter in letters.drain(..) {
        if known(&letter)? {
            output::complain(&format!(
                "operation {} is in the buffer already, left out",
                letter.item.operation.id
            ));
        } else {
            fresh.push(letter);
        }
    }
    in_order(&mut fresh);
    let buffer = place::buffer(config).await?;
    let mut queued = 0;
    for step in fresh.chunks(STEP) {
        queued += buffer.retry_archived(step.to_vec()).await?;
    }
    output::print(&format!("queued again: {queued}\n")).map(drop)
}

/// The letters of an archive file. Lines that can't be read are told about and left where they are.
fn archived(file: &Path) -> Result<Vec<DeadLetter>, Failure> {
    let read = read_archive(file)
        .map_err(|error| Failure::io(format!("can't read {}: {error}", file.display())))?;
    let (letters, unreadable) = read;
    for line in unreadable {
        output::complain(&format!(
            "{}: line {line} can't be read, left out",
            file.display()
        ));
    }
    Ok(letters)
}

/// Those with these ids; all when there are no ids.
fn only(mut letters: Vec<DeadLetter>, ids: &[OperationId]) -> Result<Vec<DeadLetter>, Failure> {
    if ids.is_empty() {
        return Ok(letters);
    }
    letters.retain(|letter| ids.contains(&letter.item.operation.id));
    let found: HashSet<OperationId> = letters
        .iter()
        .map(|letter| letter.item.operation.id)
        .collect();
    match ids.iter().find(|id| !found.contains(id)) {
        Some(missing) => Err(Failure::unavailable(format!(
            "operation {missing} is not in that file"
        ))),
        None => Ok(letters),
    }
}

fn chosen_letters(config: &Config, chosen: &Chosen) -> Result<Vec<DeadLetter>, Failure> {
    let Some(reader) = place::reader(config)? else {
        return chosen
            .ids
            .first()
            .map_or_else(|| Ok(Vec::new()), |id| Err(not_dead(*id)));
    };
    if chosen.all {
        return first(&reader, usize::MAX);
    }
    let mut letters = Vec::new();
    for id in &chosen.ids {
        letters.push(reader.find_dead(*id)?.ok_or_else(|| not_dead(*id))?);
    }
    Ok(letters)
}

/// Adds the letters that died because one of these did, and those that died because of them.
fn with_followers(
    config: &Config,
    mut letters: Vec<DeadLetter>,
) -> Result<Vec<DeadLetter>, Failure> {
    let Some(reader) = place::reader(config)? else {
        return Ok(letters);
    };
    let mut chosen: HashSet<OperationId> = letters
        .iter()
        .map(|letter| letter.item.operation.id)
        .collect();
    for letter in first(&reader, usize::MAX)? {
        let follows =
            Cause::blocker(&letter.reason).is_some_and(|blocker| chosen.contains(&blocker));
        if follows && chosen.insert(letter.item.operation.id) {
            letters.push(letter);
        }
    }
    Ok(letters)
}

/// Up to `limit` of the buffer's letters, the oldest operation first.
fn first(reader: &Reader, limit: usize) -> Result<Vec<DeadLetter>, Failure> {
    let mut letters: Vec<DeadLetter> = Vec::new();
    while letters.len() < limit {
        let last = letters.last().map(|letter| letter.item.operation.id);
        let page = reader.list_dead(last, STEP.min(limit - letters.len()))?;
        if page.is_empty() {
            break;
        }
        letters.extend(page);
    }
    Ok(letters)
}

/// Stamps increase in the order in which operations on a resource were accepted, whatever a clock did: so a create comes
/// before what depends on it.
fn in_order(letters: &mut [DeadLetter]) {
    letters.sort_by_key(|letter| (letter.item.operation.stamp, letter.item.operation.id));
}

fn ids_in_order(mut letters: Vec<DeadLetter>) -> Vec<OperationId> {
    in_order(&mut letters);
    let mut seen = HashSet::new();
    let ids = letters.iter().map(|letter| letter.item.operation.id);
    ids.filter(|id| seen.insert(*id)).collect()
}

fn views(letters: &[DeadLetter]) -> Vec<OperationView> {
    letters
        .iter()
        .map(|letter| OperationView::new(&letter.item.operation, letter.record()))
        .collect()
}

fn not_dead(id: OperationId) -> Failure {
    Failure::unavailable(format!(
        "operation {id} is no dead letter of the buffer: see `syncd dead list`"
    ))
}
