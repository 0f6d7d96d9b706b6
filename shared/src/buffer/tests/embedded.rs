//! The buffer as the store, where there is no database.

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
async fn what_is_remembered_of_keys_is_forgotten_after_their_time() -> Outcome {
    const DAY_US: i64 = 24 * 3_600 * 1_000_000;
    let directory = tempfile::tempdir()?;
    let buffer = Buffer::open(&config(directory.path(), 10_000))?;
    let day = |number: i64| Timestamp::from_micros(1_795_000_000_000_000 + number * DAY_US);
    let key = |number: usize| IdempotencyKey::parse(&format!("k{number}")).expect("valid");
    for number in 0..300 {
        let mut operation = create("ann", TaskId::generate(), "bread");
        operation.accepted_at = day(if number < 100 { 0 } else { 91 });
        let fingerprint = [0; 32];
        operation.idempotency = Some(Idempotency {
            key: key(number),
            fingerprint,
        });
        buffer.fold(operation).await?;
    }
    let user = user("ann");
    let known = buffer.read_blocking(|reader| {
        (0..300)
            .map(|number| reader.find_keyed(&user, &key(number)))
            .collect::<Result<Vec<_>, _>>()
    })?;
    let kept = |range: std::ops::Range<usize>| known[range].iter().flatten().count();
    assert_eq!(kept(100..300), 200);
    assert!(kept(0..100) < 20, "{} of 100 are there", kept(0..100));
    Ok(())
}
