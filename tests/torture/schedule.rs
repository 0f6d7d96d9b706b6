//! What is done to the stores, the network and the processes, and when: made
//! from the seed alone, before anything runs.
//!
//! Several *tracks* run beside each other, each of one kind of victim, so that
//! faults come alone and overlapping. Time is cut into rounds that end in a calm,
//! in which the buffers can drain and writes go straight to PostgreSQL.

use std::time::Duration;

use crate::random::Random;

/// A round: faults, then calm.
const ROUND: Duration = Duration::from_secs(24);
/// The calm at the end of a round.
const CALM: Duration = Duration::from_secs(5);
/// Before the first fault, so that there is something to lose.
const LEAD_IN: Duration = Duration::from_secs(2);
/// A fault that would be cut shorter than this by the calm isn't made at all.
const SHORTEST: Duration = Duration::from_millis(300);

/// A program of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Program {
    /// One of its API processes.
    Api(u8),
    /// Its syncd.
    Syncd,
}

/// What becomes of a connection between a node and a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Link {
    /// Reset, and refused.
    Cut,
    /// Open, and silent.
    BlackHole,
    /// Requests arrive, answers don't.
    HalfOpen,
    /// All comes later by this many milliseconds each way.
    Slow(u64),
}

/// A trouble to make, and to mend after a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// PostgreSQL killed with SIGKILL, and started again.
    PostgresKill,
    /// PostgreSQL stopped in immediate mode, and started again.
    PostgresCrash,
    /// All of PostgreSQL's processes stopped.
    PostgresFreeze,
    /// PostgreSQL takes no writes.
    ReadOnly,
    /// The role may have no more connections.
    TooManyClients,
    /// Another password than the one configured.
    WrongPassword,
    /// A table with another name than the programs know.
    TableMissing,
    /// A column with another name than the programs know.
    ColumnMissing,
    /// Somebody holds a lock on the table of tasks.
    TableLock,
    /// Somebody holds locks on a few tasks and profiles.
    RowLocks,
    /// Redis killed, and started again.
    RedisKill,
    /// Redis stopped.
    RedisFreeze,
    /// The way from a node to PostgreSQL.
    PostgresLink(u8, Link),
    /// The way from a node to Redis.
    RedisLink(u8, Link),
    /// A node sees neither store.
    Isolated(u8),
    /// A program killed with SIGKILL, and started again.
    Kill(u8, Program),
    /// A program asked to end, and started again.
    Terminate(u8, Program),
    /// A program stopped.
    Freeze(u8, Program),
    /// The disk of a node's buffer is full.
    DiskFull(u8),
}

/// A fault's time, from the beginning of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// When it is made.
    pub at: Duration,
    /// How long it lasts.
    pub lasts: Duration,
    /// What.
    pub fault: Fault,
}

/// Faults of one kind of victim, one after the other.
pub type Track = Vec<Planned>;

/// Which faults may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope {
    /// Nodes, each with a buffer.
    pub nodes: u8,
    /// API processes of the first node; the others have one.
    pub apis: u8,
    /// Whether a node's disk can be filled.
    pub disk: bool,
}

/// The faults of a run of this length.
pub fn plan(seed: u64, length: Duration, scope: Scope) -> Vec<Track> {
    let mut kinds: Vec<Kind> = vec![Kind::Server, Kind::Inside, Kind::Redis];
    for node in 0..scope.nodes {
        kinds.push(Kind::Network(node));
        kinds.push(Kind::Program(node, Program::Syncd));
        let apis = if node == 0 { scope.apis } else { 1 };
        kinds.extend((0..apis).map(|api| Kind::Program(node, Program::Api(api))));
    }
    if scope.disk {
        kinds.push(Kind::Disk(scope.nodes - 1));
    }
    let streams = 1000..;
    kinds
        .into_iter()
        .zip(streams)
        .map(|(kind, stream)| track(kind, Random::new(seed, stream), length))
        .collect()
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Server,
    Inside,
    Redis,
    Network(u8),
    Program(u8, Program),
    Disk(u8),
}

