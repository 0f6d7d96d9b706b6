//! The buffer against a plain reimplementation, on a disk that fails: at every step of a scripted run, and at random
//! ones of random runs.
//!
//! After each action both must say the same: what waits and in which order, what became of what has ended, every count.
//! When the power goes within an action, the action has happened whole or not at all; when it fails with an error, it
//! has not happened. At the end of each run the power is cut once more and nothing unsynced survives, so an
//! acknowledgement that was ahead of the disk is found out.

mod disk;
mod plain;
mod world;

use std::io;

use proptest::prelude::*;

use crate::domain::Kind;

use super::Lane;
pub(super) use disk::Backend;
use disk::{Fault, Survivors};
use world::{Action, World, Write};

/// Random runs; each cuts the power or fails about three times.
const RANDOM_RUNS: u32 = 60;

const ERRORS: [Fault; 2] = [
    Fault::Error(io::ErrorKind::Other),
    Fault::Error(io::ErrorKind::StorageFull),
];

fn write(task: u8, kind: Kind, priority: u8) -> Write {
    Write {
        task,
        kind,
        priority,
    }
}

/// Each kind of action, in an order in which each has something to do.
fn script() -> Vec<Action> {
    use Kind::{Create, Delete, Update};
    vec![
        Action::Append(vec![
            write(0, Create, 3),
            write(1, Create, 0),
            write(0, Update, 0),
        ]),
        Action::Fold(write(0, Create, 2)),
        Action::Revoke {
            session: 0,
            synced: true,
        },
        Action::Settle {
            lane: Lane::Postgres,
            verdicts: vec![0, 3, 2],
        },
        Action::SettleAgain,
        Action::Append(vec![write(1, Update, 1), write(2, Delete, 4)]),
        Action::Fold(write(0, Update, 2)),
        Action::RetryDead(0),
        Action::Settle {
            lane: Lane::Postgres,
            verdicts: vec![2, 2],
        },
        Action::SetAside(0),
        Action::DiscardDead(1),
        Action::Retain,
        Action::Reopen,
        Action::RetryArchived(0),
        Action::Settle {
            lane: Lane::Redis,
            verdicts: vec![0],
        },
        Action::Append(vec![write(3, Create, 2)]),
    ]
}

/// Runs the script with this fault at this step. After the action it struck, and at the end, the power is cut with
/// nothing unsynced surviving: what was acknowledged in spite of an error must be on the disk too. Gives whether the
/// script had so many steps.
async fn run_script(step: u64, fault: Fault, survivors: Survivors) -> bool {
    let mut world = World::new();
    world.disk.plan(world.disk.steps() + step, fault);
    let mut happened = false;
    for action in script() {
        let checked = world.act(&action, survivors).await;
        assert_eq!(checked, Ok(()), "{fault:?} at step {step}, {survivors:?}");
        if !happened && !world.disk.is_fault_ahead() {
            happened = true;
            world.restart_after_power_cut(Survivors::None);
            let checked = world.check_now(&format!("after {action:?} and a power cut"));
            assert_eq!(checked, Ok(()), "{fault:?} at step {step}, {survivors:?}");
        }
    }
    world.restart_after_power_cut(Survivors::None);
    let checked = world.check_now("after the last power cut");
    assert_eq!(checked, Ok(()), "{fault:?} at step {step}");
    happened
}

fn run_to_the_end(run: impl AsyncFn(u64) -> bool) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime");
    let mut step = 1;
    while runtime.block_on(run(step)) {
        step += 1;
    }
    step - 1
}

#[test]
fn a_power_cut_at_any_step_loses_doubles_and_reorders_nothing() {
    let steps = run_to_the_end(async |step| {
        run_script(step, Fault::PowerCut, Survivors::Chance(step)).await
    });
    assert!(steps > 100, "only {steps} steps");
}

#[test]
fn a_power_cut_at_any_step_that_spares_only_what_was_synced_loses_nothing() {
    let steps =
        run_to_the_end(async |step| run_script(step, Fault::PowerCut, Survivors::None).await);
    assert!(steps > 100, "only {steps} steps");
}

#[test]
fn an_error_at_any_step_undoes_its_action_or_nothing() {
    for fault in ERRORS {
        let steps = run_to_the_end(async |step| run_script(step, fault, Survivors::None).await);
        assert!(steps > 100, "only {steps} steps");
    }
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![3 => Just(Kind::Create), 4 => Just(Kind::Update), 1 => Just(Kind::Delete)]
}

fn any_write() -> impl Strategy<Value = Write> {
    (any::<u8>(), kind(), any::<u8>())
        .prop_map(|(task, kind, priority)| write(task, kind, priority))
}

fn any_action() -> impl Strategy<Value = Action> {
    let lane = prop_oneof![4 => Just(Lane::Postgres), 1 => Just(Lane::Redis)];
    let verdicts = proptest::collection::vec(any::<u8>(), 1..8);
    prop_oneof![
        8 => proptest::collection::vec(any_write(), 1..5).prop_map(Action::Append),
        3 => any_write().prop_map(Action::Fold),
        2 => (any::<u8>(), any::<bool>())
            .prop_map(|(session, synced)| Action::Revoke { session, synced }),
        6 => (lane, verdicts).prop_map(|(lane, verdicts)| Action::Settle { lane, verdicts }),
        1 => Just(Action::SettleAgain),
        1 => any::<u8>().prop_map(Action::SetAside),
        1 => Just(Action::Retain),
        1 => any::<u8>().prop_map(Action::RetryDead),
        1 => any::<u8>().prop_map(Action::DiscardDead),
        1 => any::<u8>().prop_map(Action::RetryArchived),
        1 => Just(Action::Reopen),
    ]
}

fn any_fault() -> impl Strategy<Value = Fault> {
    prop_oneof![2 => Just(Fault::PowerCut), 1 => Just(ERRORS[0]), 1 => Just(ERRORS[1])]
}

/// Actions, each with the faults to come: so many steps from then on.
fn any_run() -> impl Strategy<Value = Vec<(Action, Option<(u64, Fault)>)>> {
    let fault = proptest::option::weighted(0.15, (1..60_u64, any_fault()));
    proptest::collection::vec((any_action(), fault), 10..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: RANDOM_RUNS, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_done_and_whatever_fails_the_buffer_is_what_it_must_be(
        (run, seed) in (any_run(), any::<u64>())
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let mut world = World::new();
            for (number, (action, fault)) in run.iter().enumerate() {
                if let Some((distance, fault)) = fault {
                    world.disk.plan(world.disk.steps() + distance, *fault);
                }
                let survivors = match seed.wrapping_add(number as u64) {
                    seed if seed.is_multiple_of(5) => Survivors::All,
                    seed => Survivors::Chance(seed),
                };
                prop_assert_eq!(world.act(action, survivors).await, Ok(()));
            }
            world.restart_after_power_cut(Survivors::None);
            prop_assert_eq!(world.check_now("after the last power cut"), Ok(()));
            Ok(())
        })?;
    }
}
