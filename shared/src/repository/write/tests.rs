//! What a repeat is shown.

use super::*;
use crate::buffer::{self, Buffer, Reader, Settlement, Skip, Verdict};
use crate::config::Config;
use crate::domain::task::{NewTask, Title};
use crate::domain::{
    Body, Idempotency, OperationId, Priority, Register, ResourceKey, Stamp, TaskId, TaskState,
    Timestamp,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn title(text: &str) -> Title {
    Title::parse(text).expect("a valid title")
}

/// A task as it was stored, complete.
fn stored(text: &str) -> State {
    let task = NewTask {
        title: title(text),
        description: Default::default(),
        status: Default::default(),
        priority: Default::default(),
        due_at: None,
        tags: Default::default(),
    };
    let mut state = State::Task(TaskState {
        created: Some(Stamp::ZERO),
        ..task.into_change()
    });
    state.restamp(Stamp::from_i64(1));
    state
}

/// A change of its title under an idempotency key.
fn retitled(user: &UserId, id: TaskId, text: &str) -> Operation {
    let change = TaskState {
        title: Some(Register::new(title(text), Stamp::ZERO)),
        ..TaskState::default()
    };
    Operation {
        id: OperationId::generate(),
        stamp: Stamp::ZERO,
        user_id: user.clone(),
        kind: Kind::Update,
        body: Body::Task { id, change },
        precondition: None,
        idempotency: Some(Idempotency {
            key: IdempotencyKey::parse("k").expect("a valid key"),
            fingerprint: [1; 32],
        }),
        accepted_at: Timestamp::from_micros(1_795_000_000_000_000),
        priority: Priority::default(),
        buffered: false,
    }
}

async fn drain(buffer: &Buffer) -> Result<(), BufferError> {
    let any_time = Timestamp::from_micros(i64::MAX);
    let next = move |reader: &Reader| {
        reader.next_batch(buffer::Lane::Postgres, 1, &Skip::default(), any_time)
    };
    let applied = |queued| Settlement {
        queued,
        verdict: Verdict::Applied,
    };
    let read = buffer.read(next).await?;
    buffer
        .settle(read.items.into_iter().map(applied).collect())
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_repeat_whose_first_has_drained_is_not_shown_what_was_known_before() -> Outcome {
    for (drained, shown) in [(false, Some("after")), (true, None)] {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("buffer.redb");
        let settings = [
            ("DATABASE_URL", "postgres://nobody@127.0.0.1:1/nothing"),
            ("BUFFER_PATH", path.to_str().expect("UTF-8")),
            ("JWT_SECRET", "0123456789abcdef0123456789abcdef"),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let config = Config::from_pairs(settings).map_err(|faults| faults.to_string())?;
        let repository = Repository::open(&config)?;
        let another_process = Buffer::open(&config.buffer)?;

        let (user, id) = (UserId::parse("ann")?, TaskId::generate());
        repository.note_stored(&user, ResourceKey::Task(id), &stored("before"));
        let first = retitled(&user, id, "after");
        another_process.append(first, None, Slot::Ordinary).await?;
        let repeat = retitled(&user, id, "after");
        let known = repository.known_here(&repeat).await.expect("it waits");
        if drained {
            drain(&another_process).await?;
        }
        let answered = repository.answer_first(known, &repeat).await;
        let written = answered.expect("a repeat is answered");
        let title = written.state.map(|state| match state {
            State::Task(task) => task.title.expect("complete").value.as_str().to_owned(),
            State::Profile(_) => unreachable!("a task was asked for"),
        });
        assert!(written.replayed);
        assert_eq!(title.as_deref(), shown);
        another_process.close();
        repository.close().await;
    }
    Ok(())
}
