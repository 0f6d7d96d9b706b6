//! The buffer against what it promises: order, conservation, one item settled once, nothing forgotten on reopening.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use crate::config::BufferConfig;
use crate::domain::task::{NewTask, Tags, Title};
use crate::domain::{
    Body, Idempotency, IdempotencyKey, Kind, Operation, OperationId, OperationState, Priority,
    ResourceKey, Revocation, SessionId, Stamp, State, TaskId, TaskState, Timestamp, UserId,
};

use super::*;

mod damage;
mod embedded;
mod inheritance;

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn config(directory: &Path, max_items: u64) -> BufferConfig {
    BufferConfig {
        path: directory.join("buffer.redb"),
        max_items,
        retention: Duration::from_secs(3600),
    }
}

/// Tells a buffer's clock what the time is, as PostgreSQL would.
pub(super) fn tell_time(buffer: &Buffer) {
    let reading = buffer.clock().read();
    let distance = reading.wall.as_micros() - reading.since_boot_us();
    buffer.clock().learn_from_boot(distance);
}

fn user(name: &str) -> UserId {
    UserId::parse(name).expect("a valid id")
}

fn operation(user_id: &str, id: TaskId, kind: Kind, change: TaskState) -> Operation {
    Operation {
        id: OperationId::generate(),
        stamp: Stamp::ZERO,
        user_id: user(user_id),
        kind,
        body: Body::Task { id, change },
        precondition: None,
        idempotency: None,
        accepted_at: Timestamp::from_micros(1_795_000_000_000_000),
        priority: Priority::default(),
        buffered: false,
    }
}

pub(super) fn create(user_id: &str, id: TaskId, title: &str) -> Operation {
    let task = NewTask {
        title: Title::parse(title).expect("a valid title"),
        description: Default::default(),
        status: Default::default(),
        priority: Default::default(),
        due_at: None,
        tags: Tags::default(),
    };
    let change = TaskState {
        created: Some(Stamp::ZERO),
        ..task.into_change()
    };
    operation(user_id, id, Kind::Create, change)
}

pub(super) fn retitle(user_id: &str, id: TaskId, title: &str) -> Operation {
    let change = TaskState {
        created: None,
        ..create(user_id, id, title)
            .change()
            .and_then(task_of)
            .expect("a task")
    };
    let change = TaskState {
        title: change.title,
        ..TaskState::default()
    };
    operation(user_id, id, Kind::Update, change)
}

pub(super) fn delete(user_id: &str, id: TaskId) -> Operation {
    operation(
        user_id,
        id,
        Kind::Delete,
        TaskState {
            deleted: Some(Stamp::ZERO),
            ..TaskState::default()
        },
    )
}

fn task_of(state: State) -> Option<TaskState> {
    match state {
        State::Task(task) => Some(task),
        State::Profile(_) => None,
    }
}

pub(super) fn title_of(state: &State) -> Option<String> {
    task_of(state.clone())?
        .title
        .map(|title| title.value.as_str().to_owned())
}

fn any_time() -> Timestamp {
    Timestamp::from_micros(i64::MAX)
}

fn settle_all(batch: &Batch, verdict: &Verdict) -> Vec<Settlement> {
    batch
        .items
        .iter()
        .map(|queued| Settlement {
            queued: queued.clone(),
            verdict: verdict.clone(),
        })
        .collect()
}

#[tokio::test]
async fn of_two_revocations_of_a_session_the_longer_one_counts() -> Outcome {
    let directory = tempfile::tempdir()?;
    let buffer = Buffer::open(&config(directory.path(), 10))?;
    let until = |micros| Revocation {
        session_id: SessionId::parse("s").expect("valid"),
        keep_until: Timestamp::from_micros(micros),
    };
    for (noted, kept) in [(5, 5), (9, 9), (7, 9)] {
        buffer.remember_revocations(vec![until(noted)]).await?;
        assert_eq!(
            buffer.read_blocking(Reader::list_revocations)?,
            [until(kept)]
        );
    }
    Ok(())
}

