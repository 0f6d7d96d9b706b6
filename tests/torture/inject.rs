//! Makes troubles and mends them again.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use holdfast_tests::{Flow, eventually};
use nix::sys::signal::Signal;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection, Executor};
use tokio::time::Instant;

use crate::history::{Api, Trouble};
use crate::schedule::{Fault, Link, Planned, Program, Track};
use crate::world::{Place, Sabotage, World};

/// Until a setting of PostgreSQL's is mended: it may be killed or stopped
/// meanwhile, and mended by its own track only.
const MEND_DEADLINE: Duration = Duration::from_secs(60);
/// One attempt to reach PostgreSQL as its superuser, and to do one thing there.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(3);
/// Its own shutdown deadline is 5 s; beyond this it hangs.
const END_DEADLINE: Duration = Duration::from_secs(20);

/// How often each kind of fault was made, and couldn't be.
#[derive(Debug, Default)]
pub struct Tally(Mutex<BTreeMap<&'static str, (u64, u64)>>);

impl Tally {
    fn add(&self, fault: Fault, is_made: bool) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (made, missed) = counts.entry(name(fault)).or_default();
        *(if is_made { made } else { missed }) += 1;
    }

    /// By kind: how often it was made, and how often it couldn't be.
    pub fn counts(&self) -> BTreeMap<&'static str, (u64, u64)> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// What is held while a fault lasts.
enum Held {
    Nothing,
    Lock(PgConnection),
    /// All the room of a disk, in a file.
    Room(PathBuf),
}

/// Makes a track's faults in their time.
pub async fn run(world: &World, track: Track, began: Instant, tally: &Tally) {
    for planned in track {
        tokio::time::sleep_until(began + planned.at).await;
        endure(world, planned, began, tally).await;
    }
}

async fn endure(world: &World, planned: Planned, began: Instant, tally: &Tally) {
    let spans: Vec<usize> = troubles(world, planned.fault)
        .into_iter()
        .map(|trouble| world.recorder.begins(trouble))
        .collect();
    let made = make(world, planned.fault).await;
    tally.add(planned.fault, made.is_ok());
    if made.is_ok() {
        tokio::time::sleep_until(began + planned.at + planned.lasts).await;
    }
    let held = made.unwrap_or(Held::Nothing);
    if let Err(error) = mend(world, planned.fault, held).await {
        let fault = planned.fault;
        world
            .recorder
            .failed(format!("cannot mend {fault:?}: {error:#}"));
    }
    for span in spans {
        world.recorder.ends(span);
    }
}

/// What a fault excuses while it lasts.
fn troubles(world: &World, fault: Fault) -> Vec<Trouble> {
    let nodes = 0..u8::try_from(world.places.len()).unwrap_or(u8::MAX);
    match fault {
        Fault::Kill(node, Program::Api(number)) | Fault::Terminate(node, Program::Api(number)) => {
            vec![Trouble::Down(Api { node, number })]
        }
        Fault::Kill(..) | Fault::Terminate(..) | Fault::RedisKill | Fault::RedisFreeze => vec![],
        Fault::Freeze(node, _) => vec![Trouble::Frozen(node)],
        Fault::RedisLink(..) => vec![],
        Fault::PostgresLink(node, _) | Fault::Isolated(node) => vec![Trouble::Store(node)],
        Fault::DiskFull(node) => vec![Trouble::DiskFull(node)],
        Fault::PostgresKill
        | Fault::PostgresCrash
        | Fault::PostgresFreeze
        | Fault::ReadOnly
        | Fault::TooManyClients
        | Fault::WrongPassword
        | Fault::TableMissing
        | Fault::ColumnMissing
        | Fault::TableLock
        | Fault::RowLocks => nodes.map(Trouble::Store).collect(),
    }
}

async fn make(world: &World, fault: Fault) -> Result<Held> {
    match fault {
        Fault::PostgresKill => world.postgres.lock().await.kill9().await?,
        Fault::PostgresCrash => world.postgres.lock().await.stop_immediate().await?,
        Fault::PostgresFreeze => world.postgres.lock().await.freeze()?,
        Fault::RedisKill => world.redis.lock().await.kill9().await?,
        Fault::RedisFreeze => world.redis.lock().await.freeze()?,
        Fault::TableLock | Fault::RowLocks => {
            return Ok(Held::Lock(hold_lock(world, lock(fault)).await?));
        }
        Fault::PostgresLink(node, link) => set_postgres(world, node, flow(link)).await?,
        Fault::RedisLink(node, link) => set_redis(world, node, flow(link)).await?,
        Fault::Isolated(node) => {
            set_postgres(world, node, Flow::BlackHole).await?;
            set_redis(world, node, Flow::BlackHole).await?;
        }
        Fault::Kill(node, program) => end(world, node, program, Signal::SIGKILL).await?,
        Fault::Terminate(node, program) => end(world, node, program, Signal::SIGTERM).await?,
        Fault::Freeze(node, program) => signal(world, node, program, Signal::SIGSTOP).await?,
        Fault::DiskFull(node) => return Ok(Held::Room(fill_disk(world, node)?)),
        Fault::ReadOnly
        | Fault::TooManyClients
        | Fault::WrongPassword
        | Fault::TableMissing
        | Fault::ColumnMissing => tell(world, spoil(fault)).await?,
    }
    Ok(Held::Nothing)
}

async fn mend(world: &World, fault: Fault, held: Held) -> Result<()> {
    match held {
        Held::Nothing => {}
        // A lock that nobody holds any more, since PostgreSQL was killed, is gone.
        Held::Lock(connection) => {
            drop(tokio::time::timeout(ADMIN_TIMEOUT, connection.close()).await);
        }
        Held::Room(file) => std::fs::remove_file(file)?,
    }
    match fault {
        Fault::PostgresKill | Fault::PostgresCrash => {
            world.postgres.lock().await.start_again().await
        }
        Fault::PostgresFreeze => world.postgres.lock().await.thaw(),
        Fault::RedisKill => world.redis.lock().await.start_again().await,
        Fault::RedisFreeze => world.redis.lock().await.thaw(),
        Fault::PostgresLink(node, _) => set_postgres(world, node, Flow::Pass).await,
        Fault::RedisLink(node, _) => set_redis(world, node, Flow::Pass).await,
        Fault::Isolated(node) => {
            set_postgres(world, node, Flow::Pass).await?;
            set_redis(world, node, Flow::Pass).await
        }
        Fault::Kill(node, program) | Fault::Terminate(node, program) => {
            start(world, node, program).await
        }
        Fault::Freeze(node, program) => signal(world, node, program, Signal::SIGCONT).await,
        Fault::TableLock | Fault::RowLocks | Fault::DiskFull(_) => Ok(()),
        Fault::ReadOnly
        | Fault::TooManyClients
        | Fault::WrongPassword
        | Fault::TableMissing
        | Fault::ColumnMissing => {
            let what = format!("{fault:?} to be mended");
            eventually(MEND_DEADLINE, &what, async || {
                tell(world, restore(fault))
                    .await
                    .map_err(|error| format!("{error:#}"))
            })
            .await
        }
    }
}

/// The statements that make a fault of PostgreSQL's inside.
fn spoil(fault: Fault) -> &'static [&'static str] {
    match fault {
        Fault::ReadOnly => &[
            "ALTER SYSTEM SET default_transaction_read_only = on",
            "SELECT pg_reload_conf()",
        ],
        Fault::TooManyClients => &[
            "ALTER ROLE holdfast CONNECTION LIMIT 1",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'holdfast'",
        ],
        Fault::WrongPassword => &[
            "ALTER ROLE holdfast PASSWORD 'changed'",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'holdfast'",
        ],
        Fault::TableMissing => &[
            "SET lock_timeout = '2s'",
            "ALTER TABLE applied_operations RENAME TO applied_operations_away",
        ],
        Fault::ColumnMissing => &[
            "SET lock_timeout = '2s'",
            "ALTER TABLE tasks RENAME COLUMN due_at TO due_at_away",
        ],
        _ => &[],
    }
}

