//! `syncd completions` and `syncd man`: documents made from the declarations of commands and settings.

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use holdfast_shared::config::{exit, man_section};

use super::arguments::Arguments;
use super::output;
use crate::Failure;

/// What the manual page says of files, signals and exit codes.
const MORE_SECTIONS: &str = r#".SH FILES
.TP
BUFFER_PATH
The buffer, shared with holdfast\-api. Never edit or copy it while a process has it open.
.TP
BUFFER_PATH.syncd.lock
Held by the running daemon; holds its process id.
.TP
BUFFER_PATH.archive/YYYY\-MM.jsonl
Dead letters past their time, one on each line.
.SH SIGNALS
.TP
SIGUSR1
Begin a cycle now.
.TP
SIGHUP
Read the settings again. Those of the synchronisation take effect; of the others the log says that they need a restart.
.TP
SIGTERM, SIGINT
Finish the batch and leave. A second SIGINT ends the process at once; nothing is lost.
.SH EXIT STATUS
.TP
0
Done.
.TP
64
The command line was wrong.
.TP
69
Something that is needed can't be reached, or what was asked for isn't there.
.TP
70
A defect of the program.
.TP
74
A file can't be read or written.
.TP
75
Not now: another syncd holds the lock, or the buffer is not empty yet.
.TP
78
The configuration has faults, or the buffer belongs to another database.
"#;

/// Prints completions for a shell.
///
/// # Errors
/// When they can't be written.
pub fn completions(shell: Shell) -> Result<u8, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "syncd", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(exit::OK)
}

/// Prints the manual page.
///
/// # Errors
/// When it can't be written.
pub fn man() -> Result<u8, Failure> {
    let page = manual_page()
        .map_err(|error| Failure::internal(format!("can't make the manual page: {error}")))?;
    output::print(&page)?;
    Ok(exit::OK)
}

fn manual_page() -> std::io::Result<String> {
    let mut command = Arguments::command();
    command.build();
    let man = Man::new(command.clone())
        .title("SYNCD")
        .section("8")
        .manual("Holdfast");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    let mut page = String::from_utf8_lossy(&page).into_owned();
    page.push_str(".SH COMMANDS\n");
    for child in command
        .get_subcommands()
        .filter(|child| child.get_name() != "help")
    {
        push_command(&mut page, "syncd", child);
    }
    page.push_str(&man_section());
    page.push_str(MORE_SECTIONS);
    Ok(page)
}

/// A command with its arguments and example, and those below it.
fn push_command(page: &mut String, parent: &str, command: &Command) {
    let name = format!("{parent} {}", command.get_name());
    let about = command
        .get_long_about()
        .or(command.get_about())
        .map(ToString::to_string)
        .unwrap_or_default();
    page.push_str(&format!(
        ".TP\n\\fB{}\\fR{}\n{}\n",
        roff(&name),
        usage(command),
        paragraphs(&about)
    ));
    for argument in command
        .get_arguments()
        .filter(|argument| argument.get_id() != "help")
    {
        let help = argument
            .get_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        page.push_str(&format!(
            ".RS\n.TP\n{}\n{}\n.RE\n",
            roff(&argument.to_string()),
            paragraphs(&help)
        ));
    }
    if let Some(example) = command.get_after_help() {
        let example = example.to_string();
        let lines = example.lines().skip(1).map(|line| roff(line.trim()) + "\n");
        page.push_str(&format!(
            ".RS\n.PP\nExample:\n.PP\n.nf\n{}.fi\n.RE\n",
            lines.collect::<String>()
        ));
    }
    for child in command
        .get_subcommands()
        .filter(|child| child.get_name() != "help")
    {
        push_command(page, &name, child);
    }
}

fn usage(command: &Command) -> String {
    let positionals = command
        .get_positionals()
        .map(|argument| format!(" {argument}"));
    let options = if command.get_opts().next().is_some() {
        " [options]"
    } else {
        ""
    };
    roff(&format!("{options}{}", positionals.collect::<String>()))
}

/// Running text: one paragraph after another.
fn paragraphs(text: &str) -> String {
    text.split("\n\n")
        .map(|paragraph| roff(&paragraph.replace('\n', " ")))
        .collect::<Vec<_>>()
        .join("\n.IP\n")
}

/// Escapes what roff would take as its own.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) {
        format!("\\&{text}")
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_page_names_every_command_and_setting() -> std::io::Result<()> {
        let page = manual_page()?;
        for name in [
            "syncd run",
            "syncd status",
            "syncd items show",
            "syncd dead retry",
            "syncd drain",
            "syncd adopt",
        ] {
            assert!(page.contains(&format!("\\fB{name}\\fR")), "{name}");
        }
        assert!(page.contains("SYNC_BATCH_MAX") && page.contains(".SH EXIT STATUS"));
        Ok(())
    }

    #[test]
    fn no_line_of_text_is_taken_for_a_request() -> std::io::Result<()> {
        let known = [
            ".TH", ".SH", ".SS", ".TP", ".RS", ".RE", ".PP", ".IP", ".nf", ".fi", ".ie", ".el",
            ".br",
        ];
        for line in manual_page()?
            .lines()
            .filter(|line| line.starts_with(['.', '\'']))
        {
            assert!(
                known.iter().any(|request| line.starts_with(request)),
                "{line}"
            );
        }
        Ok(())
    }
}