/// A buffer with one item that was put off, and an index of the many behind it that have left.
async fn with_an_index_to_be_swept(directory: &Path) -> Result<Buffer, BufferError> {
    const ITEMS: u64 = 6_000;
    const TOGETHER: u64 = 500;
    let buffer = Buffer::open(&config(directory, 2 * ITEMS))?;
    let put_off = append(&buffer, create("ann", TaskId::generate(), "put off")).await?;
    for _ in 0..ITEMS / TOGETHER {
        let mut appends = tokio::task::JoinSet::new();
        for _ in 0..TOGETHER {
            let (buffer, created) = (buffer.clone(), create("bob", TaskId::generate(), "gone"));
            appends.spawn(async move { append(&buffer, created).await.map(drop) });
        }
        while let Some(appended) = appends.join_next().await {
            appended.expect("no panic")?;
        }
    }
    let batch = buffer.read_blocking(|reader| {
        reader.next_batch(Lane::Postgres, usize::MAX, &Skip::default(), any_time())
    })?;
    let mut settlements = settle_all(&batch, &Verdict::Applied);
    settlements.retain(|settlement| settlement.queued.item.operation.id != put_off.id);
    assert_eq!(settlements.len() as u64, ITEMS);
    buffer.settle(settlements).await?;
    Ok(buffer)
}

