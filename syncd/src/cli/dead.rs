//! `syncd dead`: dead letters, in the buffer and in its archive.

use std::collections::HashSet;
use std::path::Path;

use holdfast_shared::buffer::{BufferError, DamagedItem, DeadLetter, Reader, read_archive};
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

/// What was found of what is asked about.
#[derive(Debug, Default)]
struct Found {
    letters: Vec<DeadLetter>,
    /// Items that were set aside as damaged.
    damaged: Vec<DamagedItem>,
}

/// Does what was asked.
///
/// # Errors
/// When the buffer or the archive can't be used, or a letter that was named isn't there. That some lines of the archive
/// can't be read is no error, but said, and exit code 74.
pub async fn dead(command: DeadCommand) -> Result<u8, Failure> {
    let config = Config::load()?;
    match command {
        DeadCommand::List { limit, from, json } => {
            list(&config, limit, from.as_deref(), json.into())
        }
        DeadCommand::Show { id, json } => show(&config, id, json.into()),
        DeadCommand::Retry(Chosen {
            ids,
            from: Some(file),
            ..
        }) => retry_archived(&config, &file, ids).await,
        DeadCommand::Retry(chosen) => retry(&config, &chosen).await,
        DeadCommand::Discard { ids, all } => {
            discard(
                &config,
                &Chosen {
                    ids,
                    all,
                    from: None,
                },
            )
            .await
        }
        DeadCommand::Export(chosen) => export(&config, &chosen),
    }
}

fn list(config: &Config, limit: usize, from: Option<&Path>, form: Form) -> Result<u8, Failure> {
    // One more than is shown tells whether there are more.
    let wanted = limit + 1;
    let (mut found, code) = match from {
        Some(file) => archived(file)?,
        None => (oldest(config, wanted)?, exit::OK),
    };
    found.letters.truncate(wanted);
    let mut views = views(&found);
    let is_cut_off = views.len() > limit;
    views.truncate(limit);
    print_list(&views, form)?;
    if is_cut_off {
        output::complain_of_more(limit);
    }
    Ok(code)
}

/// Up to `limit` of the buffer's dead letters, and of the damaged items behind them.
fn oldest(config: &Config, limit: usize) -> Result<Found, Failure> {
    let Some(reader) = place::reader(config)? else {
        return Ok(Found::default());
    };
    let letters = first(&reader, limit)?;
    let damaged = reader.list_damaged(limit.saturating_sub(letters.len()))?;
    Ok(Found { letters, damaged })
}

fn show(config: &Config, id: OperationId, form: Form) -> Result<u8, Failure> {
    let reader = place::reader(config)?.ok_or_else(|| not_dead(id))?;
    let shown = views(&find(&reader, &[id])?).into_iter().next();
    print_one(shown.ok_or_else(|| not_dead(id))?, form)?;
    Ok(exit::OK)
}

fn export(config: &Config, chosen: &Chosen) -> Result<u8, Failure> {
    let (found, code) = match &chosen.from {
        Some(file) => {
            let (found, code) = archived(file)?;
            (only(found, &chosen.ids)?, code)
        }
        None => (find_chosen(config, chosen)?, exit::OK),
    };
    print_list(&views(&found), Form::Json)?;
    Ok(code)
}

async fn retry(config: &Config, chosen: &Chosen) -> Result<u8, Failure> {
    let letters = find_chosen(config, chosen)?.letters;
    // All that were named are there: what is no letter is damaged.
    let is_letter = |id: OperationId| letters.iter().any(|letter| letter.item.operation.id == id);
    if let Some(id) = chosen.ids.iter().find(|id| !is_letter(**id)) {
        return Err(damaged(*id));
    }
    let ids = ids_in_order(with_followers(config, letters)?);
    let buffer = place::buffer(config).await?;
    let mut queued = 0;
    for step in ids.chunks(STEP) {
        queued += buffer.retry_dead(step.to_vec()).await?.len();
    }
    output::print(&format!("queued again: {queued}\n"))?;
    Ok(exit::OK)
}

