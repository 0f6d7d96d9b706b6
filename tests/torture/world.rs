//! Everything that is hurt: the stores, the ways to them, and the programs.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex as SyncMutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use holdfast_tests::{FaultProxy, Node, Postgres, Program, Redis, SmallDisk};
use tokio::sync::Mutex;

use crate::history::Api;
use crate::recorder::Recorder;

/// The database.
pub const DATABASE: &str = "holdfast";

/// An answer that takes longer has been lost: far above what the programs
/// promise, and above the longest that one is stopped.
const ANSWER_LIMIT: Duration = Duration::from_secs(40);
/// Idle connections are closed by us before a server would, so that no request
/// is sent on one that is just being closed.
const IDLE_LIMIT: Duration = Duration::from_secs(2);
/// Far more than a buffer takes here, with its ballast.
const DISK_MIB: u64 = 128;
const ONLINE_DEADLINE: Duration = Duration::from_secs(60);

/// Where Debian and others put libfaketime.
const FAKETIME_PLACES: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/faketime/libfaketime.so.1",
    "/usr/lib64/faketime/libfaketime.so.1",
];

/// A guarantee broken on purpose, to see that the checker notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// None is.
    Nothing,
    /// A node's buffer is removed whenever one of its API processes is down.
    LoseBuffer,
}

/// An API process, which may be replaced at any time.
pub struct Server {
    /// Its place.
    pub api: Api,
    /// The process.
    pub program: Mutex<Program>,
    /// Where it listens.
    pub origin: String,
    // Keeps the port while the process is down.
    _node: Node,
    /// Even while it is up; each end and each start makes a new number.
    life: AtomicU32,
    http: SyncMutex<reqwest::Client>,
}

/// A node's programs and its ways to the stores.
pub struct Place {
    /// Its directory and settings.
    pub node: Node,
    /// Its way to PostgreSQL.
    pub to_postgres: Mutex<FaultProxy>,
    /// Its way to Redis.
    pub to_redis: Mutex<FaultProxy>,
    /// Its daemon.
    pub syncd: Mutex<Program>,
    /// How far its clock is ahead, in seconds.
    pub skew_seconds: i64,
    /// What its buffer is on, if that can be filled.
    pub disk: Option<SmallDisk>,
}

/// The whole.
pub struct World {
    /// The database server.
    pub postgres: Mutex<Postgres>,
    /// Its superuser's URL.
    pub admin_url: String,
    /// The session store.
    pub redis: Mutex<Redis>,
    /// All API processes. They must end before the nodes' disks can go.
    pub servers: Vec<Server>,
    /// The nodes.
    pub places: Vec<Place>,
    /// What is noted.
    pub recorder: Recorder,
    /// What is broken on purpose.
    pub sabotage: Sabotage,
}

impl World {
    /// Starts everything: nodes with clocks as `skews` say, the first with
    /// `apis` API processes, the others with one. The last one's buffer is on a
    /// small disk, where one can be made.
    ///
    /// # Errors
    /// When anything doesn't come up.
    pub async fn start(skews: &[i64], apis: u8, sabotage: Sabotage) -> Result<Self> {
        let postgres = Postgres::start().await?;
        postgres.create_database(DATABASE).await?;
        postgres.demand_passwords().await?;
        let redis = Redis::start().await?;
        let mut places = Vec::new();
        let mut servers = Vec::new();
        for (number, skew) in (0..).zip(skews) {
            let is_last = usize::from(number) + 1 == skews.len();
            let disk = is_last.then(|| SmallDisk::mount(DISK_MIB)).transpose()?;
            let place = Place::start(&postgres, &redis, *skew, disk.flatten()).await?;
            let apis = if number == 0 { apis } else { 1 };
            for api in 0..apis {
                let api = Api {
                    node: number,
                    number: api,
                };
                servers.push(Server::start(&place.node, api).await?);
            }
            places.push(place);
        }
        let world = Self {
            admin_url: postgres.admin_url(DATABASE),
            postgres: Mutex::new(postgres),
            redis: Mutex::new(redis),
            places,
            servers,
            recorder: Recorder::new(),
            sabotage,
        };
        for server in &world.servers {
            let program = server.program.lock().await;
            program.wait_status(ONLINE_DEADLINE, "online").await?;
        }
        Ok(world)
    }