#[tokio::test]
async fn the_index_forgets_what_has_left_behind_an_item_that_stays() -> Outcome {
    let directory = tempfile::tempdir()?;
    let buffer = with_an_index_to_be_swept(directory.path()).await?;
    buffer.read_blocking(Reader::sweep_index)?;
    assert_eq!(buffer.read_blocking(Reader::count_indexed)?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_index_keeps_what_comes_while_it_is_swept() -> Outcome {
    let directory = tempfile::tempdir()?;
    let buffer = with_an_index_to_be_swept(directory.path()).await?;
    let late = TaskId::generate();
    let find = |reader: &Reader| reader.find_pending(&user("ann"), &ResourceKey::Task(late));
    let runtime = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| {
        buffer.reader().read(|before| {
            runtime.block_on(append(&buffer, create("ann", late, "late")))?;
            // Whoever looks for it has it in the index.
            assert!(find(buffer.reader())?.is_some());
            before.sweep_index()
        })
    })?;
    assert_eq!(buffer.read_blocking(Reader::count_indexed)?, 2);
    assert!(buffer.read_blocking(find)?.is_some());
    Ok(())
}

#[tokio::test]
async fn a_key_stands_for_one_item_as_long_as_it_waits() -> Outcome {
    let directory = tempfile::tempdir()?;
    let buffer = Buffer::open(&config(directory.path(), 100))?;
    let id = TaskId::generate();
    let first = append(&buffer, keyed(create("ann", id, "first"), 1)).await?;
    let elsewhere = || create("ann", TaskId::generate(), "other");
    for (other, slot) in [
        (keyed(create("ann", id, "first"), 1), Slot::Ordinary),
        (keyed(create("ann", id, "first"), 1), Slot::Reserved),
        (keyed(elsewhere(), 2), Slot::Ordinary),
    ] {
        match buffer.append(other, None, slot).await {
            Err(BufferError::KeyTaken(known)) => assert_eq!(known.record.id, first.id),
            other => panic!("{other:?}"),
        }
    }
    // What may be in the store already is the store's to judge; and another user's key is another one.
    buffer
        .append(keyed(elsewhere(), 2), None, Slot::Reserved)
        .await?;
    append(&buffer, keyed(create("bob", TaskId::generate(), "b"), 3)).await?;
    assert_eq!(conserved(&buffer).await?.counters.pending, 3);
    let (ann, key) = (user("ann"), IdempotencyKey::parse("k")?);
    let known = || buffer.read_blocking(|reader| reader.find_keyed(&ann, &key));
    assert_eq!(known()?.map(|known| known.record.id), Some(first.id));
    let read = batch(&buffer, 1, Skip::default(), any_time()).await?;
    buffer.settle(settle_all(&read, &Verdict::Applied)).await?;
    assert_eq!(known()?, None);
    append(&buffer, keyed(elsewhere(), 2)).await?;
    Ok(())
}

#[tokio::test]
async fn an_expired_revocation_goes_only_where_the_time_is_sure() -> Outcome {
    let directory = tempfile::tempdir()?;
    let buffer = Buffer::open(&config(directory.path(), 100))?;
    let revocations = [("old", 5), ("new", i64::MAX)].map(|(id, until)| Revocation {
        session_id: SessionId::parse(id).expect("valid"),
        keep_until: Timestamp::from_micros(until),
    });
    buffer.remember_revocations(revocations.to_vec()).await?;
    for (is_sure_of_time, left) in [(false, 2), (true, 1)] {
        buffer.retain(is_sure_of_time).await?;
        let found = buffer.read_blocking(|reader| reader.list_revocations())?;
        assert_eq!(found.len(), left, "{found:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_dead_letter_that_is_tried_again_takes_its_key_back() -> Outcome {
    let directory = tempfile::tempdir()?;
    let buffer = Buffer::open(&config(directory.path(), 100))?;
    let first = append(
        &buffer,
        keyed(create("ann", TaskId::generate(), "first"), 1),
    )
    .await?;
    let bury = async || {
        let read = batch(&buffer, 1, Skip::default(), any_time()).await?;
        let refused = Verdict::Dead {
            reason: "22001".into(),
        };
        buffer.settle(settle_all(&read, &refused)).await
    };
    let other = || keyed(create("ann", TaskId::generate(), "other"), 2);
    bury().await?;
    assert_eq!(buffer.retry_dead(vec![first.id]).await?, vec![first.id]);
    match buffer.append(other(), None, Slot::Ordinary).await {
        Err(BufferError::KeyTaken(known)) => assert_eq!(known.record.id, first.id),
        accepted => panic!("{accepted:?}"),
    }
    // Where another has taken the key meanwhile, it stays that one's.
    bury().await?;
    let second = append(&buffer, other()).await?;
    assert_eq!(buffer.retry_dead(vec![first.id]).await?, vec![first.id]);
    let (ann, key) = (user("ann"), IdempotencyKey::parse("k")?);
    let known = buffer.read_blocking(|reader| reader.find_keyed(&ann, &key))?;
    assert_eq!(known.map(|known| known.record.id), Some(second.id));
    conserved(&buffer).await?;
    Ok(())
}

/// The operation under the one key of these tests, as the request of this number.
fn keyed(mut operation: Operation, request: u8) -> Operation {
    operation.idempotency = Some(Idempotency {
        key: IdempotencyKey::parse("k").expect("a valid key"),
        fingerprint: [request; 32],
    });
    operation
}

async fn append(buffer: &Buffer, operation: Operation) -> Result<Operation, BufferError> {
    let item = buffer.append(operation, None, Slot::Ordinary).await?;
    Ok(item.operation)
}

async fn batch(
    buffer: &Buffer,
    limit: usize,
    skip: Skip,
    now: Timestamp,
) -> Result<Batch, BufferError> {
    buffer
        .read(move |reader| reader.next_batch(Lane::Postgres, limit, &skip, now))
        .await
}

async fn conserved(buffer: &Buffer) -> Result<Snapshot, BufferError> {
    let snapshot = buffer.read(Reader::snapshot).await?;
    assert_eq!(snapshot.discrepancies(), Vec::<String>::new());
    Ok(snapshot)
}

#[tokio::test]
async fn accepted_operations_survive_reopening_in_order_with_increasing_stamps() -> Outcome {
    let directory = tempfile::tempdir()?;
    let buffer = Buffer::open(&config(directory.path(), 100))?;
    let ids: Vec<TaskId> = (0..20).map(|_| TaskId::generate()).collect();
    for id in &ids {
        append(&buffer, create("ann", *id, "bread")).await?;
    }
    buffer.close();
    drop(buffer);

    let buffer = Buffer::open(&config(directory.path(), 100))?;
    append(&buffer, create("ann", TaskId::generate(), "last")).await?;
    let read = batch(&buffer, 100, Skip::default(), any_time()).await?;
    let order: Vec<_> = read
        .items
        .iter()
        .take(20)
        .map(|queued| queued.item.operation.resource())
        .collect();
    assert_eq!(
        order,
        ids.iter()
            .map(|id| ResourceKey::Task(*id))
            .collect::<Vec<_>>()
    );
    let stamps: Vec<_> = read
        .items
        .iter()
        .map(|queued| queued.item.operation.stamp)
        .collect();
    assert!(
        stamps.windows(2).all(|pair| pair[0] < pair[1]),
        "stamps increase also across a restart"
    );
    conserved(&buffer).await?;
    Ok(())
}

#[tokio::test]
async fn a_full_buffer_refuses_ordinary_items_and_keeps_reserved_ones() -> Outcome {
    let directory = tempfile::tempdir()?;
    let buffer = Buffer::open(&config(directory.path(), 2))?;
    append(&buffer, create("ann", TaskId::generate(), "1")).await?;
    append(&buffer, create("ann", TaskId::generate(), "2")).await?;
    let refused = append(&buffer, create("ann", TaskId::generate(), "3")).await;
    assert!(
        matches!(refused, Err(BufferError::Full { max_items: 2 })),
        "{refused:?}"
    );
    buffer
        .append(create("ann", TaskId::generate(), "4"), None, Slot::Reserved)
        .await?;
    assert_eq!(conserved(&buffer).await?.counters.pending, 3);

    let read = batch(&buffer, 2, Skip::default(), any_time()).await?;
    buffer.settle(settle_all(&read, &Verdict::Applied)).await?;
    append(&buffer, create("ann", TaskId::generate(), "5")).await?;
    Ok(())
}

#[tokio::test]
async fn a_later_item_of_a_resource_is_never_more_urgent_than_an_earlier_one() -> Outcome {
    let directory = tempfile::tempdir()?;
    let buffer = Buffer::open(&config(directory.path(), 100))?;
    let id = TaskId::generate();
    append(
        &buffer,
        Operation {
            priority: Priority::parse(4)?,
            ..create("ann", id, "first")
        },
    )
    .await?;
    append(
        &buffer,
        Operation {
            priority: Priority::parse(1)?,
            ..retitle("ann", id, "second")
        },
    )
    .await?;
    append(
        &buffer,
        Operation {
            priority: Priority::parse(2)?,
            ..create("ann", TaskId::generate(), "other")
        },
    )
    .await?;
    let read = batch(&buffer, 10, Skip::default(), any_time()).await?;
    let titles: Vec<_> = read
        .items
        .iter()
        .filter_map(|queued| title_of(&queued.item.operation.change()?))
        .collect();
    assert_eq!(titles, ["other", "first", "second"]);
    Ok(())
}

#[tokio::test]
async fn views_merge_what_waits_and_follow_other_openings_of_the_file() -> Outcome {
    let directory = tempfile::tempdir()?;
    let (one, other) = (
        Buffer::open(&config(directory.path(), 100))?,
        Buffer::open(&config(directory.path(), 100))?,
    );
    let id = TaskId::generate();
    append(&one, create("ann", id, "bread")).await?;
    append(&other, retitle("ann", id, "rye bread")).await?;
    for buffer in [&one, &other] {
        let view = buffer
            .read(move |reader| reader.find_pending(&user("ann"), &ResourceKey::Task(id)))
            .await?;
        let view = view.ok_or("nothing pending")?;
        assert_eq!(title_of(&view.state).as_deref(), Some("rye bread"));
        assert!(view.state.is_complete());
        assert_eq!(view.operations.len(), 2);
        let foreign = buffer
            .read(move |reader| reader.find_pending(&user("bob"), &ResourceKey::Task(id)))
            .await?;
        assert!(foreign.is_none(), "another user's items are not shown");
    }
    let read = batch(&one, 10, Skip::default(), any_time()).await?;
    one.settle(settle_all(&read, &Verdict::Applied)).await?;
    let gone = other
        .read(move |reader| reader.find_pending(&user("ann"), &ResourceKey::Task(id)))
        .await?;
    assert!(
        gone.is_none(),
        "what another process drained is no longer pending"
    );
    assert!(
        other
            .read(|reader| reader.list_pending(&user("ann")))
            .await?
            .is_empty()
    );
    Ok(())
}

#[tokio::test]
async fn each_verdict_is_carried_out_once_and_counted() -> Outcome {
    let directory = tempfile::tempdir()?;
    let buffer = Buffer::open(&config(directory.path(), 100))?;
    for number in 0..4 {
        append(
            &buffer,
            create("ann", TaskId::generate(), &format!("task {number}")),
        )
        .await?;
    }
    let read = batch(&buffer, 10, Skip::default(), any_time()).await?;
    let ids: Vec<OperationId> = read
        .items
        .iter()
        .map(|queued| queued.item.operation.id)
        .collect();
    let due = Timestamp::from_micros(5_000_000);
    let verdicts = [
        Verdict::Applied,
        Verdict::Superseded,
        Verdict::Dead {
            reason: "not_owner".into(),
        },
        Verdict::Retry {
            error: "22001".into(),
            not_before: due,
        },
    ];
    let settlements: Vec<Settlement> = read
        .items
        .iter()
        .zip(verdicts)
        .map(|(queued, verdict)| Settlement {
            queued: queued.clone(),
            verdict,
        })
        .collect();
    let report = buffer.settle(settlements.clone()).await?;
    assert_eq!(
        report,
        SettleReport {
            applied: 1,
            superseded: 1,
            dead: 1,
            retried: 1,
            skipped: 0
        }
    );
    let again = buffer.settle(settlements).await?;
    assert_eq!(
        again,
        SettleReport {
            skipped: 4,
            ..SettleReport::default()
        },
        "a repeat does nothing"
    );

    let snapshot = conserved(&buffer).await?;
    assert_eq!(
        (
            snapshot.counters.pending,
            snapshot.counters.dead,
            snapshot.finished
        ),
        (1, 1, 2)
    );
    let expected = [
        OperationState::Applied,
        OperationState::Superseded,
        OperationState::Dead,
        OperationState::Pending,
    ];
    for (id, state) in ids.iter().copied().zip(expected) {
        let record = buffer
            .read(move |reader| reader.find_operation(id))
            .await?
            .ok_or("unknown")?;
        assert_eq!(record.state, state);
    }
    let mut listed = buffer
        .read(|reader| reader.list_operations(&user("ann")))
        .await?;
    listed.sort_by_key(|record| record.id);
    assert_eq!(
        listed
            .iter()
            .map(|record| (record.id, record.state))
            .collect::<Vec<_>>(),
        ids.iter().copied().zip(expected).collect::<Vec<_>>()
    );
    assert!(
        buffer
            .read(|reader| reader.list_operations(&user("bob")))
            .await?
            .is_empty()
    );
    let early = batch(
        &buffer,
        10,
        Skip::default(),
        Timestamp::from_micros(4_999_999),
    )
    .await?;
    assert_eq!(
        (early.items.len(), early.put_off, early.next_due),
        (0, 1, Some(due))
    );
    let late = batch(&buffer, 10, Skip::default(), due).await?;
    assert_eq!(
        late.items
            .iter()
            .map(|queued| queued.item.retries)
            .collect::<Vec<_>>(),
        [1]
    );
    Ok(())
}

#[tokio::test]
async fn an_item_put_off_holds_back_its_resource_and_nothing_else() -> Outcome {
    let directory = tempfile::tempdir()?;
    let buffer = Buffer::open(&config(directory.path(), 100))?;
    let (stuck, free) = (TaskId::generate(), TaskId::generate());
    append(&buffer, create("ann", stuck, "stuck")).await?;
    append(&buffer, create("ann", free, "free")).await?;
    append(&buffer, retitle("ann", stuck, "stuck 2")).await?;
    let first = batch(&buffer, 1, Skip::default(), any_time()).await?;
    let later = Timestamp::from_micros(9_000_000);
    buffer
        .settle(settle_all(
            &first,
            &Verdict::Retry {
                error: "x".into(),
                not_before: later,
            },
        ))
        .await?;
    let now = batch(&buffer, 10, Skip::default(), Timestamp::from_micros(1)).await?;
    assert_eq!(
        now.items
            .iter()
            .map(|q| q.item.operation.resource())
            .collect::<Vec<_>>(),
        [ResourceKey::Task(free)]
    );
    let skip = Skip {
        resources: HashSet::from([ResourceKey::Task(free)]),
        ..Skip::default()
    };
    assert_eq!(
        batch(&buffer, 10, skip, Timestamp::from_micros(1))
            .await?
            .items
            .len(),
        0
    );
    assert_eq!(
        batch(&buffer, 10, Skip::default(), any_time())
            .await?
            .items
            .len(),
        3
    );
    Ok(())
}

#[tokio::test]
async fn dead_letters_come_back_or_go_by_hand_and_leave_through_the_archive() -> Outcome {
    let directory = tempfile::tempdir()?;
    let settings = BufferConfig {
        retention: Duration::ZERO,
        ..config(directory.path(), 100)
    };
    let buffer = Buffer::open(&settings)?;
    for _ in 0..3 {
        append(&buffer, create("ann", TaskId::generate(), "bread")).await?;
    }
    let read = batch(&buffer, 10, Skip::default(), any_time()).await?;
    let ids: Vec<OperationId> = read
        .items
        .iter()
        .map(|queued| queued.item.operation.id)
        .collect();
    buffer
        .settle(settle_all(
            &read,
            &Verdict::Dead {
                reason: "22001".into(),
            },
        ))
        .await?;
    assert_eq!(
        buffer
            .retry_dead(vec![ids[0], OperationId::generate()])
            .await?,
        [ids[0]]
    );
    assert_eq!(buffer.discard_dead(vec![ids[1]]).await?, [ids[1]]);
    let snapshot = conserved(&buffer).await?;
    assert_eq!(
        (
            snapshot.counters.pending,
            snapshot.counters.dead,
            snapshot.counters.discarded
        ),
        (1, 1, 1)
    );

    let report = buffer.retain(true).await?;
    assert_eq!((report.archived, report.more), (1, false));
    assert_eq!(conserved(&buffer).await?.counters.archived, 1);
    let file = std::fs::read_dir(archive_directory(buffer.path()))?
        .next()
        .ok_or("no archive")??
        .path();
    let (letters, unreadable) = read_archive(&file)?;
    assert_eq!((letters.len(), unreadable.len()), (1, 0));
    assert_eq!(
        (letters[0].item.operation.id, letters[0].reason.as_str()),
        (ids[2], "22001")
    );
    assert_eq!(buffer.retry_archived(letters.clone()).await?, 1);
    let again = buffer.retry_archived(letters.clone()).await?;
    assert_eq!(again, 0, "what waits isn't queued twice");
    let snapshot = conserved(&buffer).await?;
    assert_eq!(
        (snapshot.counters.pending, snapshot.counters.archived),
        (2, 0)
    );

    let another = Buffer::open(&config(&directory.path().join("another"), 100))?;
    assert_eq!(another.retry_archived(letters).await?, 1);
    assert_eq!(conserved(&another).await?.counters.pending, 1);
    Ok(())
}

#[tokio::test]
async fn a_letter_that_the_archive_cannot_take_stays() -> Outcome {
    let directory = tempfile::tempdir()?;
    let settings = BufferConfig {
        retention: Duration::ZERO,
        ..config(directory.path(), 100)
    };
    let buffer = Buffer::open(&settings)?;
    append(&buffer, create("ann", TaskId::generate(), "bread")).await?;
    let read = batch(&buffer, 10, Skip::default(), any_time()).await?;
    let reason = "22001".to_owned();
    buffer
        .settle(settle_all(&read, &Verdict::Dead { reason }))
        .await?;
    std::fs::write(archive_directory(buffer.path()), "not a directory")?;
    let refused = buffer.retain(true).await;
    assert!(
        matches!(refused, Err(BufferError::Io { .. })),
        "{refused:?}"
    );
    let counted = conserved(&buffer).await?.counters;
    assert_eq!((counted.dead, counted.archived), (1, 0));
    std::fs::remove_file(archive_directory(buffer.path()))?;
    assert_eq!(buffer.retain(true).await?.archived, 1);
    Ok(())
}

#[tokio::test]
async fn an_item_that_changed_since_it_was_read_is_not_settled() -> Outcome {
    let directory = tempfile::tempdir()?;
    let buffer = Buffer::open(&config(directory.path(), 100))?;
    let id = TaskId::generate();
    buffer.fold(create("ann", id, "bread")).await?;
    let read = batch(&buffer, 10, Skip::default(), any_time()).await?;
    buffer.fold(retitle("ann", id, "rye")).await?;
    let report = buffer.settle(settle_all(&read, &Verdict::Applied)).await?;
    assert_eq!((report.applied, report.skipped), (0, 1));
    assert_eq!(conserved(&buffer).await?.counters.pending, 1);
    Ok(())
}

#[tokio::test]
async fn a_file_of_another_database_is_recognised_while_it_holds_items() -> Outcome {
    let directory = tempfile::tempdir()?;
    let buffer = Buffer::open(&config(directory.path(), 100))?;
    let (one, other) = (uuid::Uuid::now_v7(), uuid::Uuid::now_v7());
    append(&buffer, create("ann", TaskId::generate(), "bread")).await?;
    assert_eq!(
        buffer.bind_database(Some(one)).await?,
        Binding::Bound,
        "an embedded buffer joins its first database"
    );
    assert_eq!(buffer.bind_database(Some(one)).await?, Binding::Same);
    assert_eq!(
        buffer.bind_database(Some(other)).await?,
        Binding::Foreign { waiting: 1 }
    );
    assert_eq!(
        buffer.bind_database(None).await?,
        Binding::Foreign { waiting: 1 }
    );
    buffer.adopt(Some(other)).await?;
    assert_eq!(buffer.bind_database(Some(other)).await?, Binding::Same);
    Ok(())
}

#[tokio::test]
async fn processes_for_two_databases_never_give_each_other_items() -> Outcome {
    let directory = tempfile::tempdir()?;
    let settings = config(directory.path(), 100);
    let (api, syncd) = (Buffer::open(&settings)?, Buffer::open(&settings)?);
    let (one, other) = (uuid::Uuid::now_v7(), uuid::Uuid::now_v7());
    api.bind_database(Some(one)).await?;
    // Nothing waits, so the file may change its database.
    assert_eq!(syncd.bind_database(Some(other)).await?, Binding::Bound);
    let refused = append(&api, create("ann", TaskId::generate(), "bread")).await;
    assert!(
        matches!(refused, Err(BufferError::OtherDatabase { .. })),
        "{refused:?}"
    );
    assert_eq!(api.bind_database(Some(one)).await?, Binding::Bound);
    append(&api, create("ann", TaskId::generate(), "rye")).await?;
    let refused = batch(&syncd, 10, Skip::default(), any_time()).await;
    assert!(refused.is_err(), "{refused:?}");
    assert_eq!(
        syncd.bind_database(Some(other)).await?,
        Binding::Foreign { waiting: 1 }
    );
    assert_eq!(
        batch(&api, 10, Skip::default(), any_time())
            .await?
            .items
            .len(),
        1
    );
    Ok(())
}

#[tokio::test]
async fn a_process_without_a_database_stops_using_a_file_that_has_joined_one() -> Outcome {
    let directory = tempfile::tempdir()?;
    let settings = config(directory.path(), 100);
    let (api, syncd) = (Buffer::open(&settings)?, Buffer::open(&settings)?);
    let id = TaskId::generate();
    api.bind_database(None).await?;
    api.fold(create("ann", id, "bread")).await?;
    assert_eq!(
        syncd.bind_database(Some(uuid::Uuid::now_v7())).await?,
        Binding::Bound
    );
    let refused = api.fold(retitle("ann", id, "rye")).await;
    assert!(
        matches!(refused, Err(BufferError::OtherDatabase { .. })),
        "{:?}",
        refused.err()
    );
    let read = api
        .reader()
        .find_pending(&user("ann"), &ResourceKey::Task(id));
    assert!(matches!(read, Err(BufferError::OtherDatabase { .. })));
    assert_eq!(
        batch(&syncd, 10, Skip::default(), any_time())
            .await?
            .items
            .len(),
        1
    );
    Ok(())
}

#[tokio::test]
async fn a_check_makes_no_file() -> Outcome {
    let (directory, copied) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let buffer = Buffer::open(&config(directory.path(), 100))?;
    append(&buffer, create("ann", TaskId::generate(), "bread")).await?;
    let copy = copied.path().join("buffer.redb");
    std::fs::copy(buffer.path(), &copy)?;
    assert_eq!(verify(&copy)?.items, 1);
    assert_eq!(std::fs::read_dir(copied.path())?.count(), 1);
    Ok(())
}

#[tokio::test]
async fn a_stopped_peer_inside_a_transaction_costs_a_refusal_at_the_deadline() -> Outcome {
    let directory = tempfile::tempdir()?;
    let settings = config(directory.path(), 100);
    let buffer = Buffer::open(&settings)?;
    let mut builder = redb::Database::builder();
    builder.set_concurrency_mode(redb::ConcurrencyMode::MultiWriter);
    let peer = builder.open(&settings.path)?;
    let held = peer.begin_write()?;
    let refused = append(&buffer, create("ann", TaskId::generate(), "refused")).await;
    assert!(matches!(refused, Err(BufferError::Busy)), "{refused:?}");
    held.abort()?;
    append(&buffer, create("ann", TaskId::generate(), "accepted")).await?;
    assert_eq!(
        conserved(&buffer).await?.counters.pending,
        1,
        "the refused one was never carried out"
    );
    Ok(())
}
