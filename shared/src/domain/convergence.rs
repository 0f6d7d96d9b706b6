//! The one idea, as a property: whatever the order, however often repeated, the same operations make the same rows.

use proptest::prelude::*;

use super::profile::Bio;
use super::task::{Description, Tags, Title};
use super::*;

/// A write of a node, as the property picks it.
#[derive(Debug, Clone)]
enum Write {
    Create(u8),
    Retitle(u8),
    Finish,
    Delete,
}

fn writes() -> impl Strategy<Value = Vec<Write>> {
    let write = prop_oneof![
        3 => any::<u8>().prop_map(Write::Create),
        5 => any::<u8>().prop_map(Write::Retitle),
        3 => Just(Write::Finish),
        1 => Just(Write::Delete),
    ];
    proptest::collection::vec(write, 1..12)
}

/// The writes as operations, in the order of their stamps, each from one of three nodes.
fn operations(writes: Vec<Write>) -> Vec<Operation> {
    let id = TaskId::generate();
    let first = Write::Create(0);
    std::iter::once(first)
        .chain(writes)
        .enumerate()
        .map(|(position, write)| operation(id, position, &write))
        .collect()
}

fn ann() -> UserId {
    UserId::parse("ann").expect("valid")
}

fn operation(id: TaskId, position: usize, write: &Write) -> Operation {
    let tick = Stamp::tick_at(1_795_000_000_000) + i64::try_from(position).expect("few");
    let (kind, change) = change_of(write);
    let mut operation = Operation {
        id: OperationId::generate(),
        stamp: Stamp::ZERO,
        user_id: ann(),
        kind,
        body: Body::Task { id, change },
        precondition: None,
        idempotency: None,
        accepted_at: Timestamp::from_micros(0),
        priority: Priority::default(),
        buffered: true,
    };
    operation.restamp(Stamp::new(tick, NodeId::from_number(position as u64 % 3)));
    operation
}

fn change_of(write: &Write) -> (Kind, TaskState) {
    let title = |number: &u8| {
        Some(Register::new(
            Title::from_stored(format!("title {number}")),
            Stamp::ZERO,
        ))
    };
    match write {
        Write::Create(number) => {
            let change = TaskState {
                created: Some(Stamp::ZERO),
                title: title(number),
                description: Some(Register::new(Description::default(), Stamp::ZERO)),
                status: Some(Register::new(Status::Todo, Stamp::ZERO)),
                priority: Some(Register::new(Priority::default(), Stamp::ZERO)),
                due_at: Some(Register::new(None, Stamp::ZERO)),
                tags: Some(Register::new(Tags::default(), Stamp::ZERO)),
                deleted: None,
            };
            (Kind::Create, change)
        }
        Write::Retitle(number) => (
            Kind::Update,
            TaskState {
                title: title(number),
                ..TaskState::default()
            },
        ),
        Write::Finish => {
            let status = Some(Register::new(Status::Done, Stamp::ZERO));
            (
                Kind::Update,
                TaskState {
                    status,
                    ..TaskState::default()
                },
            )
        }
        Write::Delete => (
            Kind::Delete,
            TaskState {
                deleted: Some(Stamp::ZERO),
                ..TaskState::default()
            },
        ),
    }
}

/// Applies operations in the order given; those that need a row that isn't there yet come again at the end, as the
/// drain brings them.
fn apply(operations: &[Operation]) -> Option<State> {
    let mut state: Option<State> = None;
    let mut waiting: Vec<&Operation> = operations.iter().collect();
    for _ in 0..2 {
        let mut again = Vec::new();
        for operation in waiting {
            let row = state.clone().map(|state| Row {
                owner: operation.user_id.clone(),
                state,
            });
            match judge(operation, row.as_ref()) {
                Outcome::Rejected(Rejection::NotFound) => again.push(operation),
                Outcome::Rejected(_) => {}
                Outcome::Applied | Outcome::Superseded | Outcome::Repeated(_) => {
                    state = operation.applied_to(state.as_ref())
                }
            }
        }
        waiting = again;
    }
    state
}

/// What anybody can see of a state: a deleted one shows only that it is deleted.
fn visible(state: Option<State>) -> Option<(Option<State>, Option<ETag>)> {
    state.map(|state| match state.deleted() {
        Some(_) => (None, None),
        None => (Some(state.clone()), Some(state.etag(&ann()))),
    })
}

