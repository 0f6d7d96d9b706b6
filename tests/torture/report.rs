//! What a run ends with: a table, and what a failure leaves behind.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::check::{Breach, Verdict, answers};
use crate::history::{Ask, Exchange, History, Resource, Shown, Span, Trouble, Verb};

/// Violations told of each breach; all are in the file.
const TOLD: usize = 4;

/// A run and its verdict.
pub struct Report<'r> {
    /// The seed.
    pub seed: u64,
    /// How long faults were made.
    pub length: Duration,
    /// How long it took until everything had drained.
    pub drained: Duration,
    /// How far each node's clock was ahead, in seconds.
    pub skews: &'r [i64],
    /// What happened.
    pub history: &'r History,
    /// By kind: how often each fault was made, and couldn't be.
    pub faults: BTreeMap<&'static str, (u64, u64)>,
    /// What went wrong beside the requests.
    pub failures: &'r [String],
    /// The judgement.
    pub verdict: &'r Verdict,
}

impl Report<'_> {
    /// Whether every promise was kept.
    pub fn is_clean(&self) -> bool {
        self.verdict.violations.is_empty() && self.failures.is_empty()
    }

    /// Writes every violation and the history of each resource concerned to a
    /// file in `directory`; gives its path.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn keep(&self, directory: &Path) -> Result<PathBuf> {
        let path = directory.join(format!("torture-{}.txt", self.seed));
        fs::write(&path, self.evidence())
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    fn evidence(&self) -> String {
        let mut text = format!("seed {}\n{self}\n", self.seed);
        for failure in self.failures {
            text.push_str(failure);
            text.push('\n');
        }
        for violation in &self.verdict.violations {
            let _ = writeln!(text, "{violation:?}");
        }
        let concerned: BTreeSet<Resource> = self
            .verdict
            .violations
            .iter()
            .filter_map(|violation| violation.resource)
            .collect();
        for resource in concerned {
            let row = self.history.outcome.rows.get(&resource);
            let _ = writeln!(text, "\n{resource}: {row:?}");
            self.tell_of(resource, &mut text);
        }
        for span in &self.history.troubles {
            let _ = writeln!(text, "{:?} {} {}", span.trouble, span.from, span.to);
        }
        text
    }

    fn tell_of(&self, resource: Resource, text: &mut String) {
        let mut exchanges: Vec<&Exchange> = self
            .history
            .exchanges
            .iter()
            .filter(|exchange| exchange.user == resource.user && concerns(exchange, resource))
            .collect();
        exchanges.sort_by_key(|exchange| exchange.invoked);
        for exchange in exchanges {
            let operation = exchange.reply.as_ref().and_then(|reply| reply.operation);
            let outcome = &self.history.outcome;
            let entry = operation.and_then(|id| outcome.ledger.get(&id));
            let dead = operation.and_then(|id| outcome.dead.get(&id));
            let _ = writeln!(text, "  {exchange} {entry:?} {dead:?}");
        }
    }

    fn lines(&self) -> Vec<(String, String)> {
        let mut lines = vec![
            (String::from("seed"), self.seed.to_string()),
            (String::from("seconds"), self.length.as_secs().to_string()),
            (
                String::from("clocks ahead by"),
                format!("{:?} s", self.skews),
            ),
        ];
        let mut add = |name: &str, value: String| lines.push((name.to_owned(), value));
        add("requests", self.history.exchanges.len().to_string());
        for (kind, count) in self.count(|exchange| String::from(kind(exchange))) {
            add(&format!("  {kind}"), count.to_string());
        }
        for (status, count) in self.count(status) {
            add(&format!("  answered {status}"), count.to_string());
        }
        let made: u64 = self.faults.values().map(|(made, _)| made).sum();
        add("faults", made.to_string());
        for (fault, (made, missed)) in &self.faults {
            let value = match missed {
                0 => made.to_string(),
                _ => format!("{made} ({missed} could not be made)"),
            };
            add(&format!("  {fault}"), value);
        }
        add(
            "kills",
            self.made(|fault| fault.contains("kill")).to_string(),
        );
        add(
            "restarts on SIGTERM",
            self.made(|fault| fault.contains("SIGTERM")).to_string(),
        );
        add(
            "slowest answer",
            format!("{} ms", answers::slowest(self.history) / 1000),
        );
        add("the machine stood still", self.stalls());
        add("drained after", format!("{} ms", self.drained.as_millis()));
        let looked = &self.verdict.looked;
        add("resources followed", looked.resources.to_string());
        add(
            "acknowledged writes checked",
            looked.acknowledged.to_string(),
        );
        add("fields shown and checked", looked.shown_fields.to_string());
        let counts = self.verdict.counts();
        for breach in Breach::ALL {
            let count = counts.get(&breach).copied().unwrap_or_default();
            add(word(breach), count.to_string());
        }
        lines
    }

    /// How often the machine stood still, and how long at most.
    fn stalls(&self) -> String {
        let of_machine = |span: &&Span| span.trouble == Trouble::Stalled;
        let stalls = self.history.troubles.iter().filter(of_machine);
        let longest = stalls.clone().map(|span| span.to - span.from).max();
        let longest = longest.unwrap_or_default() / 1000;
        format!("{} times, {longest} ms at most", stalls.count())
    }

    fn count(&self, name: impl Fn(&Exchange) -> String) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for exchange in &self.history.exchanges {
            *counts.entry(name(exchange)).or_default() += 1;
        }
        counts
    }

    fn made(&self, which: impl Fn(&str) -> bool) -> u64 {
        let of_kind = self.faults.iter().filter(|(fault, _)| which(fault));
        of_kind.map(|(_, (made, _))| made).sum()
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in self.lines() {
            writeln!(formatter, "  {name:<34}{value}")?;
        }
        let mut told: BTreeMap<Breach, usize> = BTreeMap::new();
        for violation in &self.verdict.violations {
            let count = told.entry(violation.breach).or_default();
            *count += 1;
            if *count > TOLD {
                continue;
            }
            let what = violation
                .resource
                .map_or(String::new(), |resource| resource.to_string());
            writeln!(
                formatter,
                "{:?} {what}: {}",
                violation.breach, violation.detail
            )?;
        }
        Ok(())
    }
}