/// The statements that mend it, whether it was made or not.
fn restore(fault: Fault) -> &'static [&'static str] {
    match fault {
        Fault::ReadOnly => &[
            "ALTER SYSTEM RESET default_transaction_read_only",
            "SELECT pg_reload_conf()",
        ],
        Fault::TooManyClients => &["ALTER ROLE holdfast CONNECTION LIMIT -1"],
        Fault::WrongPassword => &["ALTER ROLE holdfast PASSWORD 'holdfast'"],
        Fault::TableMissing => {
            &["ALTER TABLE IF EXISTS applied_operations_away RENAME TO applied_operations"]
        }
        Fault::ColumnMissing => &[
            "DO $$ BEGIN IF EXISTS (SELECT FROM information_schema.columns \
             WHERE table_name = 'tasks' AND column_name = 'due_at_away') THEN \
             ALTER TABLE tasks RENAME COLUMN due_at_away TO due_at; END IF; END $$",
        ],
        _ => &[],
    }
}

fn lock(fault: Fault) -> &'static [&'static str] {
    match fault {
        Fault::TableLock => &[
            "SET lock_timeout = '2s'",
            "BEGIN",
            "LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE",
        ],
        _ => &[
            "SET lock_timeout = '2s'",
            "BEGIN",
            "SELECT id FROM tasks WHERE deleted_stamp = 0 ORDER BY updated_at DESC LIMIT 4 FOR UPDATE",
            "SELECT id FROM users ORDER BY updated_at DESC LIMIT 1 FOR UPDATE",
        ],
    }
}

