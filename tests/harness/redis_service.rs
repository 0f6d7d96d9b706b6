//! A Redis service: a master with a replica, watched by three sentinels that
//! make the replica master when it has to be.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::certificates::Authority;
use crate::redis::{Redis, Setup};
use crate::wait::eventually;

/// What the sentinels call it.
pub const SERVICE: &str = "mymaster";

const SENTINELS: usize = 3;
/// Sentinels find each other and the replica within their periods, which are
/// shortened to half a second.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// About two seconds, of which one is drawn by lot.
const FAILOVER_DEADLINE: Duration = Duration::from_secs(60);
/// How long a server may be silent before a sentinel thinks it down, at first:
/// a busy machine makes no failover that no test has asked for.
const PATIENT_MS: u32 = 60_000;
/// And once a test is about to lose the master. It is asked once a second
/// unless it is suspected.
const WATCHFUL_MS: u32 = 500;

/// How one gets in.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// The servers' password.
    pub password: Option<String>,
    /// The sentinels' password.
    pub sentinel_password: Option<String>,
    /// Whose certificates all of them have, and want.
    pub authority: Option<Arc<Authority>>,
}

/// The service.
#[derive(Debug)]
pub struct RedisService {
    servers: Vec<Redis>,
    sentinels: Vec<Redis>,
    access: Access,
}

impl RedisService {
    /// Starts it, and waits until it would survive the loss of its master.
    ///
    /// # Errors
    /// When a server or a sentinel doesn't come up.
    pub async fn start(access: Access) -> Result<Self> {
        let master = Redis::start_as(server(&access)).await?;
        let port = public_port(&master, &access).to_string();
        let replica = server(&access).with(&["--replicaof", "127.0.0.1", &port]);
        let replica = Redis::start_as(replica).await?;
        eventually(READY_DEADLINE, "the replica's copy", async || {
            is_told(&replica, "INFO replication", "master_link_status:up").await
        })
        .await?;
        let mut sentinels = Vec::new();
        for _ in 0..SENTINELS {
            sentinels.push(Redis::start_as(sentinel(&access, &port)).await?);
        }
        let service = Self {
            servers: vec![master, replica],
            sentinels,
            access,
        };
        service.wait_ready().await?;
        Ok(service)
    }

    async fn wait_ready(&self) -> Result<()> {
        let replica = format!("\r\n{}\r\n", public_port(&self.servers[1], &self.access));
        for sentinel in &self.sentinels {
            let hasten = "SENTINEL DEBUG INFO-PERIOD 500 PUBLISH-PERIOD 500 ASK-PERIOD 500";
            sentinel.ask(hasten).await?;
        }
        for sentinel in &self.sentinels {
            eventually(READY_DEADLINE, "the sentinels to be ready", async || {
                is_told(sentinel, &format!("SENTINEL REPLICAS {SERVICE}"), &replica).await?;
                is_told(
                    sentinel,
                    &format!("SENTINEL CKQUORUM {SERVICE}"),
                    "OK 3 usable",
                )
                .await
            })
            .await?;
        }
        Ok(())
    }

    /// Its URL, with all its sentinels.
    ///
    /// # Errors
    /// When a certificate for the client can't be made.
    pub fn url(&self) -> Result<String> {
        let access = &self.access;
        let mut url = String::from("redis+sentinel://");
        if let Some(password) = &access.password {
            url += &format!(":{password}@");
        }
        let ports = self.sentinels.iter().map(|one| public_port(one, access));
        let hosts: Vec<String> = ports.map(|port| format!("127.0.0.1:{port}")).collect();
        url += &format!("{}/{SERVICE}", hosts.join(","));
        let mut parameters = Vec::new();
        if let Some(password) = &access.sentinel_password {
            parameters.push(format!("sentinel_password={password}"));
        }
        if let Some(authority) = &access.authority {
            url.insert("redis".len(), 's');
            parameters.push(authority.url_parameters()?);
        }
        if !parameters.is_empty() {
            url += &format!("?{}", parameters.join("&"));
        }
        Ok(url)
    }

    /// From now on the sentinels soon replace a master that doesn't answer.
    ///
    /// # Errors
    /// When one of them can't be told.
    pub async fn be_watchful(&self) -> Result<()> {
        for sentinel in &self.sentinels {
            let setting = format!("SENTINEL SET {SERVICE} down-after-milliseconds {WATCHFUL_MS}");
            let told = sentinel.ask(&setting).await?;
            ensure!(told == "+OK\r\n", "{setting}: {told}");
        }
        Ok(())
    }

    /// The sentinels.
    pub fn sentinels(&mut self) -> &mut [Redis] {
        &mut self.sentinels
    }

    /// A server, by its number.
    pub fn server(&mut self, number: usize) -> &mut Redis {
        &mut self.servers[number]
    }

    /// The number of the server that this sentinel calls master.
    ///
    /// # Errors
    /// When it isn't answered.
    pub async fn master_by(&self, sentinel: usize) -> Result<usize> {
        let question = format!("SENTINEL GET-MASTER-ADDR-BY-NAME {SERVICE}");
        let answer = self.sentinels[sentinel].ask(&question).await?;
        let port: u16 = answer
            .lines()
            .last()
            .and_then(|line| line.parse().ok())
            .with_context(|| format!("no address of a master: {answer}"))?;
        let mut servers = self.servers.iter();
        servers
            .position(|server| public_port(server, &self.access) == port)
            .context("the master is none of the service's servers")
    }

    /// Waits until a sentinel calls another server master than this one.
    ///
    /// # Errors
    /// When that doesn't happen.
    pub async fn wait_failover(&self, from: usize) -> Result<usize> {
        eventually(FAILOVER_DEADLINE, "a failover", async || {
            match self.master_by(0).await {
                Ok(master) if master != from => Ok(master),
                Ok(_) => Err(String::from("the same master")),
                Err(error) => Err(format!("{error:#}")),
            }
        })
        .await
    }
}

fn server(access: &Access) -> Setup {
    let setup = Setup::default().with(&["--repl-diskless-sync-delay", "0"]);
    let setup = certified(setup, access);
    match &access.password {
        Some(password) => setup.protected_by(password),
        None => setup,
    }
}

fn sentinel(access: &Access, master_port: &str) -> Setup {
    let mut lines = format!(
        "sentinel monitor {SERVICE} 127.0.0.1 {master_port} 2\n\
         sentinel down-after-milliseconds {SERVICE} {PATIENT_MS}\n\
         sentinel failover-timeout {SERVICE} 5000\n"
    );
    if let Some(password) = &access.password {
        lines += &format!("sentinel auth-pass {SERVICE} {password}\n");
    }
    let setup = match &access.sentinel_password {
        Some(password) => {
            lines += &format!("sentinel sentinel-pass {password}\n");
            Setup::default().protected_by(password)
        }
        None => Setup::default(),
    };
    certified(setup, access).watching(lines)
}

fn certified(setup: Setup, access: &Access) -> Setup {
    match &access.authority {
        Some(authority) => setup
            .certified_by(authority)
            .with(&["--tls-replication", "yes"]),
        None => setup,
    }
}

/// The port that others than these tests are to use.
fn public_port(server: &Redis, access: &Access) -> u16 {
    match access.authority {
        Some(_) => server.port_of("--tls-port"),
        None => server.port(),
    }
}

async fn is_told(server: &Redis, question: &str, expected: &str) -> Result<(), String> {
    match server.ask(question).await {
        Ok(answer) if answer.contains(expected) => Ok(()),
        Ok(answer) => Err(answer),
        Err(error) => Err(format!("{error:#}")),
    }
}
