//! What an outage looked like in the end, as a table and as a verdict.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::ledger::Findings;

/// Spec: the slowest answer is the store deadline (0.75 s by default) plus one
/// buffered commit. What the machine stood still comes on top, here and below.
pub const SLOWEST_ALLOWED: Duration = Duration::from_secs(1);
/// Draining starts within about a second of the store's return; what a few
/// seconds of such a load leave is drained well within another.
pub const DRAIN_ALLOWED: Duration = Duration::from_secs(2);

/// The numbers of one told story.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Answers to writes by status code.
    pub answers: BTreeMap<u16, u64>,
    /// Attempts without an answer while the API itself was down.
    pub unanswered: u64,
    /// The slowest answer to a write.
    pub slowest: Duration,
    /// Tasks read back right after their write.
    pub reads: u64,
    /// How many of those said `pending`.
    pub pending_reads: u64,
    /// The longest backlog seen.
    pub pending_peak: u64,
    /// Processes of Holdfast killed with SIGKILL during the outage.
    pub kills: u32,
    /// From PostgreSQL's first accepted connection to an empty buffer.
    pub drain: Duration,
    /// For how long the machine stood still in all.
    pub stalled: Duration,
    /// The count by SQL.
    pub findings: Findings,
    /// What clients had to complain about.
    pub complaints: Vec<String>,
}

impl Summary {
    /// One sentence per broken promise; none when all were kept.
    pub fn broken_promises(&self) -> Vec<String> {
        let mut broken = self.complaints.clone();
        broken.extend(self.findings.broken_promises());
        if self.slowest > SLOWEST_ALLOWED + self.stalled {
            broken.push(format!("the slowest answer took {:?}", self.slowest));
        }
        if self.drain > DRAIN_ALLOWED + self.stalled {
            broken.push(format!("draining took {:?}", self.drain));
        }
        if self.pending_peak == 0 {
            broken.push(String::from(
                "nothing was ever pending, so there was no outage",
            ));
        }
        if self.pending_reads == 0 {
            broken.push(String::from("no read ever said pending"));
        }
        broken
    }

    fn rows(&self) -> Vec<(&'static str, String)> {
        let by_code: Vec<String> = self
            .answers
            .iter()
            .map(|(status, count)| format!("{count} × {status}"))
            .collect();
        let findings = &self.findings;
        vec![
            (
                "writes answered",
                self.answers.values().sum::<u64>().to_string(),
            ),
            ("by status", by_code.join(", ")),
            ("slowest answer", format!("{} ms", self.slowest.as_millis())),
            (
                "repeats while the API was dead",
                self.unanswered.to_string(),
            ),
            (
                "read back at once",
                format!("{}, {} pending", self.reads, self.pending_reads),
            ),
            ("pending at most", self.pending_peak.to_string()),
            ("processes killed in the outage", self.kills.to_string()),
            ("drained after", format!("{} ms", self.drain.as_millis())),
            (
                "the machine stood still for",
                format!("{} ms", self.stalled.as_millis()),
            ),
            ("tasks acknowledged", findings.acknowledged.to_string()),
            (
                "there exactly once, newest title",
                findings.present_once.to_string(),
            ),
            ("deleted, and gone", findings.deleted.to_string()),
            ("missing", findings.missing.len().to_string()),
            ("doubled", findings.doubled.len().to_string()),
            ("outdated", findings.outdated.len().to_string()),
            (
                "there but never answered",
                findings.unanswered_present.to_string(),
            ),
        ]
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in self.rows() {
            writeln!(formatter, "  {name:<34}{value}")?;
        }
        Ok(())
    }
}
