//! The table a test prints.

use anyhow::Result;
use holdfast_tests::Program;

/// What was done, and how much memory the API had.
#[derive(Debug)]
pub struct Row {
    what: String,
    before: u64,
    meanwhile: u64,
    after: u64,
    outcome: String,
}

impl Row {
    /// Begins, with the memory that it has before.
    pub fn begin(api: &Program, what: String) -> Result<Self> {
        Ok(Row {
            what,
            before: api.resident_bytes()?,
            meanwhile: 0,
            after: 0,
            outcome: String::new(),
        })
    }

    /// Notes the memory that it has meanwhile.
    pub fn meanwhile(&mut self, api: &Program) -> Result<()> {
        self.meanwhile = api.resident_bytes()?;
        Ok(())
    }

    /// The same, as it was noted elsewhere.
    pub fn meanwhile_bytes(&mut self, bytes: u64) {
        self.meanwhile = bytes;
    }

    /// Ends, with the memory that it has afterwards and what came of it.
    pub fn end(&mut self, after: u64, outcome: String) {
        (self.after, self.outcome) = (after, outcome);
    }

    /// The memory that it had before.
    pub fn before_bytes(&self) -> u64 {
        self.before
    }
}

/// Prints rows under a heading.
pub fn print(rows: &[Row]) {
    println!(
        "{:<44} {:>8} {:>10} {:>8}  outcome",
        "what (memory of the API in MiB)", "before", "meanwhile", "after"
    );
    for row in rows {
        println!(
            "{:<44} {:>8} {:>10} {:>8}  {}",
            row.what,
            row.before >> 20,
            row.meanwhile >> 20,
            row.after >> 20,
            row.outcome
        );
    }
}