    /// The server at a place.
    pub fn server(&self, api: Api) -> Option<&Server> {
        self.servers.iter().find(|server| server.api == api)
    }
}

impl Place {
    async fn start(
        postgres: &Postgres,
        redis: &Redis,
        skew_seconds: i64,
        disk: Option<SmallDisk>,
    ) -> Result<Self> {
        let to_postgres = FaultProxy::start(postgres.port()).await?;
        let to_redis = FaultProxy::start(redis.port()).await?;
        let mut node = Node::new()?
            .hasty()
            .with(
                "DATABASE_URL",
                &postgres.url_through(to_postgres.port(), DATABASE),
            )
            .with("REDIS_URL", &redis.url_through(to_redis.port()))
            .with("DB_MAX_CONNECTIONS", "6")
            .with("SHUTDOWN_TIMEOUT_SECONDS", "5");
        if let Some(disk) = &disk {
            let path = disk.path().join("data/buffer.redb");
            node.set("BUFFER_PATH", &path.to_string_lossy());
        }
        if skew_seconds != 0 {
            let library = faketime().context("there is no libfaketime")?;
            node.set("LD_PRELOAD", &library.to_string_lossy());
            node.set("FAKETIME", &format!("{skew_seconds:+}s"));
            // Time that passes is not faked, nor are the times of files.
            node.set("FAKETIME_DONT_FAKE_MONOTONIC", "1");
            node.set("DONT_FAKE_MONOTONIC", "1");
            node.set("NO_FAKE_STAT", "1");
        }
        node.syncd(&["migrate"]).await?.expect_code(0);
        let syncd = node.start_syncd().await?;
        Ok(Self {
            node,
            to_postgres: Mutex::new(to_postgres),
            to_redis: Mutex::new(to_redis),
            syncd: Mutex::new(syncd),
            skew_seconds,
            disk,
        })
    }
}

impl Server {
    async fn start(node: &Node, api: Api) -> Result<Self> {
        // A port of its own, but the same directory and buffer.
        let beside = node.beside()?;
        let program = beside.start_api().await?;
        Ok(Self {
            api,
            origin: program.base_url(),
            _node: beside,
            program: Mutex::new(program),
            life: AtomicU32::new(0),
            http: SyncMutex::new(http()),
        })
    }

    /// The number of its life, when it is up.
    pub fn life(&self) -> Option<u32> {
        let life = self.life.load(Ordering::SeqCst);
        life.is_multiple_of(2).then_some(life)
    }

    /// To be called before it is ended, and once it answers again.
    pub fn turn(&self) {
        if self.life.fetch_add(1, Ordering::SeqCst) % 2 == 1 {
            // Connections to the process that was are of no use.
            *self.http.lock().unwrap_or_else(PoisonError::into_inner) = http();
        }
    }

    /// A client with connections to this life of it.
    pub fn http(&self) -> reqwest::Client {
        self.http
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

fn http() -> reqwest::Client {
    reqwest::Client::builder()
        .no_proxy()
        .timeout(ANSWER_LIMIT)
        .pool_idle_timeout(IDLE_LIMIT)
        .build()
        .expect("without TLS there is nothing that could fail")
}

/// The library that shifts a process' clock, if it is installed.
pub fn faketime() -> Option<PathBuf> {
    let places = FAKETIME_PLACES.iter().map(Path::new);
    let mut there = places.filter(|place| place.is_file());
    there.next().map(Path::to_owned)
}