proptest! {
    #[test]
    fn any_order_and_any_repetition_makes_the_same_row(
        (writes, order, repeats) in writes().prop_flat_map(|writes| {
            let positions: Vec<usize> = (0..=writes.len()).collect();
            let count = positions.len();
            (Just(writes), Just(positions).prop_shuffle(), proptest::collection::vec(0..count, 0..6))
        })
    ) {
        let operations = operations(writes);
        let expected = visible(apply(&operations));
        let shuffled: Vec<Operation> =
            order.iter().chain(&repeats).map(|position| operations[*position].clone()).collect();
        prop_assert_eq!(visible(apply(&shuffled)), expected);
    }

    #[test]
    fn folding_first_and_applying_once_makes_the_same_row(writes in writes(), cut in any::<prop::sample::Index>()) {
        let operations = operations(writes);
        let cut = cut.index(operations.len());
        let mut folded = apply(&operations[..=cut]);
        for operation in &operations[cut + 1..] {
            let row = folded.clone().map(|state| Row { owner: operation.user_id.clone(), state });
            if !matches!(judge(operation, row.as_ref()), Outcome::Rejected(_)) {
                folded = operation.applied_to(folded.as_ref());
            }
        }
        prop_assert_eq!(visible(folded), visible(apply(&operations)));
    }

    #[test]
    fn in_stamp_order_every_write_of_a_living_row_takes_effect(writes in writes()) {
        let operations = operations(writes);
        let mut state: Option<State> = None;
        for operation in &operations {
            let row = state.clone().map(|state| Row { owner: operation.user_id.clone(), state });
            let deleted = row.as_ref().is_some_and(|row| row.state.deleted().is_some());
            let outcome = judge(operation, row.as_ref());
            prop_assert!(deleted || outcome == Outcome::Applied, "{outcome:?}");
            state = operation.applied_to(state.as_ref());
        }
    }
}

#[test]
fn an_older_write_takes_no_other_field_s_newer_value_with_it() {
    let operations = operations(vec![Write::Retitle(7), Write::Finish]);
    let late_retitle = [
        operations[0].clone(),
        operations[2].clone(),
        operations[1].clone(),
    ];
    let Some(State::Task(task)) = apply(&late_retitle) else {
        panic!("no task")
    };
    assert_eq!(
        task.title.map(|title| title.value),
        Some(Title::from_stored("title 7".into()))
    );
    assert_eq!(task.status.map(|status| status.value), Some(Status::Done));
}

#[test]
fn preconditions_are_judged_against_the_row_that_is_met() {
    let operations = operations(vec![Write::Retitle(1)]);
    let state = apply(&operations[..1]).expect("created");
    let row = Row {
        owner: operations[0].user_id.clone(),
        state: state.clone(),
    };
    let with = |precondition| Operation {
        precondition: Some(precondition),
        ..operations[1].clone()
    };
    let failed = Outcome::Rejected(Rejection::PreconditionFailed);
    assert_eq!(
        judge(
            &with(Precondition::Match(vec![state.etag(&row.owner)])),
            Some(&row)
        ),
        Outcome::Applied
    );
    assert_eq!(
        judge(
            &with(Precondition::Match(vec![ETag::from_client("x")])),
            Some(&row)
        ),
        failed
    );
    assert_eq!(judge(&with(Precondition::Absent), Some(&row)), failed);
    assert_eq!(judge(&with(Precondition::Exists), None), failed);
}

#[test]
fn a_condition_on_a_profile_doesn_t_depend_on_whether_it_was_read_before() {
    let first = ProfileState::provisioned(&Claims::default(), Stamp::ZERO);
    let change = ProfileState {
        bio: Some(Register::new(Bio::from_stored("hi".into()), Stamp::ZERO)),
        ..ProfileState::default()
    };
    let mut write = Operation {
        kind: Kind::Update,
        body: Body::Profile {
            change: Box::new(change),
            provision: Box::new(first.clone()),
        },
        ..operation(TaskId::generate(), 1, &Write::Finish)
    };
    write.restamp(write.stamp);
    let row = Row {
        owner: ann(),
        state: State::Profile(first.clone()),
    };
    let failed = Outcome::Rejected(Rejection::PreconditionFailed);
    let others = first.etag(&UserId::parse("bob").expect("valid"));
    for (precondition, expected) in [
        (Precondition::Exists, Outcome::Applied),
        (Precondition::Absent, failed),
        (
            Precondition::Match(vec![first.etag(&ann())]),
            Outcome::Applied,
        ),
        (Precondition::Match(vec![others]), failed),
    ] {
        write.precondition = Some(precondition);
        assert_eq!(judge(&write, Some(&row)), expected, "{write:?}");
        assert_eq!(judge(&write, None), expected, "{write:?}");
    }
}
