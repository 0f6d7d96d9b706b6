//! The buffer as the store, where there is no database.

use uuid::Uuid;

use super::*;
use crate::domain::{Idempotency, IdempotencyKey, Outcome as Ended, Rejection};

#[tokio::test]
async fn embedded_mode_keeps_one_folded_item_a_resource_and_a_delete_is_final() -> Outcome {
    let directory = tempfile::tempdir()?;
    let buffer = Buffer::open(&config(directory.path(), 100))?;
    let id = TaskId::generate();
    let made = buffer.fold(create("ann", id, "bread")).await?;
    assert!(made.created && made.outcome == Ended::Applied);
    let changed = buffer.fold(retitle("ann", id, "rye")).await?;
    assert!(!changed.created);
    assert_eq!(
        changed.state.as_ref().and_then(title_of).as_deref(),
        Some("rye")
    );
    let foreign = buffer.fold(retitle("bob", id, "mine")).await?;
    assert_eq!(foreign.outcome, Ended::Rejected(Rejection::NotOwner));
    let missing = buffer
        .fold(retitle("ann", TaskId::generate(), "nothing"))
        .await?;
    assert_eq!(missing.outcome, Ended::Rejected(Rejection::NotFound));
    assert_eq!(
        buffer.fold(delete("ann", id)).await?.outcome,
        Ended::Applied
    );
    assert_eq!(
        buffer.fold(delete("ann", id)).await?.outcome,
        Ended::Superseded
    );
    let back = buffer.fold(create("ann", id, "again")).await?;
    assert_eq!(back.outcome, Ended::Rejected(Rejection::Deleted));
    assert_eq!(conserved(&buffer).await?.counters.pending, 1);
    Ok(())
}

#[tokio::test]
async fn in_embedded_mode_each_key_of_a_resource_is_remembered() -> Outcome {
    let directory = tempfile::tempdir()?;
    let buffer = Buffer::open(&config(directory.path(), 100))?;
    let id = TaskId::generate();
    let keyed = |mut operation: Operation, key: &str, request: u8| {
        let key = IdempotencyKey::parse(key).expect("valid");
        let fingerprint = [request; 32];
        operation.idempotency = Some(Idempotency { key, fingerprint });
        operation
    };
    let first = keyed(create("ann", id, "bread"), "k", 1);
    assert!(buffer.fold(first.clone()).await?.created);
    for (title, key) in [("rye", "l"), ("white", "m")] {
        buffer
            .fold(keyed(retitle("ann", id, title), key, 1))
            .await?;
    }
    drop(buffer);
    let buffer = Buffer::open(&config(directory.path(), 100))?;
    for (operation, key) in [
        (create("ann", id, "bread"), "k"),
        (retitle("ann", id, "rye"), "l"),
    ] {
        let repeat = buffer.fold(keyed(operation, key, 1)).await?;
        assert!(repeat.replayed.is_some(), "{key}");
        assert_eq!(
            repeat.state.as_ref().and_then(title_of).as_deref(),
            Some("white")
        );
    }
    let other = buffer
        .fold(keyed(retitle("ann", id, "else"), "l", 2))
        .await?;
    assert_eq!(other.outcome, Ended::Rejected(Rejection::KeyReused));
    let user = user("ann");
    let (known, wanted) = (IdempotencyKey::parse("k")?, Some(first.id));
    let found = buffer.read_blocking(|reader| reader.find_keyed(&user, &known))?;
    assert_eq!(found.map(|known| known.record.id), wanted);
    Ok(())
}

#[tokio::test]
async fn an_item_of_several_writes_stands_for_none_of_them() -> Outcome {
    let directory = tempfile::tempdir()?;
    let buffer = Buffer::open(&config(directory.path(), 100))?;
    let id = TaskId::generate();
    let first = keyed(create("ann", id, "bread"), 1);
    buffer.fold(first.clone()).await?;
    buffer.fold(retitle("ann", id, "rye")).await?;
    let items = buffer
        .read(|reader| reader.list_items(Lane::Postgres, 10))
        .await?;
    let [queued] = items.as_slice() else {
        panic!("{items:?}")
    };
    let operation = &queued.item.operation;
    assert_eq!((operation.id, &operation.idempotency), (first.id, &None));
    assert!(operation.is_folded() && !first.is_folded());
    let told = buffer.read_blocking(|reader| reader.list_keyed(&user("ann")))?;
    let told: Vec<_> = told.iter().map(|write| &write.record).collect();
    assert_eq!((told.len(), told[0].id), (1, first.id));
    assert!(told[0].finished_at.is_some());
    assert!(
        buffer
            .read_blocking(|reader| reader.list_keyed(&user("bob")))?
            .is_empty()
    );
    Ok(())
}

#[tokio::test]
async fn keys_of_another_database_are_free() -> Outcome {
    let directory = tempfile::tempdir()?;
    let buffer = Buffer::open(&config(directory.path(), 100))?;
    buffer
        .fold(keyed(create("ann", TaskId::generate(), "bread"), 1))
        .await?;
    let known = || buffer.read_blocking(|reader| reader.list_keyed(&user("ann")));
    let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
    assert_eq!(buffer.bind_database(Some(one)).await?, Binding::Bound);
    assert_eq!(known()?.len(), 1);
    let read = batch(&buffer, 1, Skip::default(), any_time()).await?;
    buffer.settle(settle_all(&read, &Verdict::Applied)).await?;
    assert_eq!(known()?.len(), 1);
    assert_eq!(buffer.bind_database(Some(other)).await?, Binding::Bound);
    assert_eq!(known()?.len(), 0);
    Ok(())
}

#[tokio::test]
async fn what_is_remembered_of_keys_is_forgotten_after_their_time() -> Outcome {
    let known = known_after_91_days(100, 200).await?;
    assert_eq!(known[100..].iter().filter(|known| **known).count(), 200);
    let old = known[..100].iter().filter(|known| **known).count();
    assert!(old < 20, "{old} of 100 are there");
    Ok(())
}

#[tokio::test]
async fn few_keys_outlast_a_clock_that_was_wrong() -> Outcome {
    let known = known_after_91_days(10, 5).await?;
    assert_eq!(known, [true; 15]);
    Ok(())
}

/// Which of so many keys, used on one day, and so many more, used 91 days later, are known in the end.
async fn known_after_91_days(
    old: usize,
    new: usize,
) -> Result<Vec<bool>, Box<dyn std::error::Error>> {
    const DAY_US: i64 = 24 * 3_600 * 1_000_000;
    let directory = tempfile::tempdir()?;
    let buffer = Buffer::open(&config(directory.path(), 10_000))?;
    let day = |number: i64| Timestamp::from_micros(1_795_000_000_000_000 + number * DAY_US);
    let key = |number: usize| IdempotencyKey::parse(&format!("k{number}")).expect("valid");
    for number in 0..old + new {
        let mut operation = create("ann", TaskId::generate(), "bread");
        operation.accepted_at = day(if number < old { 0 } else { 91 });
        let fingerprint = [0; 32];
        operation.idempotency = Some(Idempotency {
            key: key(number),
            fingerprint,
        });
        buffer.fold(operation).await?;
    }
    let user = user("ann");
    let known = buffer.read_blocking(|reader| {
        (0..old + new)
            .map(|number| Ok(reader.find_keyed(&user, &key(number))?.is_some()))
            .collect::<Result<Vec<_>, BufferError>>()
    })?;
    Ok(known)
}
