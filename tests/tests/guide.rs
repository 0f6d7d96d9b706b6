//! Does every command of the API's guide, `api/README.md`, print what stands
//! below it? They are run in their order, in one shell, against the real
//! programs with PostgreSQL and Redis.
//!
//! A command begins with `$ ` in a block marked `console`, and goes on in the
//! next line after a backslash. In what it is to print, `…` stands for anything
//! within a line, and a line of its own for any number of lines. What isn't
//! typed into that shell, such as an outage, is a comment in the document:
//! `<!-- run: … -->`, with one of the words of [`Deed`].

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use holdfast_tests::{Node, Postgres, Program, Redis, tokens};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

const SETTLE: Duration = Duration::from_secs(30);

/// No command of a guide takes longer; its long polls end by themselves.
const COMMAND_DEADLINE: Duration = Duration::from_secs(40);

/// Requests a minute of one user: more than the guide sends but where it shows
/// what happens beyond.
const RATE_LIMIT: &str = "120";

/// What the shell prints when a command has ended, with its exit code.
const END: &str = "--- the command has ended:";

#[derive(Debug)]
enum Step {
    Command(Shown),
    Deed(Deed),
}

/// A command and what is to follow it.
#[derive(Debug, Default)]
struct Shown {
    line: usize,
    command: String,
    output: Vec<String>,
}

/// What is done beside the shell.
#[derive(Debug, Clone, Copy)]
enum Deed {
    /// PostgreSQL is killed, and the API has noticed.
    KillPostgres,
    /// It is started again, and everything is drained.
    StartPostgres,
}

impl Deed {
    fn parse(words: &str) -> Result<Self> {
        match words {
            "kill postgres" => Ok(Self::KillPostgres),
            "start postgres" => Ok(Self::StartPostgres),
            _ => bail!("no such deed: {words}"),
        }
    }
}

/// Takes a document apart.
fn steps_of(document: &str) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    let mut in_console = false;
    let mut continues = false;
    for (index, text) in document.lines().enumerate() {
        let line = index + 1;
        if let Some(fence) = text.strip_prefix("```") {
            in_console = fence == "console";
            continues = false;
        } else if let Some(words) = text.strip_prefix("<!-- run: ") {
            let words = words
                .strip_suffix(" -->")
                .with_context(|| format!("line {line}: an unfinished comment"))?;
            steps.push(Step::Deed(Deed::parse(words)?));
        } else if in_console {
            continues = read_console(&mut steps, (line, text), continues)?;
        }
    }
    Ok(steps)
}

/// Reads a line of a console; tells whether its command goes on in the next.
fn read_console(
    steps: &mut Vec<Step>,
    (line, text): (usize, &str),
    continues: bool,
) -> Result<bool> {
    if let Some(command) = text.strip_prefix("$ ") {
        steps.push(Step::Command(Shown {
            line,
            command: command.to_owned(),
            output: Vec::new(),
        }));
        return Ok(command.ends_with('\\'));
    }
    let Some(Step::Command(shown)) = steps.last_mut() else {
        bail!("line {line}: output before any command");
    };
    if continues {
        shown.command.push('\n');
        shown.command.push_str(text);
        return Ok(text.ends_with('\\'));
    }
    shown.output.push(text.to_owned());
    Ok(false)
}

/// Whether what was printed is what was to be printed.
fn fits(expected: &[String], printed: &[String]) -> bool {
    let Some((first, rest)) = expected.split_first() else {
        return printed.is_empty();
    };
    if first == "…" {
        return (0..=printed.len()).any(|skipped| fits(rest, &printed[skipped..]));
    }
    let Some((line, others)) = printed.split_first() else {
        return false;
    };
    fits_line(first, line) && fits(rest, others)
}

fn fits_line(expected: &str, printed: &str) -> bool {
    let Some((before, after)) = expected.split_once('…') else {
        return expected == printed;
    };
    let Some(rest) = printed.strip_prefix(before) else {
        return false;
    };
    let ends = rest.char_indices().map(|(end, _)| end).chain([rest.len()]);
    ends.into_iter().any(|end| fits_line(after, &rest[end..]))
}

