//! What the command line accepts. The names are the contract's.

use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use holdfast_shared::domain::OperationId;

/// Drains Holdfast's buffer into PostgreSQL and Redis, and shows what is in it.
///
/// Settings come from the environment; `syncd man` lists them, `syncd config show` says what is in force.
#[derive(Debug, Parser)]
#[command(
    name = "syncd",
    version,
    after_help = "Exit codes: 0 done, 64 usage, 69 something can't be reached, 70 a defect, 74 a file can't be used, \
                  75 try later, 78 configuration.\n\nExample:\n  syncd status --watch"
)]
pub struct Arguments {
    /// What to do; without a command: run.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon.
    ///
    /// It drains for as long as it runs: on each SYNC_INTERVAL_SECONDS, when a store comes up, when items come in, and
    /// on SIGUSR1. SIGHUP reads the settings again; SIGTERM and SIGINT finish the batch and leave, a second SIGINT ends
    /// it at once.
    #[command(
        after_help = "Example:\n  BUFFER_PATH=/var/lib/holdfast/buffer.redb syncd run --standby"
    )]
    Run(RunArguments),
    /// Show the stores, the backlog, the rate and the dead letters.
    ///
    /// The stores are looked at from here. With --json in the shape of the API's /health, plus lanes.
    #[command(after_help = "Example:\n  syncd status --json | jq .lanes.postgres.pending")]
    Status(StatusArguments),
    /// Look at what is waiting.
    #[command(after_help = "Example:\n  syncd items list --lane postgres --limit 20")]
    Items {
        /// What to do.
        #[command(subcommand)]
        command: ItemsCommand,
    },
    /// Look at dead letters: operations that were refused or failed for good; retry or discard them.
    ///
    /// They stay in the buffer for BUFFER_RETENTION_HOURS and are then moved to BUFFER_PATH.archive, from where they can
    /// still be retried; exit 74 when some lines of such a file can't be read.
    #[command(after_help = "Example:\n  syncd dead list\n  syncd dead retry --all")]
    Dead {
        /// What to do.
        #[command(subcommand)]
        command: DeadCommand,
    },
    /// Drain now, with a progress bar; exit 0 when the buffer is empty, 75 when it is not.
    ///
    /// A running daemon is woken and watched; without one, this drains by itself. Exit 78 when it is to wait and that
    /// can't help: all that is left is for a store that isn't configured.
    #[command(
        after_help = "Example:\n  syncd drain --wait --timeout 60 && systemctl stop holdfast-syncd"
    )]
    Drain(DrainArguments),
    /// Check the buffer: its structure, every checksum, the counters, the ballast; exit 74 when anything is wrong.
    ///
    /// Works beside running processes, whose writes wait meanwhile (twice, for a few seconds each with a million items), and
    /// on a file that can't be written or opened. Nothing is changed.
    #[command(after_help = "Example:\n  syncd verify || journalctl -u holdfast-syncd")]
    Verify(VerifyArguments),
    /// Recover what a damaged buffer file still holds: into the buffer, or as JSON.
    ///
    /// The daemon does this by itself with files it finds set aside beside the buffer. What the buffer knows already,
    /// or the database has had, stays as it is, so this can be repeated.
    #[command(
        after_help = "Example:\n  syncd salvage /var/lib/holdfast/buffer.redb.salvaged-20261122T170000Z --export"
    )]
    Salvage(SalvageArguments),
    /// Bring the database's schema up to date.
    ///
    /// Where a pooler stands before PostgreSQL, give this command PostgreSQL's own address.
    #[command(
        after_help = "Example:\n  DATABASE_URL=postgres://holdfast@db/holdfast syncd migrate"
    )]
    Migrate,
    /// Make the buffer belong to the database that is configured now, with everything it holds.
    ///
    /// A buffer remembers its database, so that its items never go into another one by mistake. When that is meant,
    /// this says so. Stop the daemon before.
    #[command(
        after_help = "Example:\n  systemctl stop holdfast-syncd && syncd adopt && systemctl start holdfast-syncd"
    )]
    Adopt,
    /// Check or show the configuration.
    #[command(after_help = "Example:\n  syncd config check")]
    Config {
        /// What to do.
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Print completions for a shell.
    #[command(after_help = "Example:\n  syncd completions bash > /etc/bash_completion.d/syncd")]
    Completions {
        /// For which.
        shell: Shell,
    },
    /// Print the manual page.
    #[command(after_help = "Example:\n  syncd man | man -l -")]
    Man,
}

impl Default for Command {
    fn default() -> Self {
        Command::Run(RunArguments::default())
    }
}

/// Arguments of `run`.
#[derive(Debug, Default, Args)]
pub struct RunArguments {
    /// Wait while another syncd drains this buffer, and take over when it ends.
    #[arg(long)]
    pub standby: bool,
}

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct StatusArguments {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Go on, once a second, until interrupted; with --json, one line each.
    #[arg(long)]
    pub watch: bool,
}

