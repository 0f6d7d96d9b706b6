//! What was known of a resource stays known while anything of it waits, whatever has left before.

use super::*;
use crate::domain::{Idempotency, IdempotencyKey, Register};

/// Settles the first items of the queue.
async fn settle_first(buffer: &Buffer, count: usize, verdict: Verdict) -> Result<(), BufferError> {
    let read = batch(buffer, count, Skip::default(), any_time()).await?;
    buffer.settle(settle_all(&read, &verdict)).await.map(drop)
}

/// The title, and whether all the rest is known.
async fn view(buffer: &Buffer, id: TaskId) -> Result<Option<(String, bool)>, BufferError> {
    let key = ResourceKey::Task(id);
    let view = buffer
        .read(move |reader| reader.find_pending(&user("ann"), &key))
        .await?;
    Ok(view.and_then(|view| Some((title_of(&view.state)?, view.state.is_complete()))))
}

/// A change of something else than the title.
fn tagged() -> TaskState {
    let tags = Register::new(Tags::default(), Stamp::ZERO);
    TaskState {
        tags: Some(tags),
        ..TaskState::default()
    }
}

fn seen(title: &str, is_whole: bool) -> Option<(String, bool)> {
    Some((title.to_owned(), is_whole))
}

#[tokio::test]
async fn an_item_left_alone_shows_what_those_before_it_knew() -> Outcome {
    let directory = tempfile::tempdir()?;
    let buffer = Buffer::open(&config(directory.path(), 100))?;
    let id = TaskId::generate();
    append(&buffer, create("ann", id, "made")).await?;
    append(&buffer, retitle("ann", id, "second")).await?;
    append(&buffer, create("ann", TaskId::generate(), "another")).await?;
    append(&buffer, retitle("ann", id, "last")).await?;
    assert_eq!(view(&buffer, id).await?, seen("last", true));
    settle_first(&buffer, 1, Verdict::Applied).await?;
    assert_eq!(view(&buffer, id).await?, seen("last", true));
    // Handed on within one transaction, and again after that.
    settle_first(&buffer, 1, Verdict::Applied).await?;
    assert_eq!(view(&buffer, id).await?, seen("last", true));
    buffer.close();
    let reopened = Buffer::open(&config(directory.path(), 100))?;
    assert_eq!(view(&reopened, id).await?, seen("last", true));
    append(&reopened, create("ann", TaskId::generate(), "yet another")).await?;
    settle_first(&reopened, 2, Verdict::Applied).await?;
    assert_eq!(view(&reopened, id).await?, None);
    assert_eq!(reopened.read(Reader::inheritances).await?, 0);
    Ok(())
}

#[tokio::test]
async fn several_that_leave_together_hand_on_in_turn() -> Outcome {
    let directory = tempfile::tempdir()?;
    let buffer = Buffer::open(&config(directory.path(), 100))?;
    let id = TaskId::generate();
    append(&buffer, create("ann", id, "made")).await?;
    append(&buffer, retitle("ann", id, "second")).await?;
    append(&buffer, retitle("ann", id, "last")).await?;
    settle_first(&buffer, 2, Verdict::Applied).await?;
    assert_eq!(view(&buffer, id).await?, seen("last", true));
    Ok(())
}

#[tokio::test]
async fn a_refused_item_hands_on_what_it_was_given_and_nothing_of_its_own() -> Outcome {
    let directory = tempfile::tempdir()?;
    let buffer = Buffer::open(&config(directory.path(), 100))?;
    let id = TaskId::generate();
    append(&buffer, create("ann", id, "made")).await?;
    append(&buffer, retitle("ann", id, "refused")).await?;
    append(&buffer, operation("ann", id, Kind::Update, tagged())).await?;
    settle_first(&buffer, 1, Verdict::Applied).await?;
    let reason = "of somebody else".to_owned();
    settle_first(&buffer, 1, Verdict::Dead { reason }).await?;
    assert_eq!(view(&buffer, id).await?, seen("made", true));
    Ok(())
}

