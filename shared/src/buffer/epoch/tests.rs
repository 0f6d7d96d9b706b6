//! The correction of stamps, by clocks that the test moves.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::buffer::{Buffer, Lane, Queued, Reader, Slot};
use crate::clock::Distance;
use crate::config::BufferConfig;
use crate::domain::{
    Body, Kind, Operation, OperationId, Priority, TaskId, TaskState, UserId, task::NewTask,
    task::Tags, task::Title,
};

type Checked = Result<(), Box<dyn std::error::Error>>;

/// 2026-11-22T12:00:00Z.
const TRUE_MS: i64 = 1_795_348_800_000;
const YEAR_MS: i64 = 31_556_952_000;
const HOUR_MS: i64 = 3_600_000;

/// A node's file, and a machine whose clocks the test moves.
struct Machine {
    directory: TempDir,
    reading: Arc<Mutex<Reading>>,
    /// The true time.
    now_ms: i64,
}

impl Machine {
    /// Started just now, with a wall clock that is wrong by this much.
    fn new(wrong_ms: i64) -> Result<Self, std::io::Error> {
        let mut machine = Machine {
            directory: tempfile::tempdir()?,
            reading: Arc::new(Mutex::new(Reading::take())),
            now_ms: TRUE_MS,
        };
        machine.boot(1, wrong_ms);
        Ok(machine)
    }

    fn boot(&mut self, number: u128, wrong_ms: i64) {
        *self.reading.lock().expect("not poisoned") = Reading {
            wall: Timestamp::from_micros((self.now_ms + wrong_ms) * 1000),
            since_boot: Duration::from_secs(10),
            boot: BootId::from_number(number),
        };
    }

    /// Time passes, by both clocks; besides, somebody sets the wall clock.
    fn pass(&mut self, passed_ms: i64, set_ms: i64) {
        self.now_ms += passed_ms;
        let mut reading = self.reading.lock().expect("not poisoned");
        let wall_us = reading.wall.as_micros() + (passed_ms + set_ms) * 1000;
        reading.wall = Timestamp::from_micros(wall_us);
        reading.since_boot += Duration::from_millis(passed_ms.unsigned_abs());
    }

    /// A process of the node's starts.
    fn open(&self) -> Result<Buffer, BufferError> {
        let reading = Arc::clone(&self.reading);
        let config = BufferConfig {
            path: self.directory.path().join("buffer.redb"),
            max_items: 1_000,
            retention: Duration::from_secs(3_600),
        };
        Buffer::open_by(&config, move || *reading.lock().expect("not poisoned"))
    }

    /// A process sees PostgreSQL, whose clock is right.
    async fn meet_postgres(&self, buffer: &Buffer) -> Result<usize, BufferError> {
        let theirs = Timestamp::from_micros(self.now_ms * 1000);
        buffer
            .clock()
            .learn(Distance::between(&buffer.clock().read(), theirs));
        buffer.settle_time().await
    }
}

async fn write(buffer: &Buffer, id: TaskId) -> Result<Operation, Box<dyn std::error::Error>> {
    let task = NewTask {
        title: Title::parse("bread")?,
        description: Default::default(),
        status: Default::default(),
        priority: Priority::default(),
        due_at: None,
        tags: Tags::default(),
    };
    let operation = Operation {
        id: OperationId::generate(),
        stamp: Stamp::ZERO,
        user_id: UserId::parse("ann")?,
        kind: Kind::Create,
        body: Body::Task {
            id,
            change: TaskState {
                created: Some(Stamp::ZERO),
                ..task.into_change()
            },
        },
        precondition: None,
        idempotency: None,
        accepted_at: buffer.clock().now(),
        priority: Priority::default(),
        buffered: true,
    };
    let item = buffer.append(operation, None, Slot::Ordinary).await?;
    Ok(item.operation)
}

async fn queued(buffer: &Buffer) -> Result<Vec<Queued>, BufferError> {
    buffer
        .read(|reader| reader.list_items(Lane::Postgres, 100))
        .await
}

/// When the items were written, in milliseconds from [`TRUE_MS`]; all of their stamps agree.
async fn times_ms(buffer: &Buffer) -> Result<Vec<i64>, BufferError> {
    let items = queued(buffer).await?;
    let operations = items.into_iter().map(|queued| queued.item.operation);
    Ok(operations
        .map(|operation| {
            let change = operation.change().expect("a task's");
            assert_eq!(change.newest(), operation.stamp);
            assert_eq!(operation.accepted_at, operation.stamp.time());
            operation.stamp.time().as_millis() - TRUE_MS
        })
        .collect())
}

#[tokio::test]
async fn writes_of_a_node_whose_clock_is_years_off_come_to_lie_where_they_were_made() -> Checked {
    for wrong_ms in [3 * YEAR_MS, -6 * YEAR_MS, -60 * YEAR_MS, 80 * YEAR_MS] {
        let mut machine = Machine::new(wrong_ms)?;
        let (buffer, id) = (machine.open()?, TaskId::generate());
        write(&buffer, id).await?;
        machine.pass(HOUR_MS, 0);
        write(&buffer, id).await?;
        // Somebody mends the clock, too late.
        machine.pass(HOUR_MS, -wrong_ms);
        write(&buffer, id).await?;
        machine.pass(HOUR_MS, 0);
        assert_eq!(machine.meet_postgres(&buffer).await?, 1, "{wrong_ms}");
        let times = times_ms(&buffer).await?;
        assert_eq!(times, [0, HOUR_MS, 2 * HOUR_MS], "{wrong_ms}");

        let next = write(&buffer, id).await?;
        let next_ms = next.stamp.time().as_millis() - TRUE_MS;
        assert_eq!(next_ms, 3 * HOUR_MS, "the mark did not stay away");
        buffer.close();
    }
    Ok(())
}

