//! The drain against a real buffer and a store that does what the test says.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use holdfast_shared::buffer::{
    Buffer, DeadLetter, Item, Lane, Queued, Reader, Settlement, Slot, Snapshot, Verdict,
};
use holdfast_shared::domain::{Kind, OperationId, Rejection, ResourceKey, TaskId};
use holdfast_shared::store::FailureClass;
use tempfile::TempDir;

use super::judgement::judge;
use super::rig::{FakeStore, open_buffer, operation, sync_config};
use super::time::after;
use super::{Drain, Next, Step};

type Checked = Result<(), Box<dyn std::error::Error>>;

/// Appends that share a commit or two.
const APPENDED_TOGETHER: usize = 500;

struct Rig {
    _directory: TempDir,
    buffer: Buffer,
    store: FakeStore,
    drain: Drain<FakeStore>,
}

impl Rig {
    fn new(tries: u32) -> Result<Self, Box<dyn std::error::Error>> {
        Rig::with_sizes(tries, 50, 2_000)
    }

    fn with_sizes(
        tries: u32,
        batch_size: usize,
        batch_max: usize,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let directory = tempfile::tempdir()?;
        let buffer = open_buffer(directory.path(), Duration::from_secs(3_600))?;
        let store = FakeStore::default();
        let config = sync_config(tries, batch_size, batch_max);
        let drain = Drain::new(Lane::Postgres, buffer.clone(), store.clone(), &config);
        Ok(Rig {
            _directory: directory,
            buffer,
            store,
            drain,
        })
    }

    async fn append(
        &self,
        id: TaskId,
        kind: Kind,
    ) -> Result<OperationId, Box<dyn std::error::Error>> {
        let operation = operation(&self.buffer, id, kind)?;
        Ok(self
            .buffer
            .append(operation, None, Slot::Ordinary)
            .await?
            .operation
            .id)
    }

    async fn append_creates(
        &self,
        count: usize,
    ) -> Result<Vec<TaskId>, Box<dyn std::error::Error>> {
        let ids: Vec<TaskId> = (0..count).map(|_| TaskId::generate()).collect();
        for some in ids.chunks(APPENDED_TOGETHER) {
            let appends = some.iter().map(|id| self.append(*id, Kind::Create));
            futures_util::future::try_join_all(appends).await?;
        }
        Ok(ids)
    }

    fn fail(&self, ids: &[TaskId], class: FailureClass) {
        self.store
            .script()
            .bad
            .extend(ids.iter().map(|id| (ResourceKey::Task(*id), class)));
    }

    async fn step(&mut self) -> Result<Step, Box<dyn std::error::Error>> {
        match self.drain.next().await? {
            Next::Items(items) => Ok(self.drain.work(items).await?),
            Next::Done(step) => Ok(step),
        }
    }

    /// Takes steps until one says that there is no more to do now.
    async fn cycle(&mut self) -> Result<Step, Box<dyn std::error::Error>> {
        loop {
            let step = self.step().await?;
            if step != Step::Advanced {
                self.drain.finish_settling().await?;
                return Ok(step);
            }
        }
    }

    async fn snapshot(&self) -> Result<Snapshot, Box<dyn std::error::Error>> {
        let snapshot = self.buffer.read(Reader::snapshot).await?;
        assert_eq!(snapshot.discrepancies(), Vec::<String>::new());
        Ok(snapshot)
    }

    async fn waiting(&self) -> Result<Vec<Item>, Box<dyn std::error::Error>> {
        let items = self
            .buffer
            .read(|reader| reader.list_items(Lane::Postgres, 10_000))
            .await?;
        Ok(items.into_iter().map(|queued| *queued.item).collect())
    }

    async fn all_queued(&self) -> Result<Vec<Queued>, Box<dyn std::error::Error>> {
        Ok(self
            .buffer
            .read(|reader| reader.list_items(Lane::Postgres, usize::MAX))
            .await?)
    }

    async fn dead(&self) -> Result<Vec<DeadLetter>, Box<dyn std::error::Error>> {
        Ok(self
            .buffer
            .read(|reader| reader.list_dead(None, 10_000))
            .await?)
    }
}

fn is_due_later(step: &Step) -> bool {
    matches!(step, Step::Rested(Some(_)))
}

#[tokio::test]
async fn everything_is_applied_once_in_order_in_growing_batches() -> Checked {
    let mut rig = Rig::with_sizes(3, 2, 8)?;
    let mut accepted = Vec::new();
    for _ in 0..30 {
        accepted.push(rig.append(TaskId::generate(), Kind::Create).await?);
    }
    assert_eq!(rig.cycle().await?, Step::Rested(None));
    assert_eq!(rig.store.script().applied, accepted);
    // The next batch is read while one is applied, so a size is learned one batch late.
    assert_eq!(rig.store.script().batches, [2, 2, 4, 4, 8, 8, 2]);
    assert_eq!(rig.snapshot().await?.counters.applied, 30);
    assert_eq!(rig.drain.take_settled().applied, 30);
    Ok(())
}

