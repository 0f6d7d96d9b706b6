//! What was known of a resource stays known while anything of it waits, whatever has left before.

use super::*;
use crate::domain::Register;

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
    settle_first(&reopened, 2, Verdict::Applied).await?;
    assert_eq!(view(&reopened, id).await?, None);
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
