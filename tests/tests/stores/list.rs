//! The list of tasks is the one that the Rust definition gives.

use anyhow::Result;
use holdfast_shared::domain::task::{Description, Tags, Title};
use holdfast_shared::domain::{
    Cursor, Priority, Register, SortField, Status, TaskId, TaskQuery, TaskState, Timestamp, UserId,
};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};
use tokio::runtime::Runtime;

use crate::operations::{change, create, delete, stamp, time, whole};
use crate::support::{Fixture, apply_one, some_user};

/// Words whose upper and lower case differ in every way in which two implementations could disagree.
const WORDS: [&str; 12] = [
    "bread",
    "BREAD",
    "Ärger",
    "ärger",
    "ΣΊΣΥΦΟΣ",
    "σίσυφος",
    "straße",
    "STRASSE",
    "İstanbul",
    "ǅ",
    "100%_\\",
    "ﬀ",
];

/// Few different values, so that conditions hold and sort keys tie.
#[derive(Debug, Clone)]
struct Draft {
    words: Vec<&'static str>,
    due: Option<i64>,
    status: usize,
    priority: usize,
    created: i64,
    updated: i64,
    deleted: bool,
}

fn drafts() -> impl Strategy<Value = Vec<Draft>> {
    let words = proptest::collection::vec(select(WORDS.to_vec()), 1..3);
    let due = proptest::option::of(select(vec![-5_000_000_000i64, 0, 7, 8]));
    let draft = (
        words,
        due,
        0..4usize,
        0..5usize,
        0..4i64,
        0..3i64,
        proptest::bool::weighted(0.1),
    )
        .prop_map(
            |(words, due, status, priority, created, updated, deleted)| Draft {
                words,
                due,
                status,
                priority,
                created,
                updated,
                deleted,
            },
        );
    proptest::collection::vec(draft, 1..30)
}

fn queries() -> impl Strategy<Value = TaskQuery> {
    let due = || proptest::option::weighted(0.2, select(vec![-5_000_000_001i64, 0, 7, 9]));
    let text = proptest::option::weighted(
        0.3,
        select(vec![
            "brea", "ä", "σ", "Σ", "ς", "SS", "ß", "i", "%", "ǆ", "ﬀ", "ff",
        ]),
    );
    let tag = proptest::option::weighted(0.2, select(WORDS.to_vec()));
    let word = (text, tag, due(), due());
    let choice = (
        proptest::option::weighted(0.3, 0..4usize),
        proptest::option::weighted(0.3, 0..5usize),
    );
    let order = (select(SortField::ALL.to_vec()), any::<bool>(), 1..12usize);
    (word, choice, order).prop_map(
        |((text, tag, before, after), (status, priority), ((sort, _), descending, limit))| {
            TaskQuery {
                status: status.map(|index| Status::ALL[index]),
                priority: priority.map(|index| Priority::ALL[index]),
                tag: tag.map(str::to_owned),
                due_before: before.map(time),
                due_after: after.map(time),
                text: text.map(str::to_owned),
                sort,
                descending,
                limit,
                after: None,
            }
        },
    )
}

fn task(draft: &Draft) -> TaskState {
    let mut task = whole(draft.created);
    let stamp = stamp(draft.created + draft.updated);
    let (title, description) = (draft.words[0], draft.words.join(" "));
    task.title = Some(Register::new(Title::parse(title).expect("valid"), stamp));
    task.description = Some(Register::new(
        Description::parse(&description).expect("valid"),
        stamp,
    ));
    task.status = Some(Register::new(Status::ALL[draft.status], stamp));
    task.priority = Some(Register::new(Priority::ALL[draft.priority], stamp));
    task.due_at = Some(Register::new(draft.due.map(time), stamp));
    let tags = draft.words.iter().map(|word| (*word).to_owned()).collect();
    task.tags = Some(Register::new(Tags::new(tags).expect("valid"), stamp));
    task
}

