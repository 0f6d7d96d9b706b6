//! A Redis Cluster: three masters, each with a replica or without.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::process::Command;

use crate::certificates::Authority;
use crate::redis::{Redis, Setup};
use crate::wait::eventually;

const MASTERS: usize = 3;
/// How long a node may be silent before the others think it lost: longer than
/// a call on it, so that a call sees it silent.
const NODE_TIMEOUT_MS: &str = "3000";
/// The same, where nobody is to take over while the tests stop a node.
const PATIENT_TIMEOUT_MS: &str = "60000";
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// The node timeout, and about a second until a replica is elected.
const FAILOVER_DEADLINE: Duration = Duration::from_secs(60);

/// The cluster.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<Redis>,
    authority: Option<Arc<Authority>>,
}

/// A node as another one sees it.
struct Seen {
    port: u16,
    flags: String,
    slots: Vec<(u16, u16)>,
}

impl RedisCluster {
    /// Starts one whose masters have a replica each.
    ///
    /// # Errors
    /// When a node doesn't come up, or they don't form a cluster.
    pub async fn start() -> Result<Self> {
        Self::form(2 * MASTERS, NODE_TIMEOUT_MS, None).await
    }

    /// Starts one of three masters without replicas, who wait long for each
    /// other.
    ///
    /// # Errors
    /// As [`RedisCluster::start`].
    pub async fn start_patient() -> Result<Self> {
        Self::form(MASTERS, PATIENT_TIMEOUT_MS, None).await
    }

    /// Starts one of three masters that speak TLS, also with each other.
    ///
    /// # Errors
    /// As [`RedisCluster::start`].
    pub async fn start_certified(authority: &Arc<Authority>) -> Result<Self> {
        let authority = Some(Arc::clone(authority));
        Self::form(MASTERS, PATIENT_TIMEOUT_MS, authority).await
    }

    async fn form(
        count: usize,
        node_timeout_ms: &str,
        authority: Option<Arc<Authority>>,
    ) -> Result<Self> {
        let mut setup = Setup::default()
            .with_port("--cluster-port")
            .with(&["--cluster-enabled", "yes"])
            .with(&["--cluster-node-timeout", node_timeout_ms])
            .with(&["--repl-diskless-sync-delay", "0"]);
        if let Some(authority) = &authority {
            setup = setup
                .certified_by(authority)
                .with(&["--tls-cluster", "yes"]);
        }
        let mut nodes = Vec::new();
        for _ in 0..count {
            nodes.push(Redis::start_as(setup.clone()).await?);
        }
        let cluster = Self { nodes, authority };
        cluster.create(count / MASTERS - 1).await?;
        cluster.wait_ready().await?;
        Ok(cluster)
    }

    async fn create(&self, replicas: usize) -> Result<()> {
        let mut command = Command::new("redis-cli");
        let directory = tempfile::tempdir().context("cannot create a directory")?;
        if let Some(authority) = &self.authority {
            let files = authority.certify("client", directory.path())?;
            command
                .arg("--tls")
                .arg("--cacert")
                .arg(authority.certificate_file());
            command.arg("--cert").arg(&files.certificate);
            command.arg("--key").arg(&files.key);
        }
        command
            .args(["--cluster", "create"])
            .args(self.hosts())
            .args(["--cluster-replicas", &replicas.to_string(), "--cluster-yes"]);
        run(&mut command).await
    }

    /// Waits until each node knows that all is well, and each replica has all.
    async fn wait_ready(&self) -> Result<()> {
        for node in &self.nodes {
            eventually(READY_DEADLINE, "the cluster to be ready", async || {
                let info = told(node, "CLUSTER INFO").await?;
                let seen = self
                    .seen_by(node)
                    .await
                    .map_err(|error| format!("{error:#}"))?;
                let replicas = seen
                    .iter()
                    .filter(|one| one.flags.contains("slave"))
                    .count();
                let link = told(node, "INFO replication").await?;
                let is_ready = info.contains("cluster_state:ok")
                    && replicas == self.nodes.len() - MASTERS
                    && !link.contains("master_link_status:down");
                if is_ready { Ok(()) } else { Err(info) }
            })
            .await?;
        }
        Ok(())
    }

    /// The addresses of all nodes.
    fn hosts(&self) -> Vec<String> {
        let ports = self.nodes.iter().map(|node| self.public_port(node));
        ports.map(|port| format!("127.0.0.1:{port}")).collect()
    }

