//! How long each part is measured.

use std::time::Duration;

/// The course of a run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Items of the large backlog.
    pub pending: u64,
    /// Numbers of clients, each measured in every round.
    pub clients: Vec<usize>,
    /// Rounds of slices over HTTP.
    pub rounds: usize,
    /// Length of a slice.
    pub slice: Duration,
    /// Catching up beside live requests.
    pub catch_up: CatchUp,
    /// Bad requests beside live ones.
    pub flood: Flood,
    drain_small: u64,
    drain_rounds: (usize, usize),
}

/// The course of the catch-up.
#[derive(Debug, Clone, Copy)]
pub struct CatchUp {
    /// Items drained in each round.
    pub items: u64,
    /// Rounds.
    pub rounds: usize,
    /// Length of the phase before the drain; after it there is another, and both together are as long as the drain.
    pub phase: Duration,
}

/// The course of the floods of bad requests.
#[derive(Debug, Clone, Copy)]
pub struct Flood {
    /// Rounds of each kind.
    pub rounds: usize,
    /// Length of a phase, with or without a flood.
    pub phase: Duration,
}

impl Plan {
    /// Enough to tell 5 % apart on two shared cores.
    pub fn whole(pending: u64) -> Self {
        Self {
            pending,
            clients: vec![1, 16, 64],
            rounds: 36,
            slice: Duration::from_millis(350),
            catch_up: CatchUp {
                items: 200_000,
                rounds: 3,
                phase: Duration::from_secs(4),
            },
            flood: Flood {
                rounds: 9,
                phase: Duration::from_secs(2),
            },
            drain_small: 100_000,
            drain_rounds: (7, 2),
        }
    }

    /// Only whether everything works: its figures mean nothing.
    pub fn quick(pending: u64) -> Self {
        Self {
            pending,
            clients: vec![1, 16],
            rounds: 2,
            slice: Duration::from_millis(100),
            catch_up: CatchUp {
                items: 5_000,
                rounds: 1,
                phase: Duration::from_millis(500),
            },
            flood: Flood {
                rounds: 1,
                phase: Duration::from_millis(500),
            },
            drain_small: 5_000,
            drain_rounds: (1, 1),
        }
    }

    /// The most clients there are at once.
    pub fn most_clients(&self) -> usize {
        self.clients.iter().copied().max().unwrap_or(1)
    }

    /// Sizes of backlogs to drain, each with how many times.
    pub fn drains(&self) -> Vec<(u64, usize)> {
        let small = (self.drain_small, self.drain_rounds.0);
        let large = (self.pending, self.drain_rounds.1);
        if large.0 == small.0 {
            vec![small]
        } else {
            vec![small, large]
        }
    }
}