/// The one shell that all commands are typed into.
struct Shell {
    _child: Child,
    /// Where the commands leave their files.
    _home: TempDir,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Shell {
    fn start(variables: &[(&str, String)]) -> Result<Self> {
        let home = tempfile::tempdir().context("can't make a directory")?;
        let mut child = Command::new("bash")
            .current_dir(home.path())
            .args(["--noprofile", "--norc"])
            .envs(variables.iter().map(|(name, value)| (*name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("can't start a shell")?;
        let input = child.stdin.take().context("no way in")?;
        let output = child.stdout.take().context("no way out")?;
        Ok(Self {
            _child: child,
            _home: home,
            input,
            output: BufReader::new(output).lines(),
        })
    }

    /// Runs a command; gives what it printed, on either stream, and its code.
    async fn run(&mut self, command: &str) -> Result<(Vec<String>, String)> {
        let typed = format!("{{ {command}\n}} 2>&1\nprintf '\\n%s %s\\n' '{END}' $?\n");
        self.input.write_all(typed.as_bytes()).await?;
        self.input.flush().await?;
        let mut printed = Vec::new();
        loop {
            let line = timeout(COMMAND_DEADLINE, self.output.next_line())
                .await
                .context("the command doesn't end")??
                .context("the shell has ended")?;
            if let Some(code) = line.strip_prefix(END) {
                // The line that separates it, or the end of one without its own.
                if printed.last().is_some_and(String::is_empty) {
                    printed.pop();
                }
                return Ok((printed, code.trim().to_owned()));
            }
            printed.push(line.trim_end_matches('\r').to_owned());
        }
    }
}

/// What the guide is played on.
struct Stage {
    api: Program,
    _syncd: Program,
    node: Node,
    postgres: Postgres,
    _redis: Redis,
}

impl Stage {
    async fn set() -> Result<Self> {
        let postgres = Postgres::start().await?;
        let url = postgres.create_database("holdfast").await?;
        let redis = Redis::start().await?;
        let node = Node::new()?
            .with("DATABASE_URL", &url)
            .with("REDIS_URL", &redis.url())
            .with("RATE_LIMIT_PER_MINUTE", RATE_LIMIT)
            .with("CORS_ORIGINS", "https://app.example.com");
        node.syncd(&["migrate"]).await?.expect_code(0);
        let stage = Self {
            api: node.start_api().await?,
            _syncd: node.start_syncd().await?,
            node,
            postgres,
            _redis: redis,
        };
        stage.api.wait_status(SETTLE, "online").await?;
        Ok(stage)
    }

    fn variables(&self) -> Vec<(&'static str, String)> {
        vec![
            ("API", self.api.base_url()),
            ("TOKEN", tokens::valid("ann")),
            ("BOB", tokens::valid("bob")),
            ("LC_ALL", String::from("C.UTF-8")),
        ]
    }

    async fn perform(&mut self, deed: Deed) -> Result<()> {
        match deed {
            Deed::KillPostgres => {
                self.postgres.kill9().await?;
                self.api.wait_status(SETTLE, "offline").await?;
            }
            Deed::StartPostgres => {
                self.postgres.start_again().await?;
                let drained = self.node.syncd(&["drain", "--wait"]).await?;
                drained.expect_code(0);
                self.api.wait_status(SETTLE, "online").await?;
            }
        }
        Ok(())
    }
}

async fn play(steps: &[Step]) -> Result<()> {
    let mut stage = Stage::set().await?;
    let mut shell = Shell::start(&stage.variables())?;
    let mut wrong = Vec::new();
    for step in steps {
        let shown = match step {
            Step::Deed(deed) => {
                stage.perform(*deed).await?;
                continue;
            }
            Step::Command(shown) => shown,
        };
        let (printed, code) = shell.run(&shown.command).await?;
        if code != "0" || !fits(&shown.output, &printed) {
            wrong.push(format!(
                "line {}: $ {}\n{}\n(exit code {code})",
                shown.line,
                shown.command,
                printed.join("\n")
            ));
        }
    }
    ensure!(
        wrong.is_empty(),
        "api/README.md shows something else than these print:\n\n{}",
        wrong.join("\n\n")
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_prints_what_the_guide_shows() -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../api/README.md");
    let document =
        std::fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
    let steps = steps_of(&document)?;
    let commands = steps.iter().filter(|step| matches!(step, Step::Command(_)));
    ensure!(commands.count() > 20, "the guide shows hardly anything");
    play(&steps).await
}

#[test]
fn what_a_command_prints_is_compared_line_by_line() {
    let lines = |text: &str| -> Vec<String> { text.lines().map(str::to_owned).collect() };
    let table = [
        ("a", "a", true),
        ("a", "b", false),
        ("a", "a\nb", false),
        ("a\nb", "a", false),
        ("", "", true),
        ("", "a", false),
        ("a…c", "abc", true),
        ("a…c", "ac", true),
        ("a…c", "abd", false),
        ("…\nlast", "one\ntwo\nlast", true),
        ("…\nlast", "one\nlast\ntwo", false),
        ("…", "", true),
        ("id …, title …", "id 1, title b", true),
    ];
    for (expected, printed, verdict) in table {
        let found = fits(&lines(expected), &lines(printed));
        assert_eq!(found, verdict, "{expected:?} against {printed:?}");
    }
}
