//! Checking a file: what redb can tell of its structure, and what we can of what is in it. Nothing is changed: redb
//! works over an overlay.

use std::path::Path;
use std::time::Duration;

use uuid::Uuid;

use super::ballast::Ballast;
use super::error::BufferError;
use super::file::guard_path;
use super::lock::{Turn, Turnstile};
use super::replacement::count_damaged_files;
use super::schema::Counters;
use super::wreck::{Piece, Reading, Wreck, open_over};

/// How long it waits for its turn: a process that is stopped inside a transaction keeps its own.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verification {
    /// Items that wait, whole.
    pub items: u64,
    /// Items that wait, with a wrong checksum.
    pub damaged: u64,
    /// Dead letters.
    pub letters: u64,
    /// Items set aside as damaged.
    pub set_aside: u64,
    /// The database the file belongs to.
    pub database: Option<Uuid>,
    /// What is wrong, in words; empty when nothing is.
    pub findings: Vec<String>,
}

/// Checks a file: its structure, every checksum, that the counters add up and agree with what is there, the ballast.
/// Works beside running processes, whose writes wait meanwhile, twice (some three seconds each for a million items): they
/// have their turn between the structure and what is in it. And on a file that can't be written or opened.
///
/// # Errors
/// When the file can't be read at all, or another process keeps it until the deadline.
pub fn verify(path: &Path) -> Result<Verification, BufferError> {
    // Where there are no locks, or they can't be opened, nobody else writes either.
    let turnstile = Turnstile::open_existing(path).ok().flatten();
    let turnstile = turnstile.as_ref();
    let mut found = Verification::default();
    let turn = enter(turnstile, path)?;
    if let Err(error) = check_structure(path) {
        found.findings.push(error.to_string());
    }
    drop(turn);
    let turn = enter(turnstile, path)?;
    let mut wreck = Wreck::open(path)?;
    let head = wreck.head();
    found.database = head.database;
    let reading = wreck.read_out(&mut |pieces| {
        pieces.iter().for_each(|piece| found.count(piece));
        Ok(())
    })?;
    drop(turn);
    found.judge(reading, head.counters);
    if !Ballast::of(path).is_there() {
        found.note("the ballast is missing: its disk is, or was, full");
    }
    match count_damaged_files(path) {
        0 => {}
        files => found.note(&format!("{files} damaged files lie beside it")),
    }
    Ok(found)
}

fn enter<'t>(
    turnstile: Option<&'t Turnstile>,
    path: &Path,
) -> Result<Option<Turn<'t>>, BufferError> {
    let Some(turnstile) = turnstile else {
        return Ok(None);
    };
    let turn = turnstile
        .enter_within(PATIENCE)
        .map_err(|error| BufferError::io(path, &error))?;
    turn.map(Some).ok_or(BufferError::Busy)
}

impl Verification {
    fn note(&mut self, finding: &str) {
        self.findings.push(finding.to_owned());
    }

    fn count(&mut self, piece: &Piece) {
        match piece {
            Piece::Item(_) => self.items += 1,
            Piece::Damaged(_) => self.damaged += 1,
            Piece::Letter(_) => self.letters += 1,
            Piece::Aside(_) => self.set_aside += 1,
            Piece::Finished(_) | Piece::Revocation(_) | Piece::Session(_) | Piece::Keyed(_) => {}
        }
    }

    fn judge(&mut self, reading: Reading, counters: Option<Counters>) {
        let (damaged, set_aside) = (self.damaged, self.set_aside);
        if reading != Reading::Whole {
            self.note("not all of its tables can be read");
        }
        if damaged > 0 {
            self.note(&format!("{damaged} waiting items have a wrong checksum"));
        }
        if set_aside > 0 {
            self.note(&format!(
                "{set_aside} items are set aside as damaged: see syncd dead list"
            ));
        }
        let Some(counters) = counters else {
            self.note("its counters can't be read");
            return;
        };
        if counters.imbalance() != 0 {
            let imbalance = counters.imbalance();
            self.note(&format!("accepted items not accounted for: {imbalance}"));
        }
        self.compare("waiting", self.items + damaged, counters.pending);
        self.compare("dead", self.letters + set_aside, counters.dead);
    }

    fn compare(&mut self, what: &str, found: u64, counted: u64) {
        if found != counted {
            self.note(&format!("{found} items found {what}, {counted} counted"));
        }
    }
}

/// Whether redb finds the structure of the file whole and the counters can be read. The file must be at rest.
pub(super) fn is_whole(path: &Path) -> bool {
    check_structure(path).is_ok()
        && Wreck::open(path).is_ok_and(|wreck| wreck.head().counters.is_some())
}

/// redb's own check: every checksum, the order of keys, and which pages are in use.
fn check_structure(path: &Path) -> Result<(), BufferError> {
    let mut database = open_over(path)?;
    let clean = guard_path(path, || {
        database
            .check_integrity()
            .map_err(|error| BufferError::storage(path, error))
    })?;
    if clean {
        return Ok(());
    }
    Err(BufferError::Damaged {
        path: path.to_owned(),
        detail: "its structure doesn't fit its checksums".to_owned(),
    })
}