fn concerns(exchange: &Exchange, resource: Resource) -> bool {
    let asked = match &exchange.ask {
        Ask::Write(wanted) => wanted.thing,
        Ask::Read(thing) => Some(*thing),
        Ask::List | Ask::Follow(_) => None,
    };
    let shown = match exchange.reply.as_ref().map(|reply| &reply.shown) {
        Some(Shown::One(seen)) => seen.thing == resource.thing,
        _ => false,
    };
    asked == Some(resource.thing) || shown
}

fn kind(exchange: &Exchange) -> &'static str {
    match &exchange.ask {
        Ask::Write(wanted) => match (wanted.verb, wanted.keyed) {
            (Verb::Create, true) => "POST under a key",
            (Verb::Create, false) => "POST",
            (Verb::Put, _) => "PUT",
            (Verb::Patch(_), true) => "PATCH under a key",
            (Verb::Patch(_), false) => "PATCH",
            (Verb::Delete, _) => "DELETE",
        },
        Ask::Read(_) => "GET",
        Ask::List => "GET a list",
        Ask::Follow(_) => "GET an operation",
    }
}

fn status(exchange: &Exchange) -> String {
    exchange
        .status()
        .map_or_else(|| String::from("nothing"), |status| status.to_string())
}

fn word(breach: Breach) -> &'static str {
    match breach {
        Breach::Lost => "LOST",
        Breach::Doubled => "DOUBLED",
        Breach::Stale => "STALE",
        Breach::Undeleted => "UNDELETED",
        Breach::Forgotten => "FORGOTTEN READS",
        Breach::Buried => "BURIED",
        Breach::Unjustified => "UNJUSTIFIED FAILURES",
        Breach::Slow => "TOO SLOW",
        Breach::Unbalanced => "UNBALANCED",
    }
}