#[test]
fn lists_agree_with_the_rust_definition() -> Result<()> {
    let runtime = Runtime::new()?;
    let fixture = runtime.block_on(Fixture::start())?;
    let cases = (drafts(), proptest::collection::vec(queries(), 8));
    let mut runner = TestRunner::new(Config {
        cases: 60,
        failure_persistence: None,
        ..Config::default()
    });
    runner.run(&cases, |(drafts, queries)| {
        let checked = runtime.block_on(check(&fixture, &drafts, &queries));
        checked.map_err(|error| TestCaseError::fail(format!("{error:#}")))
    })?;
    Ok(())
}

async fn check(fixture: &Fixture, drafts: &[Draft], queries: &[TaskQuery]) -> Result<()> {
    let user = some_user();
    let mut tasks = Vec::new();
    for draft in drafts {
        let (id, state) = (TaskId::generate(), task(draft));
        apply_one(
            &fixture.store,
            &change(&user, id, draft.created, state.clone()),
        )
        .await?;
        if draft.deleted {
            apply_one(&fixture.store, &delete(&user, id, 100)).await?;
        } else {
            tasks.push((id, state));
        }
    }
    for query in queries {
        check_pages(fixture, &user, &tasks, query).await?;
    }
    Ok(())
}

/// Every page, each beginning where the one before ended.
async fn check_pages(
    fixture: &Fixture,
    user: &UserId,
    tasks: &[(TaskId, TaskState)],
    query: &TaskQuery,
) -> Result<()> {
    let without: Vec<TaskId> = tasks.iter().step_by(5).map(|(id, _)| *id).collect();
    let mut query = query.clone();
    loop {
        for without in [&[][..], &without] {
            let found = fixture.store.list_tasks(user, &query, without).await?;
            let expected = select_in_memory(tasks, &query, without);
            anyhow::ensure!(
                found == expected,
                "{query:?} gave {found:?}, not {expected:?}"
            );
        }
        let page = select_in_memory(tasks, &query, &[]);
        let Some((id, last)) = page.last() else {
            return Ok(());
        };
        query.after = Some(Cursor {
            key: query.key(last),
            id: *id,
        });
    }
}

fn select_in_memory(
    tasks: &[(TaskId, TaskState)],
    query: &TaskQuery,
    without: &[TaskId],
) -> Vec<(TaskId, TaskState)> {
    let mut selected: Vec<_> = tasks
        .iter()
        .filter(|(id, task)| query.selects(*id, task) && !without.contains(id))
        .cloned()
        .collect();
    selected.sort_by(|(one, first), (other, second)| {
        query.compare((query.key(first), *one), (query.key(second), *other))
    });
    selected.truncate(query.limit);
    selected
}

#[tokio::test]
async fn a_list_holds_only_ones_own_tasks() -> Result<()> {
    let fixture = Fixture::start().await?;
    let (ann, bob) = (some_user(), some_user());
    apply_one(&fixture.store, &create(&ann, TaskId::generate(), 1)).await?;
    assert_eq!(
        fixture
            .store
            .list_tasks(&ann, &TaskQuery::default(), &[])
            .await?
            .len(),
        1
    );
    assert_eq!(
        fixture
            .store
            .list_tasks(&bob, &TaskQuery::default(), &[])
            .await?,
        []
    );
    Ok(())
}

#[tokio::test]
async fn a_cursor_from_nowhere_is_harmless() -> Result<()> {
    let fixture = Fixture::start().await?;
    let user = some_user();
    apply_one(&fixture.store, &create(&user, TaskId::generate(), 1)).await?;
    for (sort, _) in SortField::ALL {
        for key in [None, Some(i64::MIN), Some(i64::MAX), Some(0)] {
            let after = Some(Cursor {
                key,
                id: TaskId::generate(),
            });
            let query = TaskQuery {
                sort,
                after,
                due_before: Some(Timestamp::from_micros(i64::MAX)),
                ..TaskQuery::default()
            };
            fixture.store.list_tasks(&user, &query, &[]).await?;
        }
    }
    Ok(())
}
