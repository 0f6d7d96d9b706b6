//! What is printed in the end, and written as JSON where that is asked for.

use std::fmt::{self, Write as _};

use serde::Serialize;

use crate::statistics::{Latency, Ratio};

/// Width of a line's name.
const NAME_WIDTH: usize = 58;

/// Characters of a line of text.
const TEXT_WIDTH: usize = 110;

/// All that was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The machine and how busy it was.
    pub machine: Machine,
    sections: Vec<Section>,
}

/// What the figures depend on.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Machine {
    /// Processors.
    pub cores: usize,
    /// The load average over a minute before anything was started.
    pub load_before: f64,
    /// Median time of a 4 KiB append with fdatasync, in milliseconds, before the measurements.
    pub sync_before_ms: f64,
    /// The same after them.
    pub sync_after_ms: f64,
    /// The file system that everything lies on.
    pub file_system: String,
    /// Seed of the order of slices.
    pub seed: u64,
}

#[derive(Debug, Serialize)]
struct Section {
    title: String,
    meaning: String,
    lines: Vec<Line>,
    notes: Vec<String>,
}

/// One line of the table.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Line {
    /// What was measured.
    pub name: String,
    /// With how many clients.
    pub clients: Option<usize>,
    /// How much it was, the median of all rounds.
    pub value: f64,
    /// The value's unit, as it is appended.
    pub unit: &'static str,
    /// How long answers took.
    pub latency: Option<Latency>,
    /// The value's ratio to something measured in the same rounds.
    pub ratio: Option<Ratio>,
    /// To what.
    pub against: Option<String>,
    /// The least ratio that is good enough.
    pub target: Option<f64>,
}

impl Line {
    /// A line with a value and nothing else.
    pub fn new(name: &str, value: f64, unit: &'static str) -> Self {
        Self {
            name: name.to_owned(),
            value,
            unit,
            ..Self::default()
        }
    }

    /// `None` where there is no target.
    fn meets_target(&self) -> Option<bool> {
        Some(self.ratio?.median >= self.target?)
    }
}

impl Report {
    /// An empty one.
    pub fn new(machine: Machine) -> Self {
        Self {
            machine,
            sections: Vec::new(),
        }
    }

    /// Begins a section; what is added from now on belongs to it.
    pub fn begin(&mut self, title: &str, meaning: &str) {
        self.sections.push(Section {
            title: title.to_owned(),
            meaning: meaning.to_owned(),
            lines: Vec::new(),
            notes: Vec::new(),
        });
    }

    /// Adds a line to the section begun last.
    pub fn add(&mut self, line: Line) {
        if let Some(section) = self.sections.last_mut() {
            section.lines.push(line);
        }
    }

    /// Adds sentences to the section begun last.
    pub fn note_all(&mut self, notes: Vec<String>) {
        if let Some(section) = self.sections.last_mut() {
            section.notes.extend(notes);
        }
    }

    /// Names of the lines below their targets.
    pub fn missed(&self) -> Vec<String> {
        let lines = self.sections.iter().flat_map(|section| &section.lines);
        let missed = lines.filter(|line| line.meets_target() == Some(false));
        missed.map(|line| line.label()).collect()
    }
}

impl Line {
    fn label(&self) -> String {
        match self.clients {
            None => self.name.clone(),
            Some(1) => format!("{}, 1 client", self.name),
            Some(clients) => format!("{}, {clients} clients", self.name),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{}", self.machine)?;
        for section in &self.sections {
            writeln!(
                formatter,
                "\n{}\n{}\n",
                section.title,
                wrapped(&section.meaning)
            )?;
            for line in &section.lines {
                writeln!(formatter, "{line}")?;
            }
            for note in &section.notes {
                writeln!(formatter, "  note: {note}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!(
            "{} cores, shared by the servers and the load; load average before: {:.2}. Files on {}; an append of 4 KiB \
             with fdatasync took {:.2} ms before and {:.2} ms after. Order of slices: seed {}. Ratios are medians of \
             rounds, with the 95 % interval from resampling the rounds; latencies are of all rounds.",
            self.cores,
            self.load_before,
            self.file_system,
            self.sync_before_ms,
            self.sync_after_ms,
            self.seed
        );
        formatter.write_str(&wrapped(&text))
    }
}

impl fmt::Display for Line {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = format!(
            "  {:<NAME_WIDTH$}{:>10}{:<9}",
            self.label(),
            shown(self.value),
            self.unit
        );
        if let Some(Latency {
            p50_ms,
            p99_ms,
            max_ms,
        }) = self.latency
        {
            write!(text, " p50/p99/max {p50_ms:.2}/{p99_ms:.2}/{max_ms:.1} ms")?;
        }
        if let (Some(ratio), Some(against)) = (self.ratio, &self.against) {
            let Ratio {
                median, low, high, ..
            } = ratio;
            write!(
                text,
                "\n  {:>NAME_WIDTH$}{median:>10.2} [{low:.2} – {high:.2}] of {against}",
                ""
            )?;
        }
        if let (Some(target), Some(met)) = (self.target, self.meets_target()) {
            write!(
                text,
                "; target {target}: {}",
                if met { "met" } else { "MISSED" }
            )?;
        }
        formatter.write_str(text.trim_end())
    }
}

/// Three digits or more.
fn shown(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.1}")
    }
}

fn wrapped(text: &str) -> String {
    let mut wrapped = String::new();
    let mut column = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > TEXT_WIDTH {
            wrapped.push('\n');
            column = 0;
        } else if column > 0 {
            wrapped.push(' ');
            column += 1;
        }
        wrapped.push_str(word);
        column += length;
    }
    wrapped
}