#[tokio::test]
async fn the_correction_is_made_once_and_for_every_process() -> Checked {
    let mut machine = Machine::new(3 * YEAR_MS)?;
    let (api, syncd, id) = (machine.open()?, machine.open()?, TaskId::generate());
    let written = write(&api, id).await?;
    let pending = api
        .reader()
        .find_pending(&written.user_id, &written.resource())?;
    assert!(pending.is_some_and(|view| view.is_provisional()));
    machine.pass(HOUR_MS, 0);
    assert_eq!(machine.meet_postgres(&syncd).await?, 1);
    let first = queued(&api).await?;
    assert_eq!(first[0].item.epoch, None);

    // Its probe measures a little otherwise, later.
    machine.now_ms += 40;
    assert_eq!(machine.meet_postgres(&syncd).await?, 0);
    machine.now_ms += HOUR_MS;
    assert_eq!(machine.meet_postgres(&syncd).await?, 0);
    assert_eq!(queued(&syncd).await?[0].item, first[0].item);
    assert!(api.clock().boot_distance_us().is_none());
    let next = write(&api, id).await?;
    assert!(next.stamp > first[0].item.operation.stamp);
    assert!(api.clock().boot_distance_us().is_some(), "the file told it");
    assert_eq!(
        queued(&api)
            .await?
            .last()
            .and_then(|queued| queued.item.epoch),
        None
    );
    Ok(())
}

#[tokio::test]
async fn a_clock_that_is_nearly_right_changes_no_stamp() -> Checked {
    for wrong_ms in [-900, 0, 900] {
        let mut machine = Machine::new(wrong_ms)?;
        let buffer = machine.open()?;
        write(&buffer, TaskId::generate()).await?;
        machine.pass(5_000, 0);
        machine.meet_postgres(&buffer).await?;
        assert_eq!(times_ms(&buffer).await?, [wrong_ms]);
    }
    let mut machine = Machine::new(900)?;
    let buffer = machine.open()?;
    write(&buffer, TaskId::generate()).await?;
    machine.pass(100, 0);
    machine.meet_postgres(&buffer).await?;
    assert_eq!(times_ms(&buffer).await?, [0], "it would be in the future");
    Ok(())
}

#[tokio::test]
async fn a_process_that_starts_in_an_outage_knows_the_time_from_the_file() -> Checked {
    let mut machine = Machine::new(-2 * YEAR_MS)?;
    let buffer = machine.open()?;
    machine.meet_postgres(&buffer).await?;
    buffer.close();
    drop(buffer);
    machine.pass(HOUR_MS, 7 * YEAR_MS);
    let buffer = machine.open()?;
    let written = write(&buffer, TaskId::generate()).await?;
    assert_eq!(written.stamp.time().as_millis() - TRUE_MS, HOUR_MS);
    Ok(())
}

#[tokio::test]
async fn stamps_of_an_earlier_run_of_the_machine_end_before_this_one_began() -> Checked {
    let mut machine = Machine::new(3 * YEAR_MS)?;
    let id = TaskId::generate();
    let buffer = machine.open()?;
    write(&buffer, id).await?;
    machine.pass(HOUR_MS, 0);
    write(&buffer, id).await?;
    buffer.close();
    drop(buffer);
    machine.pass(HOUR_MS, 0);
    // Ten seconds up, with a clock that is right again.
    machine.boot(2, 0);
    let buffer = machine.open()?;
    write(&buffer, id).await?;
    machine.pass(HOUR_MS, 0);
    assert_eq!(machine.meet_postgres(&buffer).await?, 2);
    let times = times_ms(&buffer).await?;
    let start = 2 * HOUR_MS - 10_000;
    assert!(times[1] <= start && start - times[1] < 5, "{times:?}");
    assert_eq!(times[1] - times[0], HOUR_MS);
    assert_eq!(times[2], 2 * HOUR_MS);
    Ok(())
}

#[tokio::test]
async fn an_earlier_run_whose_clock_was_right_is_believed() -> Checked {
    let mut machine = Machine::new(0)?;
    let buffer = machine.open()?;
    write(&buffer, TaskId::generate()).await?;
    buffer.close();
    drop(buffer);
    machine.pass(HOUR_MS, 0);
    machine.boot(2, 0);
    let buffer = machine.open()?;
    machine.meet_postgres(&buffer).await?;
    assert_eq!(times_ms(&buffer).await?, [0]);
    Ok(())
}

#[tokio::test]
async fn order_on_a_resource_is_kept_across_knowing_and_not_knowing() -> Checked {
    let mut machine = Machine::new(0)?;
    let id = TaskId::generate();
    let buffer = machine.open()?;
    machine.meet_postgres(&buffer).await?;
    write(&buffer, id).await?;
    buffer.close();
    drop(buffer);
    machine.pass(HOUR_MS, 0);
    machine.boot(2, -20 * YEAR_MS);
    let buffer = machine.open()?;
    write(&buffer, id).await?;
    machine.pass(HOUR_MS, 0);
    machine.meet_postgres(&buffer).await?;
    write(&buffer, id).await?;
    assert_eq!(times_ms(&buffer).await?, [0, HOUR_MS, 2 * HOUR_MS]);
    let counters = buffer.read(Reader::counters).await?;
    assert_eq!(counters.imbalance(), 0);
    Ok(())
}
