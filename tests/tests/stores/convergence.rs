//! The Rust merge and the SQL agree, and every order ends the same.

use anyhow::Result;
use holdfast_shared::domain::{
    Body, Operation, Outcome, Rejection, ResourceKey, Row, State, TaskId,
};
use holdfast_shared::store::postgres::{Applied, Postgres};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};
use sqlx::Row as _;
use tokio::runtime::Runtime;

use crate::operations::{buffered, change, create, keyed, retitle, stamp, whole};
use crate::stories::{Cast, Draft, Dress, Model, drafts, some_fields, stories};
use crate::support::{Fixture, apply_one, some_user};

#[test]
fn sql_and_rust_merge_alike() -> Result<()> {
    let runtime = Runtime::new()?;
    let fixture = runtime.block_on(Fixture::start())?;
    let mut runner = TestRunner::new(Config {
        cases: 200,
        failure_persistence: None,
        ..Config::default()
    });
    runner.run(&stories(), |story| {
        runtime
            .block_on(check_story(&fixture, &story))
            .map_err(failed)
    })?;
    let written = runtime.block_on(check_times(&fixture))?;
    assert!(written > 200, "hardly anything was written: {written}");
    Ok(())
}

fn failed(error: anyhow::Error) -> TestCaseError {
    TestCaseError::fail(format!("{error:#}"))
}

async fn check_story(fixture: &Fixture, story: &[(Draft, Dress, i64)]) -> Result<()> {
    let cast = Cast::new();
    let mut model = Model::default();
    let mut sent: Vec<Operation> = Vec::new();
    let (mut slice, mut expected) = (Vec::new(), Vec::new());
    for (draft, dress, number) in story {
        let operation = cast.operation(draft, dress, *number, &model);
        let mut due = vec![operation.clone()];
        sent.push(operation);
        due.extend(dress.repeat.map(|index| index.get(&sent).clone()));
        for operation in due {
            expected.push((
                model.apply(&operation),
                model.rows.get(&operation.resource()).cloned(),
            ));
            slice.push(operation);
        }
        if !dress.joined {
            send(&fixture.store, &mut slice, &mut expected).await?;
        }
    }
    send(&fixture.store, &mut slice, &mut expected).await?;
    check_rows(&fixture.store, &cast, &model).await
}

/// Sends a slice, and compares each answer with the model's.
async fn send(
    store: &Postgres,
    slice: &mut Vec<Operation>,
    expected: &mut Vec<(Outcome, Option<Row>)>,
) -> Result<()> {
    let applied = store.apply(slice).await?;
    anyhow::ensure!(applied.len() == slice.len(), "an answer for each");
    for ((operation, (outcome, row)), applied) in
        slice.drain(..).zip(expected.drain(..)).zip(applied)
    {
        anyhow::ensure!(
            applied.outcome == outcome,
            "{:?}, not {outcome:?}: {operation:?}",
            applied.outcome
        );
        let visible = row
            .filter(|row| row.owner == operation.user_id)
            .map(|row| row.state);
        anyhow::ensure!(
            applied.state == visible,
            "{:?}, not {visible:?}: {operation:?}",
            applied.state
        );
    }
    Ok(())
}

async fn check_rows(store: &Postgres, cast: &Cast, model: &Model) -> Result<()> {
    for id in cast.tasks {
        let (found, expected) = (
            store.find_task(id).await?,
            model.rows.get(&ResourceKey::Task(id)),
        );
        anyhow::ensure!(found.as_ref() == expected, "{found:?}, not {expected:?}");
        let tags = [found.as_ref(), expected].map(|row| row.map(|row| row.state.etag(&row.owner)));
        anyhow::ensure!(tags[0] == tags[1], "the tags differ");
    }
    for user in &cast.users {
        let found = store.find_profile(user).await?.map(State::Profile);
        let expected = model
            .rows
            .get(&ResourceKey::Profile(user.clone()))
            .map(|row| row.state.clone());
        anyhow::ensure!(found == expected, "{found:?}, not {expected:?}");
    }
    Ok(())
}

