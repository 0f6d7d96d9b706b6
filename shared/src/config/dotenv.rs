//! The `.env` file of a development tree: `NAME=value` lines and nothing clever. No substitution, no values over
//! several lines, so that what is read is what is written.

use super::fault::Fault;

/// One assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub name: String,
    pub value: String,
    /// Counted from 1.
    pub line: usize,
}

/// Reads the text of a `.env` file. Every line that isn't blank, a comment or an assignment becomes a fault that
/// names its number only, for the line may hold a secret.
pub(super) fn parse(text: &str) -> (Vec<Entry>, Vec<Fault>) {
    let mut entries: Vec<Entry> = Vec::new();
    let mut faults = Vec::new();
    for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let number = index + 1;
        match parse_line(line.trim()) {
            Ok(None) => {}
            Ok(Some((name, value))) => {
                faults.extend(repeated(&entries, &name, number));
                entries.push(Entry {
                    name,
                    value,
                    line: number,
                });
            }
            Err(problem) => faults.push(Fault::new(
                ".env",
                format!("line {number} {problem}"),
                "write NAME=value, quoted if the value has spaces or a #",
            )),
        }
    }
    (entries, faults)
}

fn repeated(entries: &[Entry], name: &str, line: usize) -> Option<Fault> {
    let first = entries.iter().find(|entry| entry.name == name)?;
    Some(Fault::new(
        name,
        format!("set twice in .env, on lines {} and {line}", first.line),
        "keep one of them",
    ))
}

fn parse_line(line: &str) -> Result<Option<(String, String)>, &'static str> {
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let line = line.strip_prefix("export ").unwrap_or(line);
    let (name, value) = line.split_once('=').ok_or("has no =")?;
    let name = name.trim();
    if !is_name(name) {
        return Err("doesn't begin with a variable's name");
    }
    Ok(Some((name.to_owned(), parse_value(value.trim())?)))
}

fn is_name(name: &str) -> bool {
    let mut characters = name.chars();
    characters
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && characters.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn parse_value(text: &str) -> Result<String, &'static str> {
    match text.chars().next() {
        Some('\'') => single_quoted(&text[1..]),
        Some('"') => double_quoted(&text[1..]),
        _ => Ok(unquoted(text).to_owned()),
    }
}

/// Up to a `#` that follows a space: a `#` inside a word belongs to the value.
fn unquoted(text: &str) -> &str {
    if text.starts_with('#') {
        return "";
    }
    let end = text
        .match_indices('#')
        .map(|(at, _)| at)
        .find(|at| text[..*at].ends_with(char::is_whitespace));
    text[..end.unwrap_or(text.len())].trim_end()
}

fn single_quoted(rest: &str) -> Result<String, &'static str> {
    let (value, after) = rest
        .split_once('\'')
        .ok_or("has a quote that isn't closed")?;
    only_comment(after)?;
    Ok(value.to_owned())
}

fn double_quoted(rest: &str) -> Result<String, &'static str> {
    let mut value = String::new();
    let mut characters = rest.chars();
    loop {
        match characters.next().ok_or("has a quote that isn't closed")? {
            '"' => break,
            '\\' => value.push(escaped(characters.next())?),
            other => value.push(other),
        }
    }
    only_comment(characters.as_str())?;
    Ok(value)
}

fn escaped(character: Option<char>) -> Result<char, &'static str> {
    match character {
        Some('n') => Ok('\n'),
        Some('t') => Ok('\t'),
        Some(same @ ('"' | '\\' | '$' | '\'')) => Ok(same),
        _ => Err(r#"has an escape other than \n \t \" \\ \$ or \'"#),
    }
}

fn only_comment(after: &str) -> Result<(), &'static str> {
    let after = after.trim_start();
    if after.is_empty() || after.starts_with('#') {
        return Ok(());
    }
    Err("goes on after the closing quote")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value_of(line: &str) -> String {
        let (entries, faults) = parse(line);
        assert_eq!(faults, [], "{line}");
        entries.into_iter().next().expect("one entry").value
    }

    #[test]
    fn values_are_read_as_written() {
        assert_eq!(value_of("A=b"), "b");
        assert_eq!(value_of(" export A = b c "), "b c");
        assert_eq!(value_of("A=b#c # comment"), "b#c");
        assert_eq!(value_of("A= # nothing"), "");
        assert_eq!(value_of("A='b # \"$c\\n'"), "b # \"$c\\n");
        assert_eq!(value_of(r#"A="b \"c\"\n" # comment"#), "b \"c\"\n");
        assert_eq!(value_of("A=x=y"), "x=y");
        assert_eq!(value_of("\u{feff}A=b\r"), "b");
    }

    #[test]
    fn blank_lines_and_comments_are_nothing() {
        assert_eq!(parse("\n  \n# A=b\n"), (vec![], vec![]));
    }

    #[test]
    fn bad_lines_are_named_by_number_and_not_repeated() {
        for line in [
            "hunter2",
            "=hunter2",
            "1A=hunter2",
            "A='hunter2",
            "A=\"hunter2\" x",
            r#"A="hunter2\q""#,
        ] {
            let (entries, faults) = parse(&format!("# first\n{line}"));
            assert_eq!(entries, [], "{line}");
            let message = faults[0].to_string();
            assert!(message.contains("line 2"), "{message}");
            assert!(!message.contains("hunter2"), "{message}");
        }
    }

    #[test]
    fn a_name_set_twice_is_a_fault() {
        let (_, faults) = parse("A=1\nB=2\nA=3");
        assert_eq!(
            faults[0].to_string(),
            "A: set twice in .env, on lines 1 and 3; keep one of them"
        );
    }
}