/// As the superuser, past the proxies, whose sessions may write even when the
/// server's default is not to.
async fn admin(world: &World) -> Result<PgConnection> {
    let options: PgConnectOptions = world.admin_url.parse().context("not a URL")?;
    let options = options.options([("default_transaction_read_only", "off")]);
    tokio::time::timeout(ADMIN_TIMEOUT, PgConnection::connect_with(&options))
        .await
        .context("PostgreSQL doesn't answer")?
        .context("cannot connect to PostgreSQL")
}

async fn execute(connection: &mut PgConnection, statements: &[&'static str]) -> Result<()> {
    for statement in statements {
        tokio::time::timeout(ADMIN_TIMEOUT, connection.execute(sqlx::raw_sql(*statement)))
            .await
            .with_context(|| format!("no answer to {statement}"))?
            .with_context(|| format!("cannot {statement}"))?;
    }
    Ok(())
}

async fn tell(world: &World, statements: &[&'static str]) -> Result<()> {
    let mut connection = admin(world).await?;
    execute(&mut connection, statements).await?;
    Ok(connection.close().await?)
}

async fn hold_lock(world: &World, statements: &[&'static str]) -> Result<PgConnection> {
    let mut connection = admin(world).await?;
    execute(&mut connection, statements).await?;
    Ok(connection)
}

fn flow(link: Link) -> Flow {
    match link {
        Link::Cut => Flow::Cut,
        Link::BlackHole => Flow::BlackHole,
        Link::HalfOpen => Flow::HalfOpen,
        Link::Slow(millis) => Flow::Delay(Duration::from_millis(millis)),
    }
}

async fn set_postgres(world: &World, node: u8, flow: Flow) -> Result<()> {
    let place = &world.places[usize::from(node)];
    place.to_postgres.lock().await.set(flow).await
}

async fn set_redis(world: &World, node: u8, flow: Flow) -> Result<()> {
    let place = &world.places[usize::from(node)];
    place.to_redis.lock().await.set(flow).await
}

async fn signal(world: &World, node: u8, program: Program, signal: Signal) -> Result<()> {
    match program {
        Program::Syncd => {
            let place = &world.places[usize::from(node)];
            place.syncd.lock().await.signal(signal)
        }
        Program::Api(number) => {
            let server = world.server(Api { node, number }).context("no such API")?;
            server.program.lock().await.signal(signal)
        }
    }
}

async fn end(world: &World, node: u8, program: Program, with: Signal) -> Result<()> {
    let server = match program {
        Program::Syncd => None,
        Program::Api(number) => world.server(Api { node, number }),
    };
    let mut running = match server {
        Some(server) => server.program.lock().await,
        None => world.places[usize::from(node)].syncd.lock().await,
    };
    if let Some(server) = server {
        server.turn();
    }
    if with == Signal::SIGKILL {
        return running.kill9().await;
    }
    let status = running.terminate(END_DEADLINE).await?;
    if !status.success() {
        let what = format!(
            "node {node} {program:?} ended with {status}:\n{}",
            running.log()
        );
        world.recorder.failed(what);
    }
    Ok(())
}

async fn start(world: &World, node: u8, program: Program) -> Result<()> {
    match program {
        Program::Syncd => {
            let place = &world.places[usize::from(node)];
            place.syncd.lock().await.restart().await
        }
        Program::Api(number) => {
            let server = world.server(Api { node, number }).context("no such API")?;
            if world.sabotage == Sabotage::LoseBuffer {
                lose_buffer(&world.places[usize::from(node)])?;
            }
            server.program.lock().await.restart().await?;
            server.turn();
            Ok(())
        }
    }
}

fn fill_disk(world: &World, node: u8) -> Result<PathBuf> {
    let place = &world.places[usize::from(node)];
    let disk = place.disk.as_ref().context("no disk of its own")?;
    tokio::task::block_in_place(|| disk.fill("filler"))
}

/// Removes the buffer with all that waits in it.
fn lose_buffer(place: &Place) -> Result<()> {
    let path = place.node.buffer_path();
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn name(fault: Fault) -> &'static str {
    match fault {
        Fault::PostgresKill => "PostgreSQL: kill -9",
        Fault::PostgresCrash => "PostgreSQL: immediate stop",
        Fault::PostgresFreeze => "PostgreSQL: stopped",
        Fault::ReadOnly => "PostgreSQL: read-only",
        Fault::TooManyClients => "PostgreSQL: too many clients",
        Fault::WrongPassword => "PostgreSQL: wrong password",
        Fault::TableMissing => "PostgreSQL: table missing",
        Fault::ColumnMissing => "PostgreSQL: column missing",
        Fault::TableLock => "PostgreSQL: table locked",
        Fault::RowLocks => "PostgreSQL: rows locked",
        Fault::RedisKill => "Redis: kill -9",
        Fault::RedisFreeze => "Redis: stopped",
        Fault::PostgresLink(_, link) => match link {
            Link::Cut => "to PostgreSQL: cut",
            Link::BlackHole => "to PostgreSQL: black hole",
            Link::HalfOpen => "to PostgreSQL: half open",
            Link::Slow(_) => "to PostgreSQL: slow",
        },
        Fault::RedisLink(_, link) => match link {
            Link::Cut => "to Redis: cut",
            Link::BlackHole => "to Redis: black hole",
            Link::HalfOpen => "to Redis: half open",
            Link::Slow(_) => "to Redis: slow",
        },
        Fault::Isolated(_) => "a node cut off from both",
        Fault::Kill(_, Program::Api(_)) => "api: kill -9",
        Fault::Kill(_, Program::Syncd) => "syncd: kill -9",
        Fault::Terminate(_, Program::Api(_)) => "api: SIGTERM",
        Fault::Terminate(_, Program::Syncd) => "syncd: SIGTERM",
        Fault::Freeze(_, Program::Api(_)) => "api: stopped",
        Fault::Freeze(_, Program::Syncd) => "syncd: stopped",
        Fault::DiskFull(_) => "disk full",
    }
}
