//! Writing to standard output without dying of a closed pipe, and in the forms people and programs read.

use std::io::{self, ErrorKind, Write};

use comfy_table::{Cell, CellAlignment, Table};
use serde::Serialize;

use crate::Failure;

/// Whether the reader is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// It is.
    Listening,
    /// It has closed the pipe: there is nobody to write to, which is no failure.
    Gone,
}

/// The form results are printed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// For programs.
    Json,
    /// For people.
    Text,
}

impl From<bool> for Form {
    /// By whether `--json` was given.
    fn from(json: bool) -> Self {
        if json { Form::Json } else { Form::Text }
    }
}

/// Writes a text to standard output.
///
/// # Errors
/// When it can't be written and the reader hasn't just gone.
pub fn print(text: &str) -> Result<Reader, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(Reader::Listening),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(Failure::io(format!(
            "can't write to standard output: {error}"
        ))),
    }
}

/// Writes a line to standard error; if that can't be done either, nobody can be told.
pub fn complain(text: &str) {
    let _nobody_listens = writeln!(io::stderr().lock(), "{text}");
}

/// Says on standard error that a list was cut off, so that nobody takes it for all there is.
pub fn complain_of_more(limit: usize) {
    complain(&format!("there are more: cut off at --limit {limit}"));
}

/// A value as JSON for programs and people.
///
/// # Errors
/// When it can't be expressed, which is a defect.
pub fn json(value: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value).map_err(Failure::internal)?;
    Ok(text + "\n")
}

/// A table with these headings, without borders.
pub fn table(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(headings.iter().map(|heading| heading.to_uppercase()));
    table
}

/// A cell with a number.
pub fn number(value: impl ToString) -> Cell {
    Cell::new(value).set_alignment(CellAlignment::Right)
}

/// A table as text, without the spaces that fill its lines up.
pub fn rendered(table: &Table) -> String {
    let lines: Vec<String> = table
        .lines()
        .map(|line| line.trim_end().to_owned() + "\n")
        .collect();
    lines.concat()
}

/// A text from outside, made harmless to a terminal.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|character| {
            if character.is_control() {
                '\u{fffd}'
            } else {
                character
            }
        })
        .collect()
}

/// A duration for people: its two largest units.
pub fn duration(seconds: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "rounded, and negative ones are none"
    )]
    let whole = seconds.round().max(0.0) as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3_600 => format!("{} min {} s", whole / 60, whole % 60),
        3_600..86_400 => format!("{} h {} min", whole / 3_600, whole % 3_600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3_600),
    }
}

/// A size for people.
pub fn bytes(size: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "one digit after the point")]
    let size_float = size as f64;
    match size {
        0..1_024 => format!("{size} B"),
        1_024..1_048_576 => format!("{:.1} KiB", size_float / 1_024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", size_float / 1_048_576.0),
        _ => format!("{:.1} GiB", size_float / 1_073_741_824.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_units() {
        let shown: Vec<String> = [0.4, 59.0, 61.0, 3_661.0, 90_000.0]
            .into_iter()
            .map(duration)
            .collect();
        assert_eq!(shown, ["0 s", "59 s", "1 min 1 s", "1 h 1 min", "1 d 1 h"]);
    }

    #[test]
    fn sizes_have_one_digit_after_the_point() {
        assert_eq!(
            [bytes(1_023), bytes(1_536), bytes(5 * 1_048_576)],
            ["1023 B", "1.5 KiB", "5.0 MiB"]
        );
    }

    #[test]
    fn a_table_is_plain_text() {
        let mut table = table(&["name", "size"]);
        table.add_row([Cell::new("a"), number(5)]);
        let text = rendered(&table);
        assert!(
            text.contains("NAME") && text.lines().all(|line| line == line.trim_end()),
            "{text}"
        );
    }
}