    /// Its URL, with all its nodes.
    ///
    /// # Errors
    /// When a certificate for the client can't be made.
    pub fn url(&self) -> Result<String> {
        let hosts = self.hosts().join(",");
        Ok(match &self.authority {
            None => format!("redis+cluster://{hosts}"),
            Some(authority) => {
                let parameters = authority.url_parameters()?;
                format!("rediss+cluster://{hosts}?{parameters}")
            }
        })
    }

    /// A node, by its number.
    pub fn node(&mut self, number: usize) -> &mut Redis {
        &mut self.nodes[number]
    }

    /// The numbers of all nodes that are masters and alive, as far as the
    /// first that answers knows.
    ///
    /// # Errors
    /// When no node answers.
    pub async fn masters(&self) -> Result<Vec<usize>> {
        let seen = self.seen().await?;
        let masters = seen.iter().filter(|one| one.is_living_master());
        masters.map(|one| self.number_of(one)).collect()
    }

    /// The number of the node that has the slot of `key`.
    ///
    /// # Errors
    /// When no node answers, or none has it.
    pub async fn master_of(&self, key: &str) -> Result<usize> {
        let slot = self.slot_of(key).await?;
        let seen = self.seen().await?;
        let mut owners = seen.iter().filter(|one| one.is_living_master());
        let owner = owners.find(|one| one.has(slot));
        self.number_of(owner.with_context(|| format!("no node has slot {slot}"))?)
    }

    /// Waits until another node than this one has the slot of `key`.
    ///
    /// # Errors
    /// When that doesn't happen.
    pub async fn wait_takeover(&self, key: &str, from: usize) -> Result<usize> {
        eventually(
            FAILOVER_DEADLINE,
            "a replica to take over",
            async || match self.master_of(key).await {
                Ok(owner) if owner != from => Ok(owner),
                Ok(_) => Err(String::from("the same owner")),
                Err(error) => Err(format!("{error:#}")),
            },
        )
        .await
    }

    /// Waits until the replicas have all that their masters have.
    ///
    /// # Errors
    /// When they don't get it.
    pub async fn wait_replicated(&self) -> Result<()> {
        for master in self.masters().await? {
            let node = &self.nodes[master];
            // Not WAIT, which waits for what its own connection has written.
            let info = node.ask("INFO replication").await?;
            let wanted = *offsets(&info, "master_repl_offset:")
                .first()
                .context("no offset")?;
            eventually(READY_DEADLINE, "a replica to catch up", async || {
                let info = told(node, "INFO replication").await?;
                let reached = offsets(&info, ",offset=").into_iter().max();
                (reached >= Some(wanted)).then_some(()).ok_or(info)
            })
            .await?;
        }
        Ok(())
    }

    /// Moves the slot of `key`, with whatever keys are in it, to another
    /// master, and calls `halfway` when all keys have gone, but not the slot.
    ///
    /// # Errors
    /// When a node refuses, or `halfway` fails.
    pub async fn move_slot(
        &self,
        key: &str,
        to: usize,
        halfway: impl AsyncFnOnce() -> Result<()>,
    ) -> Result<()> {
        self.transfer(key, to, usize::MAX, halfway).await
    }

    /// As [`RedisCluster::move_slot`], but `halfway` is when one key has gone.
    ///
    /// # Errors
    /// As there.
    pub async fn tear_slot(
        &self,
        key: &str,
        to: usize,
        halfway: impl AsyncFnOnce() -> Result<()>,
    ) -> Result<()> {
        self.transfer(key, to, 1, halfway).await
    }

    async fn transfer(
        &self,
        key: &str,
        to: usize,
        keys_first: usize,
        halfway: impl AsyncFnOnce() -> Result<()>,
    ) -> Result<()> {
        let slot = self.slot_of(key).await?;
        let from = self.master_of(key).await?;
        let (from_id, to_id) = (self.id_of(from).await?, self.id_of(to).await?);
        let importing = format!("CLUSTER SETSLOT {slot} IMPORTING {from_id}");
        let migrating = format!("CLUSTER SETSLOT {slot} MIGRATING {to_id}");
        self.tell(to, &importing).await?;
        self.tell(from, &migrating).await?;
        self.move_keys(slot, (from, to), keys_first).await?;
        halfway().await?;
        self.move_keys(slot, (from, to), usize::MAX).await?;
        for node in [to, from] {
            let settled = format!("CLUSTER SETSLOT {slot} NODE {to_id}");
            self.tell(node, &settled).await?;
        }
        Ok(())
    }