#[tokio::test]
async fn nobody_inherits_from_another_user() -> Outcome {
    let directory = tempfile::tempdir()?;
    let buffer = Buffer::open(&config(directory.path(), 100))?;
    let id = TaskId::generate();
    append(&buffer, create("bob", id, "bob's own")).await?;
    append(&buffer, operation("ann", id, Kind::Update, tagged())).await?;
    settle_first(&buffer, 1, Verdict::Applied).await?;
    let key = ResourceKey::Task(id);
    let seen = buffer
        .read(move |reader| reader.find_pending(&user("ann"), &key))
        .await?;
    let title = seen.and_then(|view| title_of(&view.state));
    assert_eq!(title, None);
    Ok(())
}

#[tokio::test]
async fn an_heir_that_was_set_aside_is_passed_over() -> Outcome {
    let directory = tempfile::tempdir()?;
    let buffer = Buffer::open(&config(directory.path(), 100))?;
    let id = TaskId::generate();
    append(&buffer, create("ann", id, "made")).await?;
    append(&buffer, operation("ann", id, Kind::Update, tagged())).await?;
    append(&buffer, operation("ann", id, Kind::Update, tagged())).await?;
    let read = batch(&buffer, 3, Skip::default(), any_time()).await?;
    buffer.set_aside(vec![read.items[1].place]).await?;
    settle_first(&buffer, 1, Verdict::Applied).await?;
    assert_eq!(view(&buffer, id).await?, seen("made", true));
    Ok(())
}

#[tokio::test]
async fn a_repeat_counts_as_if_it_were_the_first() -> Outcome {
    let directory = tempfile::tempdir()?;
    let buffer = Buffer::open(&config(directory.path(), 100))?;
    let id = TaskId::generate();
    append(&buffer, create("ann", id, "made")).await?;
    let keyed = Operation {
        idempotency: Some(Idempotency {
            key: IdempotencyKey::parse("once").expect("a valid key"),
            fingerprint: [0; 32],
        }),
        ..retitle("ann", id, "once more")
    };
    let repeat = buffer.append(keyed, None, Slot::Ordinary).await?;
    append(&buffer, operation("ann", id, Kind::Update, tagged())).await?;
    settle_first(&buffer, 1, Verdict::Applied).await?;
    let first = Stamp::from_i64(1);
    settle_first(&buffer, 1, Verdict::Repeated(first)).await?;
    assert_eq!(view(&buffer, id).await?, seen("made", true));
    let changes: Vec<AcceptedChange> = AcceptedChange::of(&repeat).into_iter().collect();
    let fates = buffer.read(move |reader| reader.fates(&changes)).await?;
    assert_eq!(
        fates.get(&repeat.operation.id),
        Some(&Fate::Settled(repeat.operation.change_as_of(first)))
    );
    conserved(&buffer).await?;
    Ok(())
}

#[tokio::test]
async fn another_user_s_item_in_between_breaks_no_chain() -> Outcome {
    let directory = tempfile::tempdir()?;
    let buffer = Buffer::open(&config(directory.path(), 100))?;
    let id = TaskId::generate();
    append(&buffer, create("ann", id, "made")).await?;
    append(&buffer, retitle("bob", id, "not bob's")).await?;
    append(&buffer, operation("ann", id, Kind::Update, tagged())).await?;
    settle_first(&buffer, 1, Verdict::Applied).await?;
    assert_eq!(view(&buffer, id).await?, seen("made", true));
    Ok(())
}

#[tokio::test]
async fn what_relies_on_an_item_that_has_left_is_refused_and_changes_nothing() -> Outcome {
    let directory = tempfile::tempdir()?;
    let buffer = Buffer::open(&config(directory.path(), 100))?;
    let (id, key) = (TaskId::generate(), |id| ResourceKey::Task(id));
    append(&buffer, create("ann", id, "made")).await?;
    let seen_waiting = buffer
        .read(move |reader| reader.find_pending(&user("ann"), &key(id)))
        .await?
        .expect("it waits");
    let behind = |title: &str| {
        let operation = retitle("ann", id, title);
        buffer.append_behind(operation, None, seen_waiting.last, Slot::Ordinary)
    };
    behind("behind it").await?;
    settle_first(&buffer, 1, Verdict::Applied).await?;
    let before = conserved(&buffer).await?;
    assert!(matches!(behind("too late").await, Err(BufferError::Outrun)));
    assert_eq!(conserved(&buffer).await?, before);
    assert_eq!(view(&buffer, id).await?, seen("behind it", true));
    Ok(())
}
