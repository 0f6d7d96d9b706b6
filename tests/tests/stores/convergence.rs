//! The Rust merge and the SQL agree, and every order ends the same.

use std::collections::HashMap;

use anyhow::Result;
use holdfast_shared::domain::profile::{Bio, DisplayName};
use holdfast_shared::domain::task::{Description, Tags, Title};
use holdfast_shared::domain::{
    Body, Idempotency, Operation, OperationId, Outcome, Precondition, Priority, ProfileState,
    Register, Rejection, ResourceKey, Row, State, Status, TaskId, TaskState, UserId, judge,
};
use holdfast_shared::store::postgres::{Applied, Postgres};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestRunner};
use sqlx::Row as _;
use tokio::runtime::Runtime;

use crate::operations::{
    buffered, change, conditional, create, delete, edit_profile, keyed, renamed, retitle, stamp,
    time, whole,
};
use crate::support::{Fixture, apply_one, some_user};

/// Ways a random operation can go; numbers choose users, tasks and fields.
#[derive(Debug, Clone)]
enum Draft {
    Create {
        task: usize,
    },
    Change {
        task: usize,
        fields: u8,
    },
    Folded {
        task: usize,
        fields: u8,
        older: i64,
        ended: bool,
    },
    Delete {
        task: usize,
    },
    Profile {
        fields: u8,
    },
}

/// What a random operation carries besides.
#[derive(Debug, Clone)]
struct Dress {
    user: usize,
    buffered: bool,
    key: Option<(u8, u8)>,
    condition: Option<Condition>,
    /// This and the next one are sent in one slice.
    joined: bool,
    /// An operation before it is sent again after it.
    repeat: Option<Index>,
}

#[derive(Debug, Clone, Copy)]
enum Condition {
    Exists,
    Absent,
    /// The tag the model has now.
    Current,
    Other,
}

fn drafts() -> impl Strategy<Value = Draft> {
    let task = 0..3usize;
    prop_oneof![
        2 => task.clone().prop_map(|task| Draft::Create { task }),
        4 => (task.clone(), 1..64u8).prop_map(|(task, fields)| Draft::Change { task, fields }),
        1 => (task.clone(), any::<u8>(), 1..40i64, any::<bool>())
            .prop_map(|(task, fields, older, ended)| Draft::Folded { task, fields, older, ended }),
        1 => task.prop_map(|task| Draft::Delete { task }),
        2 => (1..4u8).prop_map(|fields| Draft::Profile { fields }),
    ]
}

fn dresses() -> impl Strategy<Value = Dress> {
    let key = proptest::option::weighted(0.2, (0..3u8, 0..2u8));
    let conditions = select(vec![
        Condition::Exists,
        Condition::Absent,
        Condition::Current,
        Condition::Other,
    ]);
    let condition = proptest::option::weighted(0.25, conditions);
    let user = prop_oneof![4 => Just(0usize), 1 => Just(1usize)];
    (
        user,
        any::<bool>(),
        key,
        condition,
        any::<bool>(),
        proptest::option::weighted(0.2, any::<Index>()),
    )
        .prop_map(|(user, buffered, key, condition, joined, repeat)| Dress {
            user,
            buffered,
            key,
            condition,
            joined,
            repeat,
        })
}

/// Drafts in the order they are sent, with the numbers of their stamps, which are all different.
fn stories() -> impl Strategy<Value = Vec<(Draft, Dress, i64)>> {
    proptest::collection::vec((drafts(), dresses()), 1..24).prop_flat_map(|drafts| {
        let numbers: Vec<i64> = (100..).step_by(50).take(drafts.len()).collect();
        (Just(drafts), Just(numbers).prop_shuffle()).prop_map(|(drafts, numbers)| {
            drafts
                .into_iter()
                .zip(numbers)
                .map(|((draft, dress), number)| (draft, dress, number))
                .collect()
        })
    })
}

/// The same rules in memory, one operation at a time.
#[derive(Default)]
struct Model {
    rows: HashMap<ResourceKey, Row>,
    recorded: HashMap<(UserId, OperationId), Outcome>,
    keys: HashMap<(UserId, String), (OperationId, Idempotency)>,
}

impl Model {
    fn apply(&mut self, operation: &Operation) -> Outcome {
        let user = &operation.user_id;
        if let Some(outcome) = self
            .recorded
            .get(&(user.clone(), operation.id))
            .filter(|_| operation.leaves_record())
        {
            return *outcome;
        }
        let outcome = match self.by_key(operation) {
            Some(Ok(outcome)) => return outcome,
            Some(Err(rejection)) => Outcome::Rejected(rejection),
            None => self.settle(operation),
        };
        let is_final = match &outcome {
            Outcome::Applied => true,
            Outcome::Superseded => operation.buffered,
            Outcome::Rejected(rejection) => *rejection != Rejection::NotFound,
        };
        if operation.leaves_record() && is_final {
            self.recorded.insert((user.clone(), operation.id), outcome);
            if let Some(own) = &operation.idempotency {
                let key = (user.clone(), own.key.as_str().to_owned());
                self.keys.entry(key).or_insert((operation.id, own.clone()));
            }
        }
        outcome
    }

