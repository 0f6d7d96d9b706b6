//! Damage: what is set aside, what is salvaged, what is said.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use super::super::file::{Acquaintance, acquaint};
use super::super::lock::beside;
use super::*;

const PAGE_BYTES: usize = 4096;

async fn fill(buffer: &Buffer, items: usize) -> Result<Vec<OperationId>, BufferError> {
    let mut ids = Vec::new();
    for number in 0..items {
        let title = format!("task {number} {}", "x".repeat(150));
        let accepted = append(buffer, create("ann", TaskId::generate(), &title)).await?;
        ids.push(accepted.id);
    }
    Ok(ids)
}

async fn waiting(buffer: &Buffer) -> Result<Vec<OperationId>, BufferError> {
    let items = buffer
        .read(|reader| reader.list_items(Lane::Postgres, 10_000))
        .await?;
    Ok(items
        .iter()
        .map(|queued| queued.item.operation.id)
        .collect())
}

fn only_set_aside(buffer: &Buffer) -> Result<PathBuf, Box<dyn std::error::Error>> {
    let mut files = set_aside_files(buffer.path())?;
    assert_eq!(files.len(), 1, "{files:?}");
    Ok(files.remove(0))
}

async fn salvage(
    buffer: &Buffer,
    file: PathBuf,
    manner: Manner,
) -> Result<(SalvageReport, Reading), BufferError> {
    let buffer = buffer.clone();
    let salvaging = tokio::task::spawn_blocking(move || buffer.salvage(&file, manner)).await;
    salvaging.unwrap_or(Err(BufferError::Closed))
}

/// Flips a bit in each place where the file says these words.
fn flip(bytes: &mut [u8], words: &[u8]) {
    for at in 0..bytes.len() - words.len() {
        if bytes[at..].starts_with(words) {
            bytes[at] ^= 1;
        }
    }
}

/// Closes a buffer, changes the bytes of its file, and opens it again.
async fn hurt(
    buffer: Buffer,
    settings: &BufferConfig,
    change: impl FnOnce(&mut Vec<u8>),
) -> Result<Buffer, Box<dyn std::error::Error>> {
    buffer.close();
    drop(buffer);
    let mut bytes = fs::read(&settings.path)?;
    change(&mut bytes);
    fs::write(&settings.path, bytes)?;
    Ok(Buffer::open(settings)?)
}

#[tokio::test]
async fn a_file_removed_under_the_process_is_copied_out_and_nothing_is_lost() -> Outcome {
    let directory = tempfile::tempdir()?;
    let buffer = Buffer::open(&config(directory.path(), 100))?;
    tell_time(&buffer);
    let mut ids = fill(&buffer, 3).await?;
    let before = conserved(&buffer).await?.counters;
    fs::remove_file(buffer.path())?;
    ids.extend(fill(&buffer, 1).await?);
    assert_eq!(waiting(&buffer).await?.len(), 1);
    let after = conserved(&buffer).await?.counters;
    assert!(after.next_seq > before.next_seq && after.high_water > before.high_water);

    let file = only_set_aside(&buffer)?;
    let (report, reading) = salvage(&buffer, file.clone(), Manner::Queued).await?;
    assert_eq!(
        (report.items, report.unreadable, reading),
        (3, Some(0), Reading::Whole)
    );
    let again = salvage(&buffer, file, Manner::Queued).await?.0;
    assert_eq!((again.items, again.already_there), (0, 3));
    let mut found = waiting(&buffer).await?;
    found.sort_unstable();
    assert_eq!(found, ids);
    assert_eq!(conserved(&buffer).await?.counters.pending, 4);
    Ok(())
}

#[tokio::test]
async fn reading_alone_notices_that_another_file_is_there() -> Outcome {
    let directory = tempfile::tempdir()?;
    let buffer = Buffer::open(&config(directory.path(), 100))?;
    fill(&buffer, 2).await?;
    let generation = buffer.generation();
    fs::remove_file(buffer.path())?;
    assert_eq!(waiting(&buffer).await?.len(), 0);
    assert!(buffer.generation() > generation);
    let batch = batch(&buffer, 10, Skip::default(), any_time()).await?;
    assert_eq!(batch.generation, buffer.generation());
    Ok(())
}