/// What to do with waiting items.
#[derive(Debug, Subcommand)]
pub enum ItemsCommand {
    /// List them, in the order in which they will be drained.
    #[command(after_help = "Example:\n  syncd items list --json | jq -r '.[].id'")]
    List {
        /// Only those of this lane.
        #[arg(long, value_enum)]
        lane: Option<LaneName>,
        /// At most so many of each lane; when there are more, standard error says so.
        #[arg(long, default_value_t = 100, value_parser = RangedU64ValueParser::<usize>::new().range(1..=50_000))]
        limit: usize,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show one.
    #[command(after_help = "Example:\n  syncd items show 0190a3f0-7b7e-7000-8000-000000000001")]
    Show {
        /// The operation's id.
        #[arg(value_parser = operation_id)]
        id: OperationId,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// A lane by name.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum LaneName {
    /// Tasks and profiles.
    Postgres,
    /// Revocations of sessions.
    Redis,
}

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub enum DeadCommand {
    /// List them, the oldest operation first.
    #[command(
        after_help = "Example:\n  syncd dead list --from /var/lib/holdfast/buffer.redb.archive/2026-11.jsonl"
    )]
    List {
        /// At most so many; when there are more, standard error says so.
        #[arg(long, default_value_t = 100, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1_000_000))]
        limit: usize,
        /// Of this file of the archive, not of the buffer.
        #[arg(long, value_name = "FILE")]
        from: Option<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show one.
    #[command(after_help = "Example:\n  syncd dead show 0190a3f0-7b7e-7000-8000-000000000001")]
    Show {
        /// The operation's id.
        #[arg(value_parser = operation_id)]
        id: OperationId,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Queue them again, as new; those that a dead create took with it follow it, in order.
    #[command(
        after_help = "Example:\n  syncd dead retry 0190a3f0-7b7e-7000-8000-000000000001\n  \
                      syncd dead retry --from /var/lib/holdfast/buffer.redb.archive/2026-11.jsonl"
    )]
    Retry(Chosen),
    /// Drop them for good.
    #[command(after_help = "Example:\n  syncd dead discard 0190a3f0-7b7e-7000-8000-000000000001")]
    Discard {
        /// The operations' ids.
        #[arg(value_parser = operation_id, required_unless_present = "all", conflicts_with = "all")]
        ids: Vec<OperationId>,
        /// All that are in the buffer.
        #[arg(long)]
        all: bool,
    },
    /// Print them as JSON, whole.
    #[command(after_help = "Example:\n  syncd dead export --all > dead.json")]
    Export(Chosen),
}

/// A choice of dead letters.
#[derive(Debug, Args)]
pub struct Chosen {
    /// The operations' ids.
    #[arg(value_parser = operation_id, required_unless_present_any = ["all", "from"], conflicts_with = "all")]
    pub ids: Vec<OperationId>,
    /// All that are in the buffer.
    #[arg(long, conflicts_with = "from")]
    pub all: bool,
    /// Of this file of the archive: those with the given ids, or all in it.
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArguments {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `salvage`.
#[derive(Debug, Args)]
pub struct SalvageArguments {
    /// The damaged file. It is not changed.
    pub file: PathBuf,
    /// Print what it holds as lines of JSON, and leave the buffer alone.
    #[arg(long)]
    pub export: bool,
}

/// Arguments of `drain`.
#[derive(Debug, Args)]
pub struct DrainArguments {
    /// Go on until the buffer is empty, also through an outage. Without, stop as soon as nothing more gets through.
    #[arg(long)]
    pub wait: bool,
    /// Give up after this many seconds.
    #[arg(long, value_name = "S")]
    pub timeout: Option<u32>,
}

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say what is wrong with it, if anything; exit 78 then.
    #[command(after_help = "Example:\n  syncd config check && systemctl restart holdfast-syncd")]
    Check,
    /// Show every setting in force and where it comes from, without secrets.
    #[command(after_help = "Example:\n  syncd config show | grep SYNC")]
    Show,
}

fn operation_id(text: &str) -> Result<OperationId, String> {
    OperationId::parse(text)
        .ok_or_else(|| "is no operation's id, such as `syncd items list` shows".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[test]
    fn the_declaration_is_sound_and_every_command_has_an_example() {
        let command = Arguments::command();
        command.clone().debug_assert();
        for child in command.get_subcommands() {
            let help = child
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(help.starts_with("Example:\n  "), "{}", child.get_name());
            assert!(child.get_about().is_some(), "{}", child.get_name());
        }
    }

    #[test]
    fn without_a_command_the_daemon_runs() {
        let arguments = Arguments::try_parse_from(["syncd"]).expect("valid");
        assert!(matches!(
            arguments.command.unwrap_or_default(),
            Command::Run(RunArguments { standby: false })
        ));
    }

    #[test]
    fn dead_letters_are_chosen_by_id_all_or_from_a_file() {
        let id = "0190a3f0-7b7e-7000-8000-000000000001";
        let accepted: [&[&str]; 5] = [
            &["retry", id],
            &["retry", "--all"],
            &["retry", "--from", "f"],
            &["retry", id, "--from", "f"],
            &["discard", id],
        ];
        for words in accepted {
            let words = ["syncd", "dead"].iter().chain(words);
            assert!(
                Arguments::try_parse_from(words.clone()).is_ok(),
                "{words:?}"
            );
        }
        let refused: [&[&str]; 5] = [
            &["retry"],
            &["retry", "--all", id],
            &["discard"],
            &["discard", "--all", id],
            &["retry", "not-an-id"],
        ];
        for words in refused {
            let words = ["syncd", "dead"].iter().chain(words);
            assert!(
                Arguments::try_parse_from(words.clone()).is_err(),
                "{words:?}"
            );
        }
    }
}