#[tokio::test]
async fn many_writes_of_one_resource_keep_their_order() -> Checked {
    let mut rig = Rig::with_sizes(3, 2, 4)?;
    let task = TaskId::generate();
    let mut accepted = vec![rig.append(task, Kind::Create).await?];
    for _ in 0..20 {
        accepted.push(rig.append(task, Kind::Update).await?);
    }
    assert_eq!(rig.cycle().await?, Step::Rested(None));
    assert_eq!(rig.store.script().applied, accepted);
    Ok(())
}

#[tokio::test]
async fn a_poisoned_item_uses_a_try_and_holds_up_only_its_resource() -> Checked {
    let mut rig = Rig::new(3)?;
    let ids = rig.append_creates(30).await?;
    let follower = rig.append(ids[7], Kind::Update).await?;
    rig.fail(&ids[7..8], FailureClass::Item);
    assert!(is_due_later(&rig.cycle().await?));
    let waiting = rig.waiting().await?;
    assert_eq!(waiting.len(), 2);
    assert_eq!(
        (waiting[0].retries, waiting[0].last_error.as_deref()),
        (1, Some("scripted Item"))
    );
    assert_eq!((waiting[1].operation.id, waiting[1].retries), (follower, 0));
    assert_eq!(rig.snapshot().await?.counters.applied, 29);

    rig.store.script().bad.clear();
    assert!(is_due_later(&rig.cycle().await?), "its time has not come");
    assert_eq!(rig.waiting().await?.len(), 2);
    Ok(())
}

#[tokio::test]
async fn a_create_that_dies_takes_what_waits_for_it_along() -> Checked {
    let mut rig = Rig::new(1)?;
    let ids = rig.append_creates(3).await?;
    rig.append(ids[1], Kind::Update).await?;
    rig.append(ids[1], Kind::Delete).await?;
    rig.fail(&ids[1..2], FailureClass::Item);
    assert_eq!(rig.cycle().await?, Step::Rested(None));
    let dead = rig.dead().await?;
    let create = dead[0].item.operation.id;
    let reasons: Vec<&str> = dead.iter().map(|letter| letter.reason.as_str()).collect();
    let blocked = format!("blocked_by {create}");
    assert_eq!(reasons, ["scripted Item", &blocked, &blocked]);
    assert_eq!(rig.snapshot().await?.counters.applied, 2);
    Ok(())
}

#[tokio::test]
async fn what_a_dead_create_left_queued_is_found_by_the_next_process() -> Checked {
    let mut rig = Rig::new(1)?;
    let ids = rig.append_creates(1).await?;
    let follower = operation(&rig.buffer, ids[0], Kind::Update)?;
    rig.fail(&ids, FailureClass::Item);
    rig.cycle().await?;
    rig.buffer.append(follower, None, Slot::Ordinary).await?;

    rig.drain = Drain::new(
        Lane::Postgres,
        rig.buffer.clone(),
        rig.store.clone(),
        &sync_config(1, 50, 50),
    );
    rig.drain.recall_orphans().await?;
    rig.store.script().bad.clear();
    assert_eq!(rig.cycle().await?, Step::Rested(None));
    assert!(rig.dead().await?[1].reason.starts_with("blocked_by "));
    Ok(())
}

#[tokio::test]
async fn a_locked_row_is_put_off_and_counts_nothing() -> Checked {
    let mut rig = Rig::new(1)?;
    let ids = rig.append_creates(30).await?;
    rig.append(ids[3], Kind::Update).await?;
    rig.fail(&ids[3..4], FailureClass::Contended);
    assert!(is_due_later(&rig.cycle().await?));
    let waiting = rig.waiting().await?;
    assert_eq!(
        waiting.iter().map(|item| item.retries).collect::<Vec<_>>(),
        [0, 0]
    );
    assert_eq!(rig.snapshot().await?.counters.applied, 29);
    Ok(())
}

#[tokio::test]
async fn a_row_that_was_locked_is_tried_after_the_others_and_alone() -> Checked {
    let rig = Rig::new(1)?;
    let ids = rig.append_creates(30).await?;
    rig.append(ids[3], Kind::Update).await?;
    rig.fail(&ids[3..4], FailureClass::Contended);
    let items = rig
        .buffer
        .read(|reader| reader.list_items(Lane::Postgres, 100))
        .await?;
    let locked = ResourceKey::Task(ids[3]);
    let apart = HashSet::from([locked.clone()]);
    let judgement = judge(&rig.store, items, &apart, None).await;
    assert_eq!(rig.store.script().batches, [29, 2]);
    assert!(judgement.in_one.is_some(), "the others went through in one");
    assert_eq!(
        (judgement.answered.len(), judgement.contended),
        (29, vec![locked])
    );
    Ok(())
}