/// The times that the schema computes are those the states tell. Returns how many rows there are.
async fn check_times(fixture: &Fixture) -> Result<usize> {
    let mut connection = fixture.connect().await?;
    let rows = sqlx::query("SELECT id, created_at, updated_at, completed_at FROM tasks")
        .fetch_all(&mut connection)
        .await?;
    for row in &rows {
        let id = TaskId::from_uuid(row.try_get(0)?);
        let state = fixture.store.find_task(id).await?.expect("there").state;
        let State::Task(task) = &state else {
            anyhow::bail!("not a task")
        };
        let created = task.created.map(|stamp| stamp.time().to_datetime());
        assert_eq!(
            row.try_get::<Option<chrono::DateTime<chrono::Utc>>, _>(1)?,
            created
        );
        assert_eq!(
            row.try_get::<chrono::DateTime<chrono::Utc>, _>(2)?,
            state.newest().time().to_datetime()
        );
        let completed = task.completed_at().map(|time| time.to_datetime());
        assert_eq!(
            row.try_get::<Option<chrono::DateTime<chrono::Utc>>, _>(3)?,
            completed
        );
    }
    Ok(rows.len())
}

/// Operations of one user on few tasks, without conditions: creates, changes, and seldom a delete.
fn unconditional(cast: &Cast, drafts: &[Draft]) -> Vec<Operation> {
    let model = Model::default();
    let dress = |index: usize| Dress {
        user: 0,
        buffered: index.is_multiple_of(2),
        key: None,
        condition: None,
        joined: false,
        repeat: None,
    };
    let numbers = (100..).step_by(50);
    drafts
        .iter()
        .zip(numbers)
        .enumerate()
        .map(|(index, (draft, number))| cast.operation(draft, &dress(index), number, &model))
        .collect()
}

/// What is left when all have been applied: where there is a tombstone, only that matters.
fn essence(row: Option<Row>) -> Option<State> {
    let state = row?.state;
    match state {
        State::Task(task) if task.deleted.is_some() => None,
        other => Some(other),
    }
}

#[test]
fn every_order_and_every_split_ends_the_same() -> Result<()> {
    let runtime = Runtime::new()?;
    let fixture = runtime.block_on(Fixture::start())?;
    let drafts = proptest::collection::vec(drafts(), 2..14).prop_map(|drafts| {
        drafts
            .into_iter()
            .filter(|draft| !matches!(draft, Draft::Profile { .. }))
            .collect()
    });
    let orders = (
        drafts,
        proptest::collection::vec(any::<proptest::sample::Index>(), 28),
        1..6usize,
    );
    let mut runner = TestRunner::new(Config {
        cases: 100,
        failure_persistence: None,
        ..Config::default()
    });
    runner.run(&orders, |(drafts, order, split): (Vec<Draft>, _, _)| {
        runtime
            .block_on(check_order(&fixture, &drafts, &order, split))
            .map_err(failed)
    })?;
    Ok(())
}

/// Applies the operations in the order of their stamps, and, as other tasks, in another order with some sent twice.
async fn check_order(
    fixture: &Fixture,
    drafts: &[Draft],
    order: &[Index],
    split: usize,
) -> Result<()> {
    let (straight, shuffled) = (Cast::new(), Cast::new());
    settle_all(&fixture.store, unconditional(&straight, drafts), 1).await?;
    let mut operations = unconditional(&shuffled, drafts);
    if operations.is_empty() {
        return Ok(());
    }
    for pair in order.chunks_exact(2) {
        let (one, other) = (
            pair[0].index(operations.len()),
            pair[1].index(operations.len()),
        );
        operations.swap(one, other);
    }
    let again = order[0].get(&operations).clone();
    operations.push(again);
    settle_all(&fixture.store, operations, split).await?;
    for (one, other) in straight.tasks.into_iter().zip(shuffled.tasks) {
        let ends = [
            fixture.store.find_task(one).await?,
            fixture.store.find_task(other).await?,
        ];
        let [one, other] = ends.map(essence);
        anyhow::ensure!(one == other, "{one:?}, not {other:?}");
    }
    Ok(())
}