    async fn move_keys(&self, slot: u16, (from, to): (usize, usize), count: usize) -> Result<()> {
        let port = self.nodes[to].port();
        for _ in 0..count {
            let next = format!("CLUSTER GETKEYSINSLOT {slot} 1");
            let keys = self.tell(from, &next).await?;
            // A list of one: its length, the key's length, the key.
            let Some(key) = keys.lines().nth(2) else {
                break;
            };
            let move_key = format!("MIGRATE 127.0.0.1 {port} {key} 0 10000");
            self.tell(from, &move_key).await?;
        }
        Ok(())
    }

    async fn tell(&self, node: usize, command: &str) -> Result<String> {
        let answer = self.nodes[node].ask(command).await?;
        ensure!(!answer.starts_with('-'), "{command}: {answer}");
        Ok(answer)
    }

    async fn id_of(&self, number: usize) -> Result<String> {
        let answer = self.nodes[number].ask("CLUSTER MYID").await?;
        let id = answer.lines().nth(1).context("no id")?;
        Ok(id.to_owned())
    }

    async fn slot_of(&self, key: &str) -> Result<u16> {
        let question = format!("CLUSTER KEYSLOT {key}");
        for node in &self.nodes {
            if let Ok(answer) = node.ask(&question).await {
                let slot = answer.trim().trim_start_matches(':').parse();
                return slot.with_context(|| format!("no slot: {answer}"));
            }
        }
        bail!("no node of the cluster answers")
    }

    async fn seen(&self) -> Result<Vec<Seen>> {
        for node in &self.nodes {
            if let Ok(seen) = self.seen_by(node).await {
                return Ok(seen);
            }
        }
        bail!("no node of the cluster answers")
    }

    async fn seen_by(&self, node: &Redis) -> Result<Vec<Seen>> {
        let answer = node.ask("CLUSTER NODES").await?;
        answer
            .lines()
            .filter(|line| line.contains('@'))
            .map(read_seen)
            .collect()
    }

    fn number_of(&self, seen: &Seen) -> Result<usize> {
        let mut nodes = self.nodes.iter();
        let found =
            nodes.position(|node| seen.port == node.port() || seen.port == self.public_port(node));
        found.context("a node that isn't the cluster's")
    }

    fn public_port(&self, node: &Redis) -> u16 {
        match self.authority {
            Some(_) => node.port_of("--tls-port"),
            None => node.port(),
        }
    }
}

impl Seen {
    fn is_living_master(&self) -> bool {
        self.flags.contains("master") && !self.flags.contains("fail")
    }

    fn has(&self, slot: u16) -> bool {
        let mut ranges = self.slots.iter();
        ranges.any(|(first, last)| (*first..=*last).contains(&slot))
    }
}

/// `id host:port@bus-port flags master ping pong epoch link slots…`
fn read_seen(line: &str) -> Result<Seen> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let read = || {
        let (address, _) = fields.get(1)?.split_once('@')?;
        let (_, port) = address.rsplit_once(':')?;
        let slots = fields.get(8..).unwrap_or_default().iter();
        Some(Seen {
            port: port.parse().ok()?,
            flags: (*fields.get(2)?).to_owned(),
            slots: slots.filter_map(|range| read_range(range)).collect(),
        })
    };
    read().with_context(|| format!("not a line of CLUSTER NODES: {line}"))
}

/// A slot or two with a dash between; slots on the move are in brackets.
fn read_range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some((first.parse().ok()?, last.parse().ok()?))
}

async fn run(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .await
        .context("is redis-cli installed? tests/scripts/install.sh installs it")?;
    if !output.status.success() {
        bail!(
            "cannot form a cluster:\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// The numbers that follow a word in `INFO replication`.
fn offsets(info: &str, word: &str) -> Vec<u64> {
    let follows = info.split(word).skip(1);
    let numbers = follows.map(|text| text.split(|c: char| !c.is_ascii_digit()).next());
    numbers
        .flatten()
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

async fn told(node: &Redis, question: &str) -> Result<String, String> {
    let answer = node.ask(question).await;
    answer.map_err(|error| format!("{error:#}"))
}
