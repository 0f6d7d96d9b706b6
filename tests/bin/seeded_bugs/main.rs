//! `holdfast-seeded-bugs`: do the tests catch what they are there to catch?
//!
//! The programs and their tests are built once more, in a target directory of
//! their own, with the feature `seeded-bugs`. Then each bug is switched on by
//! itself, and the test named for it has to fail, having passed without it.

mod cases;
mod suite;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use holdfast_tests::LoopDisk;

use crate::cases::{CASES, Case, Needs};
use crate::suite::{Suite, Verdict};

/// What came of one bug.
enum Caught {
    Yes(Duration),
    No(String),
    Skipped(String),
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Tells whether every bug was caught.
fn run() -> Result<bool> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let suite = Suite::build()?;
    let mut sound = BTreeMap::new();
    let mut all_caught = true;
    println!("{:24} {:8} {:>7}  test", "bug", "promise", "seconds");
    for case in CASES {
        if !wanted.is_empty() && !wanted.iter().any(|name| name == case.bug) {
            continue;
        }
        let caught = try_case(&suite, case, &mut sound)?;
        all_caught &= !matches!(caught, Caught::No(_));
        println!("{}", line(case, &caught));
    }
    Ok(all_caught)
}

/// Runs the case's test without the bug (once for all that name it), then with.
fn try_case(
    suite: &Suite,
    case: &'static Case,
    sound: &mut BTreeMap<&'static str, Verdict>,
) -> Result<Caught> {
    if case.needs == Needs::LoopDisk
        && let Some(reason) = LoopDisk::impediment()
    {
        return Ok(Caught::Skipped(reason));
    }
    if !sound.contains_key(case.test) {
        sound.insert(case.test, suite.run(case, None)?);
    }
    if let Some(Verdict::Failed(_)) = sound.get(case.test) {
        return Ok(Caught::No(String::from("it fails without the bug too")));
    }
    Ok(match suite.run(case, Some(case.bug))? {
        Verdict::Failed(took) => Caught::Yes(took),
        Verdict::Passed => Caught::No(String::from("it passes with the bug")),
    })
}

fn line(case: &Case, caught: &Caught) -> String {
    let named = format!("{} {}", case.executable, case.test);
    let (seconds, text) = match caught {
        Caught::Yes(took) => (format!("{:.1}", took.as_secs_f64()), named),
        Caught::No(why) => (String::from("-"), format!("NOT CAUGHT by {named}: {why}")),
        Caught::Skipped(why) => (String::from("-"), format!("SKIPPED {named}: {why}")),
    };
    format!("{:24} {:<8} {:>7}  {text}", case.bug, case.promise, seconds)
}