/// Applies operations as syncd does: one that finds no row is tried again after the others.
async fn settle_all(store: &Postgres, mut operations: Vec<Operation>, split: usize) -> Result<()> {
    loop {
        let mut missing = Vec::new();
        for slice in operations.chunks(split) {
            for (operation, applied) in slice.iter().zip(store.apply(slice).await?) {
                if applied.outcome == Outcome::Rejected(Rejection::NotFound) {
                    missing.push(operation.clone());
                }
            }
        }
        if missing.is_empty() || missing.len() == operations.len() {
            return Ok(());
        }
        operations = missing;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_at_the_same_time_lose_nothing() -> Result<()> {
    let fixture = Fixture::start().await?;
    for round in 0..10 {
        let (user, id, second) = (some_user(), TaskId::generate(), TaskId::generate());
        let mut expected = whole(1);
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..8i64 {
            let mut slice = vec![
                create(&user, id, 1 + writer),
                create(&user, second, 1 + writer),
            ];
            for step in 0..4 {
                let number = 100 + step * 8 + writer;
                let fields = 1 << ((number + round) % 6);
                slice.push(change(&user, id, number, some_fields(number, fields)));
            }
            for operation in &slice {
                if let (ResourceKey::Task(task), Body::Task { change, .. }) =
                    (operation.resource(), &operation.body)
                    && task == id
                {
                    expected.merge(change);
                }
            }
            if writer % 2 == 0 {
                slice.reverse();
                slice = slice.into_iter().map(buffered).collect();
            }
            let store = fixture.store.clone();
            writers.spawn(async move { settle_all(&store, slice, 1 + writer as usize % 4).await });
        }
        while let Some(ended) = writers.join_next().await {
            ended??;
        }
        let row = fixture.store.find_task(id).await?.expect("there");
        assert_eq!(row.state, State::Task(expected));
    }
    Ok(())
}

/// Applies a direct write as the API does: one that met a newer stamp is stamped anew.
async fn insist(store: &Postgres, mut operation: Operation) -> Result<Applied> {
    let mut applied = apply_one(store, &operation).await?;
    if applied.outcome == Outcome::Superseded {
        operation.restamp(stamp(1_000));
        applied = apply_one(store, &operation).await?;
    }
    Ok(applied)
}

#[tokio::test(flavor = "multi_thread")]
async fn of_requests_under_one_key_at_the_same_time_one_is_applied() -> Result<()> {
    let fixture = Fixture::start().await?;
    for _ in 0..10 {
        let (user, id) = (some_user(), TaskId::generate());
        let mut requests = tokio::task::JoinSet::new();
        for number in 1..=8 {
            let store = fixture.store.clone();
            let operation = keyed(create(&user, id, number), "k", 1);
            requests.spawn(async move { insist(&store, operation).await });
        }
        let mut firsts = Vec::new();
        while let Some(ended) = requests.join_next().await {
            let applied = ended??;
            assert_eq!(applied.outcome, Outcome::Applied);
            if applied.replayed.is_none() {
                firsts.push(applied.state);
            }
        }
        let row = fixture.store.find_task(id).await?.expect("there");
        assert_eq!(firsts, [Some(row.state)]);
        assert_eq!(
            fixture
                .store
                .list_operations(&user, None, None, 9)
                .await?
                .len(),
            1
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_in_opposite_order_do_not_wait_for_each_other() -> Result<()> {
    let fixture = Fixture::start().await?;
    let user = some_user();
    let tasks: Vec<TaskId> = (0..40).map(|_| TaskId::generate()).collect();
    let mut batches = tokio::task::JoinSet::new();
    for batch in 0..8i64 {
        let mut slice: Vec<Operation> = tasks
            .iter()
            .map(|id| buffered(create(&user, *id, 1 + batch)))
            .collect();
        slice.extend(
            tasks
                .iter()
                .map(|id| buffered(retitle(&user, *id, 100 + batch, "new"))),
        );
        if batch % 2 == 0 {
            slice[..40].reverse();
        }
        let store = fixture.store.clone();
        batches.spawn(async move { store.apply(&slice).await });
    }
    while let Some(ended) = batches.join_next().await {
        ended??;
    }
    assert_eq!(fixture.store.count_applied_operations().await?, 8 * 80);
    Ok(())
}