async fn discard(config: &Config, chosen: &Chosen) -> Result<u8, Failure> {
    let found = find_chosen(config, chosen)?;
    let damaged: Vec<OperationId> = found.damaged.iter().filter_map(DamagedItem::id).collect();
    let ids = ids_in_order(found.letters);
    let buffer = place::buffer(config).await?;
    let mut discarded = 0;
    for step in ids.chunks(STEP) {
        discarded += buffer.discard_dead(step.to_vec()).await?.len() as u64;
    }
    if chosen.all {
        discarded += buffer.discard_damaged().await?;
    } else if !damaged.is_empty() {
        discarded += buffer.discard_damaged_of(damaged).await?;
    }
    output::print(&format!("discarded: {discarded}\n"))?;
    Ok(exit::OK)
}

/// Queues letters of the archive again, but for those the buffer still knows: they have been retried already, or have
/// not left it yet.
async fn retry_archived(
    config: &Config,
    file: &Path,
    ids: Vec<OperationId>,
) -> Result<u8, Failure> {
    let (found, code) = archived(file)?;
    let letters = only(found, &ids)?.letters;
    let reader = place::reader(config)?;
    let known = |letter: &DeadLetter| -> Result<bool, BufferError> {
        let Some(reader) = &reader else {
            return Ok(false);
        };
        Ok(reader.find_operation(letter.item.operation.id)?.is_some())
    };
    let mut fresh = Vec::new();
    for letter in letters {
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
    output::print(&format!("queued again: {queued}\n"))?;
    Ok(code)
}

/// The letters of an archive file, and the exit code. Lines that can't be read are told about and left where they are.
fn archived(file: &Path) -> Result<(Found, u8), Failure> {
    let read = read_archive(file)
        .map_err(|error| Failure::io(format!("can't read {}: {error}", file.display())))?;
    let (letters, unreadable) = read;
    for line in &unreadable {
        output::complain(&format!(
            "{}: line {line} can't be read, left out",
            file.display()
        ));
    }
    let is_all = unreadable.is_empty();
    let found = Found {
        letters,
        ..Found::default()
    };
    Ok((found, if is_all { exit::OK } else { exit::IO }))
}

/// Those of an archive file's letters with these ids; all when there are no ids.
fn only(mut found: Found, ids: &[OperationId]) -> Result<Found, Failure> {
    if ids.is_empty() {
        return Ok(found);
    }
    let letters = &mut found.letters;
    letters.retain(|letter| ids.contains(&letter.item.operation.id));
    let known: HashSet<OperationId> = letters
        .iter()
        .map(|letter| letter.item.operation.id)
        .collect();
    match ids.iter().find(|id| !known.contains(id)) {
        Some(missing) => Err(Failure::unavailable(format!(
            "operation {missing} is not in that file"
        ))),
        None => Ok(found),
    }
}

fn find_chosen(config: &Config, chosen: &Chosen) -> Result<Found, Failure> {
    if chosen.all {
        return oldest(config, usize::MAX);
    }
    match (place::reader(config)?, chosen.ids.first()) {
        (Some(reader), _) => find(&reader, &chosen.ids),
        (None, Some(id)) => Err(not_dead(*id)),
        (None, None) => Ok(Found::default()),
    }
}

/// What there is of these operations among the dead letters and the damaged items: something of each.
fn find(reader: &Reader, ids: &[OperationId]) -> Result<Found, Failure> {
    let aside = reader.list_damaged(usize::MAX)?;
    let mut found = Found::default();
    for id in ids {
        let letter = reader.find_dead(*id)?;
        let damaged = aside.iter().filter(|damaged| damaged.id() == Some(*id));
        let known = found.letters.len() + found.damaged.len();
        found.letters.extend(letter);
        found.damaged.extend(damaged.cloned());
        if found.letters.len() + found.damaged.len() == known {
            return Err(not_dead(*id));
        }
    }
    Ok(found)
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

fn views(found: &Found) -> Vec<OperationView> {
    let letters = found.letters.iter();
    let letters = letters.map(|letter| OperationView::new(&letter.item.operation, letter.record()));
    let damaged = found.damaged.iter().map(OperationView::damaged);
    letters.chain(damaged).collect()
}

fn not_dead(id: OperationId) -> Failure {
    Failure::unavailable(format!(
        "operation {id} is no dead letter of the buffer: see `syncd dead list`"
    ))
}

fn damaged(id: OperationId) -> Failure {
    Failure::io(format!(
        "operation {id} is damaged and can't be read, so it can't be retried: only exported or discarded"
    ))
}
