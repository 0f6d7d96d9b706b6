//! Watches the buffer for items that other processes append, and keeps everybody informed: the workers, the board,
//! the metrics, the service manager.
//!
//! Another process appends, and nothing of ours is called then, so this looks: reading the file's counters ten times a
//! second costs about 50 µs each, 0.05 % of a core. The kernel could tell of writes to the file (inotify), but it would
//! also tell of each of our own, stay silent when the file is replaced, and save nothing else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_shared::buffer::{Buffer, BufferError, Counters, Reader};
use holdfast_shared::repository::set_gauges;
use tokio::sync::{Notify, watch};
use tokio::time::MissedTickBehavior;

use crate::board::Board;
use crate::metrics;
use crate::signals::told_to_stop;
use crate::systemd::Pulse;

/// How often it looks: a tenth of the second within which draining has to begin.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// How often it takes the whole picture although nothing was counted: the age of the oldest item grows by itself.
const PICTURE_INTERVAL: Duration = Duration::from_secs(1);

/// How long it leaves a buffer alone that it couldn't read: each look opens the file anew.
const BLIND_PAUSE: Duration = Duration::from_secs(1);

/// The lookout.
pub struct Lookout {
    buffer: Buffer,
    board: Arc<Board>,
    wakes: Vec<Arc<Notify>>,
    pulse: Option<Pulse>,
    last: Counters,
    pictured_at: Option<Instant>,
    blind_until: Option<Instant>,
}

impl Lookout {
    /// A lookout that wakes these workers. With a pulse it gives the service manager its signs of life: if looking at
    /// the buffer hangs, they end.
    pub fn new(
        buffer: Buffer,
        board: Arc<Board>,
        wakes: Vec<Arc<Notify>>,
        pulse: Option<Pulse>,
    ) -> Self {
        Lookout {
            buffer,
            board,
            wakes,
            pulse,
            last: Counters::default(),
            pictured_at: None,
            blind_until: None,
        }
    }

    /// Looks until it is told to stop; an order to look wakes everybody.
    pub async fn run(mut self, look: Arc<Notify>, mut stop: watch::Receiver<bool>) {
        let mut ticks = tokio::time::interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.look().await,
                () = look.notified() => self.wake_all(),
                () = told_to_stop(&mut stop) => return,
            }
        }
    }

    fn wake_all(&self) {
        self.wakes.iter().for_each(|wake| wake.notify_one());
    }

    async fn look(&mut self) {
        let is_blind = self.blind_until.is_some_and(|until| Instant::now() < until);
        if !is_blind && let Err(error) = self.look_at_buffer().await {
            self.board.see_buffer(Err(error.to_string()));
            self.blind_until = Some(Instant::now() + BLIND_PAUSE);
        }
        let report = self.board.report();
        metrics::show_lanes(&report);
        metrics::show_pace(report.per_second(), report.eta());
        if let Some(pulse) = &mut self.pulse {
            pulse.beat(Instant::now(), &report.status_line());
        }
    }

    async fn look_at_buffer(&mut self) -> Result<(), BufferError> {
        let counters = self.buffer.read(Reader::counters).await?;
        if counters.next_seq != self.last.next_seq {
            self.wake_all();
        }
        let changed = std::mem::replace(&mut self.last, counters) != counters;
        if changed
            || self
                .pictured_at
                .is_none_or(|at| at.elapsed() >= PICTURE_INTERVAL)
        {
            let snapshot = self.buffer.read(Reader::snapshot).await?;
            set_gauges(
                &snapshot,
                self.buffer.max_items(),
                self.buffer.clock().now(),
            );
            self.board.see_buffer(Ok(snapshot));
            self.pictured_at = Some(Instant::now());
        }
        Ok(())
    }
}
