//! What is wrong with a configuration: each fault names the variable, the problem and the remedy, and all of them
//! are shown at once, since fixing one per restart is a poor way to spend an outage.

use std::fmt;

use super::source::Source;

/// Longest part of a bad value that a message repeats, in characters.
const MAX_QUOTED_CHARACTERS: usize = 60;

/// One thing wrong with the configuration. Never holds the value of a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    variable: String,
    place: Option<String>,
    problem: String,
    remedy: String,
}

impl Fault {
    pub(super) fn new(
        variable: impl Into<String>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Fault {
        Fault {
            variable: variable.into(),
            place: None,
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }

    /// Adds where the value came from, unless that is where everyone looks first.
    pub(super) fn found_in(mut self, source: &Source) -> Fault {
        self.place = match source {
            Source::Environment => None,
            other => Some(other.to_string()),
        };
        self
    }

    /// The variable's name; for a line of `.env` that can't be read, `.env` itself.
    pub fn variable(&self) -> &str {
        &self.variable
    }

    /// What is wrong.
    pub fn problem(&self) -> &str {
        &self.problem
    }

    /// What to write instead.
    pub fn remedy(&self) -> &str {
        &self.remedy
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.variable)?;
        if let Some(place) = &self.place {
            write!(f, " ({place})")?;
        }
        write!(f, ": {}; {}", self.problem, self.remedy)
    }
}

/// Every fault of a configuration, at least one. Displays one line for each; callers exit with
/// [`exit::CONFIG`](super::exit::CONFIG).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigFaults(Vec<Fault>);

impl ConfigFaults {
    pub(super) fn new(faults: Vec<Fault>) -> ConfigFaults {
        ConfigFaults(faults)
    }

    /// The faults in the order they were found.
    pub fn faults(&self) -> &[Fault] {
        &self.0
    }
}

impl fmt::Display for ConfigFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{fault}")?;
        }
        Ok(())
    }
}

/// Quotes a value for a message: escaped, so that it stays on one line, and cut to a readable length.
pub(super) fn quoted(value: &str) -> String {
    if value.chars().count() <= MAX_QUOTED_CHARACTERS {
        return format!("{value:?}");
    }
    let start: String = value.chars().take(MAX_QUOTED_CHARACTERS).collect();
    format!("{start:?}…")
}

/// The candidate nearest to `name`, if it is near enough to be what was meant: at most a third of its letters differ.
pub(super) fn nearest<'a>(
    name: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let name = name.to_ascii_uppercase();
    candidates
        .map(|candidate| (edit_distance(&name, candidate), candidate))
        .filter(|(distance, candidate)| *distance * 3 <= candidate.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions and substitutions (Levenshtein) between two names, by bytes.
fn edit_distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.bytes().enumerate() {
            let substituted = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distance_counts_single_changes() {
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("REDIS_URI", "REDIS_URL"), 1);
        assert_eq!(edit_distance("BUFER_PATH", "BUFFER_PATH"), 1);
        assert_eq!(edit_distance("same", "same"), 0);
    }

    #[test]
    fn nearest_suggests_only_what_is_near() {
        let names = ["API_ADDR", "REDIS_URL", "DB_HOST"];
        assert_eq!(nearest("redis_uri", names.into_iter()), Some("REDIS_URL"));
        assert_eq!(nearest("COMPOSE_PROJECT_NAME", names.into_iter()), None);
    }

    #[test]
    fn quoted_values_stay_on_one_line_and_short() {
        assert_eq!(quoted("a\nb"), r#""a\nb""#);
        assert!(quoted(&"x".repeat(500)).chars().count() < 70);
    }
}