#[tokio::test]
async fn an_older_item_that_is_salvaged_goes_before_the_newer_ones_of_its_resource() -> Outcome {
    let directory = tempfile::tempdir()?;
    let buffer = Buffer::open(&config(directory.path(), 100))?;
    let task = TaskId::generate();
    let made = append(&buffer, create("ann", task, "made")).await?;
    fs::remove_file(buffer.path())?;
    let renamed = append(&buffer, retitle("ann", task, "renamed")).await?;
    let file = only_set_aside(&buffer)?;
    salvage(&buffer, file, Manner::Queued).await?;
    assert_eq!(waiting(&buffer).await?, [made.id, renamed.id]);
    let view = buffer
        .read(move |reader| reader.find_pending(&user("ann"), &ResourceKey::Task(task)))
        .await?
        .ok_or("nothing waits")?;
    assert_eq!(title_of(&view.state).as_deref(), Some("renamed"));
    conserved(&buffer).await?;
    Ok(())
}

#[tokio::test]
async fn in_embedded_mode_what_was_done_since_an_older_copy_is_salvaged() -> Outcome {
    let directory = tempfile::tempdir()?;
    let settings = config(directory.path(), 100);
    let buffer = Buffer::open(&settings)?;
    let (changed, deleted) = (TaskId::generate(), TaskId::generate());
    buffer
        .fold(keyed(create("ann", changed, "bread"), 1))
        .await?;
    buffer.fold(create("ann", deleted, "milk")).await?;
    buffer.close();
    drop(buffer);
    let copy = directory.path().join("copy");
    fs::copy(&settings.path, &copy)?;
    let buffer = Buffer::open(&settings)?;
    buffer.fold(retitle("ann", changed, "rye")).await?;
    buffer.fold(delete("ann", deleted)).await?;
    fs::rename(&copy, buffer.path())?;
    buffer
        .fold(create("ann", TaskId::generate(), "after"))
        .await?;
    let file = only_set_aside(&buffer)?;
    for _ in 0..2 {
        salvage(&buffer, file.clone(), Manner::Folded).await?;
        let view = |task| {
            buffer.read_blocking(move |reader| {
                reader.find_pending(&user("ann"), &ResourceKey::Task(task))
            })
        };
        let title = view(changed)?.and_then(|view| title_of(&view.state));
        assert_eq!(title.as_deref(), Some("rye"));
        let gone = view(deleted)?.is_some_and(|view| view.state.deleted().is_some());
        assert!(gone, "the deleted task is back");
        assert_eq!(conserved(&buffer).await?.counters.pending, 3);
    }
    Ok(())
}

#[tokio::test]
async fn zeroed_pages_cost_only_what_was_in_them() -> Outcome {
    let directory = tempfile::tempdir()?;
    let settings = config(directory.path(), 1_000);
    let buffer = Buffer::open(&settings)?;
    let ids = fill(&buffer, 300).await?;
    // All pages that ever held that item: the newest is among them.
    let buffer = hurt(buffer, &settings, |bytes| {
        let words = b"task 150 ";
        for page in bytes.chunks_mut(PAGE_BYTES) {
            if page.windows(words.len()).any(|part| part == words) {
                page.fill(0);
            }
        }
    })
    .await?;
    // Whether the damage shows at opening or at the first read, it ends the same.
    buffer.read(Reader::warm).await?;
    waiting(&buffer).await?;
    let file = only_set_aside(&buffer)?;
    let (report, reading) = salvage(&buffer, file, Manner::Queued).await?;
    assert_ne!(reading, Reading::Whole);
    let survived = waiting(&buffer).await?;
    let (survived_count, all) = (survived.len(), ids.len());
    assert!(
        (all * 2 / 3..all).contains(&survived_count),
        "{survived_count} of {all} survived: {report:?}"
    );
    assert_eq!(report.items, survived.len() as u64);
    conserved(&buffer).await?;
    Ok(())
}

#[tokio::test]
async fn reading_beside_it_tells_of_damage_wherever_it_is() -> Outcome {
    let directory = tempfile::tempdir()?;
    let settings = config(directory.path(), 1_000);
    let buffer = Buffer::open(&settings)?;
    fill(&buffer, 300).await?;
    buffer.close();
    drop(buffer);
    let whole = fs::read(&settings.path)?;
    let hurt = directory.path().join("hurt");
    let mut told = 0;
    for start in (PAGE_BYTES..whole.len()).step_by(PAGE_BYTES) {
        let mut bytes = whole.clone();
        bytes[start..start + PAGE_BYTES].fill(0xA5);
        fs::write(&hurt, bytes)?;
        let read = || {
            let reader = Reader::open(&hurt)?.ok_or(BufferError::Closed)?;
            reader.list_items(Lane::Postgres, 1_000)
        };
        told += u32::from(read().is_err());
    }
    assert!(told > 0);
    Ok(())
}