impl Kind {
    /// Milliseconds between two faults.
    fn gap(self, random: &mut Random) -> Duration {
        match self {
            Kind::Server | Kind::Inside => random.millis(2_000, 11_000),
            Kind::Redis => random.millis(4_000, 16_000),
            Kind::Network(_) => random.millis(2_000, 12_000),
            Kind::Program(..) => random.millis(3_000, 18_000),
            Kind::Disk(_) => random.millis(8_000, 30_000),
        }
    }

    fn fault(self, random: &mut Random) -> Fault {
        match self {
            Kind::Server => random.weighted(&[
                (4, Fault::PostgresKill),
                (3, Fault::PostgresCrash),
                (4, Fault::PostgresFreeze),
            ]),
            Kind::Inside => random.weighted(&[
                (3, Fault::ReadOnly),
                (3, Fault::TooManyClients),
                (2, Fault::WrongPassword),
                (1, Fault::TableMissing),
                (2, Fault::ColumnMissing),
                (3, Fault::TableLock),
                (4, Fault::RowLocks),
            ]),
            Kind::Redis => random.weighted(&[(1, Fault::RedisKill), (1, Fault::RedisFreeze)]),
            Kind::Network(node) => network(node, random),
            Kind::Program(node, program) => random.weighted(&[
                (5, Fault::Kill(node, program)),
                (3, Fault::Terminate(node, program)),
                (2, Fault::Freeze(node, program)),
            ]),
            Kind::Disk(node) => Fault::DiskFull(node),
        }
    }
}

fn network(node: u8, random: &mut Random) -> Fault {
    let slow = Link::Slow(random.between(20, 500));
    let links = [
        (3, Link::Cut),
        (3, Link::BlackHole),
        (3, Link::HalfOpen),
        (3, slow),
    ];
    let link = random.weighted(&links);
    random.weighted(&[
        (5, Fault::PostgresLink(node, link)),
        (2, Fault::RedisLink(node, link)),
        (3, Fault::Isolated(node)),
    ])
}

fn lasts(fault: Fault, random: &mut Random) -> Duration {
    match fault {
        Fault::Kill(..) | Fault::Terminate(..) => random.millis(0, 2_500),
        Fault::Freeze(..) => random.millis(200, 7_000),
        Fault::Isolated(_) => random.millis(3_000, 15_000),
        Fault::RowLocks => random.millis(1_000, 12_000),
        Fault::DiskFull(_) => random.millis(2_000, 8_000),
        _ => random.millis(300, 6_000),
    }
}

fn track(kind: Kind, mut random: Random, length: Duration) -> Track {
    let mut planned = Track::new();
    let mut at = LEAD_IN;
    loop {
        at += kind.gap(&mut random);
        let fault = kind.fault(&mut random);
        let wanted = lasts(fault, &mut random);
        if at >= length {
            return planned;
        }
        let lasts = wanted.min(until_calm(at)).min(length - at);
        if lasts >= SHORTEST || wanted <= lasts {
            planned.push(Planned { at, lasts, fault });
        }
        at += lasts;
    }
}

/// How long there is until the calm of this round; zero within it.
fn until_calm(at: Duration) -> Duration {
    let round = Duration::from_millis((at.as_millis() % ROUND.as_millis()) as u64);
    (ROUND - CALM).saturating_sub(round)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCOPE: Scope = Scope {
        nodes: 2,
        apis: 2,
        disk: false,
    };

    #[test]
    fn a_seed_means_one_schedule() {
        let length = Duration::from_secs(300);
        assert_eq!(plan(5, length, SCOPE), plan(5, length, SCOPE));
        assert_ne!(plan(5, length, SCOPE), plan(6, length, SCOPE));
    }

    #[test]
    fn faults_of_a_track_never_overlap_and_end_within_the_run() {
        let length = Duration::from_secs(600);
        for track in plan(9, length, SCOPE) {
            assert!(track.iter().all(|fault| fault.at + fault.lasts <= length));
            let mut pairs = track.windows(2);
            assert!(pairs.all(|pair| pair[0].at + pair[0].lasts <= pair[1].at));
        }
    }

    #[test]
    fn calms_are_calm() {
        let tracks = plan(3, Duration::from_secs(600), SCOPE);
        for fault in tracks.iter().flatten() {
            let left = until_calm(fault.at);
            assert!(fault.lasts <= left, "{fault:?}");
        }
    }
}