#[tokio::test]
async fn very_many_locked_rows_pause_the_lane() -> Checked {
    let mut rig = Rig::new(1)?;
    let ids = rig.append_creates(30).await?;
    rig.fail(&ids, FailureClass::Contended);
    assert_eq!(rig.cycle().await?, Step::Overrun);
    assert_eq!(
        rig.waiting().await?.iter().map(|item| item.retries).max(),
        Some(0)
    );
    Ok(())
}

#[tokio::test]
async fn many_locked_rows_are_found_at_once_and_the_rest_goes_on() -> Checked {
    let mut rig = Rig::with_sizes(1, 50, 200)?;
    let ids = rig.append_creates(600).await?;
    rig.fail(&ids[..60], FailureClass::Contended);
    assert_eq!(rig.cycle().await?, Step::Overrun, "a whole batch is locked");
    assert!(is_due_later(&rig.cycle().await?));
    assert_eq!(rig.snapshot().await?.counters.applied, 540);
    assert_eq!(rig.waiting().await?.len(), 60);
    let waits = rig.store.script().batches.len();
    assert!(waits < 20, "one wait for each would be 60: {waits}");

    rig.store.script().bad.clear();
    while rig.snapshot().await?.counters.applied < 600 {
        rig.cycle().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_locked_table_pauses_the_lane_at_once() -> Checked {
    let mut rig = Rig::new(1)?;
    rig.append_creates(30).await?;
    rig.store.script().broken = Some(FailureClass::Contended);
    rig.store.script().table_locked = true;
    assert_eq!(rig.cycle().await?, Step::Overrun);
    assert_eq!(rig.store.script().batches.len(), 1, "it is asked only once");
    assert_eq!(rig.waiting().await?.len(), 30);
    Ok(())
}

#[tokio::test]
async fn contention_that_nobody_is_seen_to_cause_is_found_by_bisection() -> Checked {
    let mut rig = Rig::new(1)?;
    let ids = rig.append_creates(30).await?;
    rig.fail(&ids[7..8], FailureClass::Contended);
    rig.store.script().unseen_locks = HashSet::from([ResourceKey::Task(ids[7])]);
    assert!(is_due_later(&rig.cycle().await?));
    assert_eq!(rig.snapshot().await?.counters.applied, 29);
    Ok(())
}

#[tokio::test]
async fn very_many_put_off_items_do_not_starve_those_behind_them() -> Checked {
    let mut rig = Rig::with_sizes(3, 50, 50)?;
    let later = after(rig.buffer.clock().now(), Duration::from_secs(3_600));
    let put_off = rig.append_creates(60_000).await?;
    let items = rig.all_queued().await?;
    let put_off_all = items.into_iter().map(|queued| Settlement {
        queued,
        verdict: Verdict::Retry {
            error: "scripted".to_owned(),
            not_before: later,
        },
    });
    rig.buffer.settle(put_off_all.collect()).await?;
    rig.append(put_off[30_000], Kind::Update).await?;
    let behind = rig.append_creates(500).await?;
    rig.append(behind[3], Kind::Update).await?;

    let began = Instant::now();
    assert!(is_due_later(&rig.cycle().await?));
    assert_eq!(
        rig.snapshot().await?.counters.applied,
        501,
        "all but what was put off and its follower"
    );
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
    Ok(())
}

#[tokio::test]
async fn while_the_store_serves_others_the_drain_rests_between_batches() -> Checked {
    let mut rig = Rig::new(1)?;
    rig.append_creates(1).await?;
    assert_eq!(rig.step().await?, Step::Advanced);
    rig.store.script().serves_others = true;
    let began = Instant::now();
    loop {
        rig.append_creates(1).await?;
        if matches!(rig.step().await?, Step::Breathes(_)) {
            return Ok(());
        }
        assert!(began.elapsed() < Duration::from_secs(10), "it never rests");
    }
}

#[tokio::test]
async fn an_outage_in_the_middle_counts_nothing_and_loses_nothing() -> Checked {
    let mut rig = Rig::with_sizes(1, 10, 10)?;
    rig.append_creates(25).await?;
    assert_eq!(rig.step().await?, Step::Advanced);
    rig.store.script().broken = Some(FailureClass::Unavailable);
    assert_eq!(rig.cycle().await?, Step::Away);
    assert_eq!(
        rig.waiting()
            .await?
            .iter()
            .map(|item| item.retries)
            .collect::<Vec<_>>(),
        [0; 15]
    );

    rig.store.script().away = true;
    assert_eq!(rig.cycle().await?, Step::Away);
    rig.store.script().away = false;
    rig.store.script().broken = None;
    assert_eq!(rig.cycle().await?, Step::Rested(None));
    let applied = rig.store.script().applied.clone();
    assert_eq!(
        (applied.len(), applied.iter().collect::<HashSet<_>>().len()),
        (25, 25)
    );
    Ok(())
}

#[tokio::test]
async fn a_store_that_refuses_everything_stops_the_lane_and_counts_nothing() -> Checked {
    let mut rig = Rig::new(1)?;
    rig.append_creates(5).await?;
    rig.store.script().broken = Some(FailureClass::Systemic);
    assert!(
        matches!(rig.cycle().await?, Step::Systemic(trouble) if trouble.summary == "scripted Systemic")
    );
    assert_eq!(rig.waiting().await?.len(), 5);
    Ok(())
}

#[tokio::test]
async fn when_all_of_many_items_fail_it_is_not_the_items() -> Checked {
    let mut rig = Rig::new(1)?;
    let ids = rig.append_creates(300).await?;
    rig.fail(&ids, FailureClass::Item);
    for _ in 0..5 {
        rig.store.script().batches.clear();
        assert!(matches!(rig.cycle().await?, Step::Systemic(_)));
        assert!(
            rig.store.script().batches.len() < 200,
            "it doesn't take all of them to tell"
        );
    }
    assert_eq!(
        (rig.waiting().await?.len(), rig.dead().await?.len()),
        (300, 0)
    );
    assert_eq!(
        rig.waiting().await?.iter().map(|item| item.retries).max(),
        Some(0)
    );

    rig.store.script().bad.clear();
    assert_eq!(rig.cycle().await?, Step::Rested(None));
    assert_eq!(rig.snapshot().await?.counters.applied, 300);
    Ok(())
}

#[tokio::test]
async fn many_poisoned_items_before_sound_ones_are_found_guilty() -> Checked {
    let mut rig = Rig::new(1)?;
    let poisoned = rig.append_creates(25).await?;
    rig.append_creates(40).await?;
    rig.fail(&poisoned, FailureClass::Item);
    assert_eq!(rig.cycle().await?, Step::Rested(None));
    assert_eq!(
        (
            rig.dead().await?.len(),
            rig.snapshot().await?.counters.applied
        ),
        (25, 40)
    );
    Ok(())
}

#[tokio::test]
async fn however_many_are_poisoned_the_sound_ones_behind_them_get_through_in_the_end() -> Checked {
    let mut rig = Rig::with_sizes(1, 20, 20)?;
    let poisoned = rig.append_creates(150).await?;
    rig.append_creates(1).await?;
    rig.fail(&poisoned, FailureClass::Item);
    let mut cycles = 0;
    while rig.snapshot().await?.counters.applied == 0 {
        cycles += 1;
        assert!(cycles < 10, "each cycle tries others than the one before");
        rig.cycle().await?;
    }
    assert_eq!(rig.dead().await?.len(), 150);
    Ok(())
}

#[tokio::test]
async fn an_answer_that_refuses_is_final_but_for_what_may_still_come_from_elsewhere() -> Checked {
    let mut rig = Rig::new(3)?;
    let ids = rig.append_creates(4).await?;
    rig.store.script().rejected = HashMap::from([
        (ResourceKey::Task(ids[0]), Rejection::PreconditionFailed),
        (ResourceKey::Task(ids[1]), Rejection::NotOwner),
        (ResourceKey::Task(ids[2]), Rejection::NotFound),
    ]);
    assert!(is_due_later(&rig.cycle().await?));
    let reasons: Vec<String> = rig
        .dead()
        .await?
        .into_iter()
        .map(|letter| letter.reason)
        .collect();
    assert_eq!(reasons, ["precondition_failed", "not_owner"]);
    let waiting = rig.waiting().await?;
    assert_eq!(
        (waiting[0].retries, waiting[0].last_error.as_deref()),
        (1, Some("not_found"))
    );
    assert_eq!(rig.snapshot().await?.counters.applied, 1);
    Ok(())
}

#[tokio::test]
async fn updates_of_what_is_not_there_are_no_sign_of_an_unsound_store() -> Checked {
    let mut rig = Rig::new(1)?;
    let ids = rig.append_creates(40).await?;
    rig.store.script().rejected = ids
        .iter()
        .map(|id| (ResourceKey::Task(*id), Rejection::NotFound))
        .collect();
    assert_eq!(rig.cycle().await?, Step::Rested(None));
    assert_eq!(rig.dead().await?.len(), 40);
    Ok(())
}