#[tokio::test]
async fn what_root_makes_belongs_to_the_service() -> Outcome {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: this takes root");
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    std::os::unix::fs::chown(directory.path(), Some(4_711), Some(4_711))?;
    let buffer = Buffer::open(&config(directory.path(), 100))?;
    fill(&buffer, 1).await?;
    assert_eq!(buffer.path().metadata()?.uid(), 4_711);
    fs::remove_file(buffer.path())?;
    fill(&buffer, 1).await?;
    for file in [buffer.path().to_owned(), only_set_aside(&buffer)?] {
        assert_eq!(file.metadata()?.uid(), 4_711, "{}", file.display());
    }
    Ok(())
}

#[tokio::test]
async fn a_file_of_garbage_or_cut_off_is_set_aside_and_carved() -> Outcome {
    for (share, whole) in [(0, false), (2, true)] {
        let directory = tempfile::tempdir()?;
        let settings = config(directory.path(), 1_000);
        let buffer = Buffer::open(&settings)?;
        fill(&buffer, 200).await?;
        let buffer = hurt(buffer, &settings, |bytes| {
            if whole {
                bytes.truncate(bytes.len() * share / 3);
            } else {
                bytes.fill(0xA5);
            }
        })
        .await?;
        let file = only_set_aside(&buffer)?;
        let (report, reading) = salvage(&buffer, file, Manner::Queued).await?;
        assert_eq!(reading, Reading::Carved);
        assert_eq!(report.unreadable, None);
        assert_eq!(report.items > 50, whole, "{report:?}");
        assert_eq!(conserved(&buffer).await?.counters.pending, report.items);
        append(&buffer, create("ann", TaskId::generate(), "after")).await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_is_carved_takes_its_key_back() -> Outcome {
    let directory = tempfile::tempdir()?;
    let settings = config(directory.path(), 100);
    let buffer = Buffer::open(&settings)?;
    let first = append(
        &buffer,
        keyed(create("ann", TaskId::generate(), "first"), 1),
    )
    .await?;
    let buffer = hurt(buffer, &settings, |bytes| bytes[..PAGE_BYTES].fill(0)).await?;
    let file = only_set_aside(&buffer)?;
    let (report, reading) = salvage(&buffer, file, Manner::Queued).await?;
    assert_eq!((report.items, reading), (1, Reading::Carved));
    let other = keyed(create("ann", TaskId::generate(), "other"), 2);
    match buffer.append(other, None, Slot::Ordinary).await {
        Err(BufferError::KeyTaken(known)) => assert_eq!(known.record.id, first.id),
        accepted => panic!("{accepted:?}"),
    }
    Ok(())
}

#[tokio::test]
async fn damage_in_use_is_met_set_aside_and_service_goes_on() -> Outcome {
    let directory = tempfile::tempdir()?;
    let buffer = Buffer::open(&config(directory.path(), 1_000))?;
    fill(&buffer, 100).await?;
    let length = buffer.path().metadata()?.len();
    let file = fs::OpenOptions::new().write(true).open(buffer.path())?;
    file.write_all_at(&vec![0x5A; usize::try_from(length)?], 0)?;
    let mut taken = append(&buffer, create("ann", TaskId::generate(), "after")).await;
    if taken.is_err() {
        taken = append(&buffer, create("ann", TaskId::generate(), "after")).await;
    }
    taken?;
    assert_eq!(waiting(&buffer).await?.len(), 1);
    only_set_aside(&buffer)?;
    Ok(())
}

#[tokio::test]
async fn an_emptied_file_is_noticed_and_a_stranger_s_file_is_left_alone() -> Outcome {
    let directory = tempfile::tempdir()?;
    let settings = config(directory.path(), 100);
    let buffer = Buffer::open(&settings)?;
    fill(&buffer, 2).await?;
    let buffer = hurt(buffer, &settings, Vec::clear).await?;
    only_set_aside(&buffer)?;

    let elsewhere = tempfile::tempdir()?;
    let settings = config(elsewhere.path(), 100);
    fs::File::create(&settings.path)?.write_all(b"somebody's letters")?;
    assert!(matches!(
        Buffer::open(&settings),
        Err(BufferError::Stranger { .. })
    ));
    // Looking into it makes it no acquaintance.
    drop(verify(&settings.path));
    assert_eq!(acquaint(&settings.path)?, Acquaintance::Stranger);
    assert_eq!(fs::read(&settings.path)?, b"somebody's letters");
    Ok(())
}

#[tokio::test]
async fn a_file_that_was_half_made_when_the_power_went_is_made_anew() -> Outcome {
    let directory = tempfile::tempdir()?;
    let settings = config(directory.path(), 100);
    assert_eq!(acquaint(&settings.path)?, Acquaintance::Known);
    assert!(!settings.path.exists(), "known before it is made");
    fs::write(&settings.path, [0; 2 * PAGE_BYTES])?;
    let buffer = Buffer::open(&settings)?;
    only_set_aside(&buffer)?;
    assert_eq!(fill(&buffer, 1).await?, waiting(&buffer).await?);
    Ok(())
}

#[tokio::test]
async fn verifying_changes_nothing_and_finds_a_flipped_bit_and_a_missing_ballast() -> Outcome {
    let directory = tempfile::tempdir()?;
    let settings = config(directory.path(), 100);
    let buffer = Buffer::open(&settings)?;
    fill(&buffer, 20).await?;
    let found = verify(&settings.path)?;
    assert_eq!((found.items, found.findings), (20, Vec::<String>::new()));

    fs::remove_file(beside(&settings.path, ".ballast"))?;
    let before = fs::read(&settings.path)?;
    assert_eq!(verify(&settings.path)?.findings.len(), 1);
    assert_eq!(fs::read(&settings.path)?, before);
    let buffer = hurt(buffer, &settings, |bytes| flip(bytes, b"task 7 ")).await?;
    let found = verify(&settings.path)?;
    assert_eq!(
        (found.items, found.damaged),
        (19, 1),
        "{:?}",
        found.findings
    );
    let batch = batch(&buffer, 100, Skip::default(), any_time()).await?;
    assert_eq!(buffer.set_aside(batch.damaged).await?, 1);
    let aside = buffer.read(|reader| reader.list_damaged(10)).await?;
    let item = aside[0].item.as_ref().ok_or("the item can't be read")?;
    assert!(
        item.operation
            .change()
            .is_some_and(|state| title_of(&state).is_some())
    );
    assert_eq!(buffer.discard_damaged().await?, 1);
    conserved(&buffer).await?;
    Ok(())
}

#[tokio::test]
async fn a_damaged_item_is_discarded_by_the_id_its_bytes_name_and_no_other_is() -> Outcome {
    let directory = tempfile::tempdir()?;
    let settings = config(directory.path(), 100);
    let buffer = Buffer::open(&settings)?;
    let ids = fill(&buffer, 10).await?;
    let buffer = hurt(buffer, &settings, |bytes| {
        flip(bytes, b"task 3 ");
        flip(bytes, b"task 7 ");
    })
    .await?;
    let batch = batch(&buffer, 100, Skip::default(), any_time()).await?;
    assert_eq!(buffer.set_aside(batch.damaged).await?, 2);
    let named = vec![ids[3], ids[4], OperationId::generate()];
    assert_eq!(buffer.discard_damaged_of(named).await?, 1);
    let left = buffer.read(|reader| reader.list_damaged(10)).await?;
    let left: Vec<Option<OperationId>> = left.iter().map(DamagedItem::id).collect();
    assert_eq!(left, [Some(ids[7])]);
    let counted = conserved(&buffer).await?.counters;
    assert_eq!(
        (counted.pending, counted.dead, counted.discarded),
        (8, 1, 1)
    );
    Ok(())
}

#[tokio::test]
async fn a_drained_file_gives_its_space_back() -> Outcome {
    let directory = tempfile::tempdir()?;
    let buffer = Buffer::open(&config(directory.path(), 100_000))?;
    let mut appends = tokio::task::JoinSet::new();
    for number in 0..60_000 {
        let (buffer, title) = (buffer.clone(), "x".repeat(200));
        appends
            .spawn(async move { append(&buffer, create("ann", TaskId::generate(), &title)).await });
        if number % 500 == 499 {
            while let Some(appended) = appends.join_next().await {
                appended??;
            }
        }
    }
    assert_eq!(buffer.compact()?, None, "there is too much in it");
    loop {
        let batch = batch(&buffer, 2_000, Skip::default(), any_time()).await?;
        if batch.items.is_empty() {
            break;
        }
        buffer.settle(settle_all(&batch, &Verdict::Applied)).await?;
    }
    let done = buffer.compact()?.ok_or("nobody reads")?;
    assert!(done.bytes_after < done.bytes_before / 4, "{done:?}");
    assert_eq!(buffer.size_bytes()?, done.bytes_after);
    append(&buffer, create("ann", TaskId::generate(), "after")).await?;
    assert_eq!(conserved(&buffer).await?.counters.pending, 1);
    Ok(())
}
