//! The texts made from the declaration: `.env.example`, a section of the manual page, and the listing of what is
//! in force.

use std::fmt::Write;

use super::settings::{Config, Setting};
use super::variable::{Variable, variables};

/// Width of the lines in `.env.example`.
const EXAMPLE_WIDTH: usize = 100;

/// The text of `.env.example`: every variable with its meaning, its bounds and its default, all commented out, so
/// that a copy changes nothing until it is edited.
pub fn env_example() -> String {
    let mut text = String::from(
        "# Settings of Holdfast. Copy to .env, and remove the # before what you set.\n\
         # .env is read outside production only; the process environment wins over it.\n",
    );
    let mut section = None;
    for variable in variables() {
        if section != Some(variable.section) {
            section = Some(variable.section);
            text += &format!("\n## {}\n", variable.section.title());
        }
        text += "\n";
        for line in wrapped(&described(variable)) {
            text += &format!("# {line}\n");
        }
        text += &format!(
            "#{}={}\n",
            variable.name,
            variable.default.unwrap_or_default()
        );
    }
    text
}

/// The meaning, with what the value may be.
fn described(variable: &Variable) -> String {
    let mut text = variable.meaning.to_owned();
    if !variable.accepts().is_empty() {
        text += &format!(" ({})", variable.accepts());
    }
    if let Some(alias) = variable.alias {
        text += &format!(" (also accepted as {alias})");
    }
    text
}

fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.len() - 1;
        if !lines[last].is_empty() && lines[last].len() + word.len() + 3 > EXAMPLE_WIDTH {
            lines.push(word.to_owned());
            continue;
        }
        if !lines[last].is_empty() {
            lines[last].push(' ');
        }
        lines[last].push_str(word);
    }
    lines
}

/// The section ENVIRONMENT of a manual page, in roff.
pub fn man_section() -> String {
    let mut text = String::from(".SH ENVIRONMENT\n");
    let mut section = None;
    for variable in variables() {
        if section != Some(variable.section) {
            section = Some(variable.section);
            text += &format!(".SS {}\n", roff(variable.section.title()));
        }
        text += &format!(".TP\n\\fB{}\\fR", roff(variable.name));
        if let Some(default) = variable.default {
            text += &format!(" (default: {})", roff(default));
        }
        text += &format!("\n{}\n", roff(&described(variable)));
    }
    text
}

/// Escapes what roff would take as its own: backslashes, hyphens, and a control character at the start of a line.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) {
        format!("\\&{text}")
    } else {
        text
    }
}

impl Config {
    /// Every variable with its value, secrets left out, and where the value came from; one line each, in columns.
    pub fn render(&self) -> String {
        let shown =
            |setting: &Setting| setting.value.clone().unwrap_or_else(|| "(none)".to_owned());
        let names = self
            .settings
            .iter()
            .map(|setting| setting.variable.len())
            .max()
            .unwrap_or(0);
        let values = self
            .settings
            .iter()
            .map(|setting| shown(setting).chars().count())
            .max()
            .unwrap_or(0);
        let mut text = String::new();
        for setting in &self.settings {
            let line = format!(
                "{:names$}  {:values$}  {}",
                setting.variable,
                shown(setting),
                setting.source
            );
            let _infallible = writeln!(text, "{line}");
        }
        text
    }

    /// What [`render`](Config::render) shows, for other forms than text.
    pub fn settings(&self) -> &[Setting] {
        &self.settings
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Run with `UPDATE_ENV_EXAMPLE=1` to write the file anew.
    #[test]
    fn the_committed_example_is_the_declaration() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.env.example");
        if std::env::var_os("UPDATE_ENV_EXAMPLE").is_some() {
            std::fs::write(&path, env_example()).expect("the tree is writable");
        }
        let committed = std::fs::read_to_string(&path).expect(".env.example is committed");
        assert!(
            committed == env_example(),
            ".env.example is out of date; run UPDATE_ENV_EXAMPLE=1 cargo test -p holdfast-shared example"
        );
    }

    #[test]
    fn the_manual_section_names_every_variable_and_starts_no_stray_request() {
        let text = man_section();
        for variable in variables() {
            assert!(
                text.contains(&format!("\\fB{}\\fR", roff(variable.name))),
                "{}",
                variable.name
            );
        }
        for line in text.lines().filter(|line| line.starts_with(['.', '\''])) {
            assert!(
                [".SH ", ".SS ", ".TP"]
                    .iter()
                    .any(|request| line.starts_with(request)),
                "{line}"
            );
        }
    }

    #[test]
    fn lines_of_the_example_fit() {
        for line in env_example().lines() {
            assert!(line.len() <= EXAMPLE_WIDTH, "{line}");
        }
    }
}