    fn by_key(&self, operation: &Operation) -> Option<Result<Outcome, Rejection>> {
        let own = operation.idempotency.as_ref()?;
        let user = operation.user_id.clone();
        let (first, theirs) = self
            .keys
            .get(&(user.clone(), own.key.as_str().to_owned()))?;
        if theirs.fingerprint != own.fingerprint {
            return Some(Err(Rejection::KeyReused));
        }
        Some(Ok(self.recorded[&(user, *first)]))
    }

    fn settle(&mut self, operation: &Operation) -> Outcome {
        let key = operation.resource();
        let current = self.rows.get(&key);
        let outcome = judge(operation, current);
        let ended = current.is_some_and(|row| row.state.deleted().is_some());
        if !ended && !matches!(outcome, Outcome::Rejected(_)) {
            let mut state = operation
                .applied_to(current.map(|row| &row.state))
                .expect("judged to be there");
            state.merge(&state.clone());
            self.rows.insert(
                key,
                Row {
                    owner: operation.user_id.clone(),
                    state,
                },
            );
        }
        outcome
    }
}

/// One story's users and tasks, which no other story knows.
struct Cast {
    users: [UserId; 2],
    tasks: [TaskId; 3],
}

impl Cast {
    fn new() -> Self {
        Cast {
            users: [some_user(), some_user()],
            tasks: [TaskId::generate(), TaskId::generate(), TaskId::generate()],
        }
    }

    fn operation(&self, draft: &Draft, dress: &Dress, number: i64, model: &Model) -> Operation {
        let user = &self.users[dress.user];
        let mut operation = match *draft {
            Draft::Create { task } => create(user, self.tasks[task], number),
            Draft::Change { task, fields } => {
                change(user, self.tasks[task], number, some_fields(number, fields))
            }
            Draft::Folded {
                task,
                fields,
                older,
                ended,
            } => change(
                user,
                self.tasks[task],
                number,
                folded(number, fields, number - older, ended),
            ),
            Draft::Delete { task } => delete(user, self.tasks[task], number),
            Draft::Profile { fields } => profile_edit(user, number, fields),
        };
        if dress.buffered {
            operation = buffered(operation);
        }
        if let Some((key, request)) = dress.key {
            operation = keyed(operation, &format!("key-{key}"), request);
        }
        if let Some(condition) = dress.condition {
            let current = model
                .rows
                .get(&operation.resource())
                .map(|row| row.state.etag());
            let other = State::Task(whole(7)).etag();
            let precondition = match condition {
                Condition::Exists => Precondition::Exists,
                Condition::Absent => Precondition::Absent,
                Condition::Current => {
                    Precondition::Match(current.into_iter().chain([other]).collect())
                }
                Condition::Other => Precondition::Match(vec![other]),
            };
            operation = conditional(operation, precondition);
        }
        operation
    }
}

/// The fields of which a bit is set, with values that depend on the number.
fn some_fields(number: i64, fields: u8) -> TaskState {
    let stamp = stamp(number);
    let set = |bit: u8| fields & (1 << bit) != 0;
    let due = (number % 3 != 0).then(|| time(number * 1000));
    let tags = vec![
        format!("tag {number}"),
        "\"quoted\", \\ {and} ünï".to_owned(),
    ];
    TaskState {
        created: None,
        deleted: None,
        title: set(0)
            .then(|| Register::new(Title::parse(&format!("t{number}")).expect("valid"), stamp)),
        description: set(1).then(|| {
            Register::new(
                Description::parse(&format!("d\n{number}")).expect("valid"),
                stamp,
            )
        }),
        status: set(2).then(|| Register::new(Status::ALL[number as usize % 4], stamp)),
        priority: set(3).then(|| Register::new(Priority::ALL[number as usize % 5], stamp)),
        due_at: set(4).then(|| Register::new(due, stamp)),
        tags: set(5).then(|| Register::new(Tags::new(tags).expect("valid"), stamp)),
    }
}

/// A whole task of which some fields are newer, perhaps deleted since: what embedded mode leaves behind.
fn folded(number: i64, fields: u8, older: i64, ended: bool) -> TaskState {
    let mut task = whole(older);
    task.merge(&some_fields(number, fields));
    task.deleted = ended.then(|| stamp(number));
    task
}

fn profile_edit(user: &UserId, number: i64, fields: u8) -> Operation {
    let mut operation = edit_profile(user, number, "");
    if let Body::Profile { change, .. } = &mut operation.body {
        **change = ProfileState::default();
        if fields & 1 != 0 {
            change.merge(&renamed(number, &format!("name {number}")));
        }
        if fields & 2 != 0 {
            change.bio = Some(Register::new(
                Bio::parse(&format!("bio {number}")).expect("valid"),
                stamp(number),
            ));
            change.display_name = Some(Register::new(
                DisplayName::parse(&format!("n{number}")).expect("valid"),
                stamp(number),
            ));
        }
    }
    operation
}

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
        let tags = [found.as_ref(), expected].map(|row| row.map(|row| row.state.etag()));
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
        let mut first = 0;
        while let Some(ended) = requests.join_next().await {
            let applied = ended??;
            assert_eq!(applied.outcome, Outcome::Applied);
            first += usize::from(applied.replayed.is_none());
        }
        assert_eq!(first, 1);
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
