//! A connection to a cluster: commands go to the masters that have their keys.
//!
//! It knows which node has which slot, and connects to nodes when it first needs them. When a slot has moved, the node
//! that had it says to whom; that is followed, and the slots are asked for anew. A master that can't be reached, or a
//! cluster that is down, fails the call, and with it ends this connection: the next one asks whichever nodes answer for
//! the slots, and so finds the replica that took over.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{Cmd, Pipeline, RedisError, ServerError, ServerErrorKind, Value, cmd};
use futures_util::future::try_join_all;

use super::commands::Command;
use super::dialer::{Dialer, first_of};
use super::errors::refusal;
use super::slots::{Slots, node};
use crate::config::RedisAddress;
use crate::store::FailureClass::{Contended, Item, Systemic, Unavailable};
use crate::store::StoreError;

/// How often a command is sent at most. One redirection is usual, two come of a slot that moves on meanwhile.
const MAX_ROUNDS: usize = 5;

/// A connection to each master that was needed so far.
pub(super) struct Cluster {
    dialer: Arc<Dialer>,
    slots: Slots,
    nodes: HashMap<RedisAddress, MultiplexedConnection>,
}

/// Where a command is to be sent.
#[derive(Clone, PartialEq, Eq)]
enum Route {
    /// To the node that has its slot, as far as we know.
    Owner,
    /// To the node that has its slot by what another said.
    Moved(RedisAddress),
    /// To the node that is being given its slot, and has to be told that we know.
    Asked(RedisAddress),
}

/// What is sent to one node in one go.
#[derive(Default)]
struct Share {
    indices: Vec<usize>,
    pipeline: Pipeline,
}

impl Cluster {
    /// Connects by whichever of these nodes knows the cluster first.
    pub(super) async fn connect(
        dialer: &Arc<Dialer>,
        seeds: &[RedisAddress],
    ) -> Result<Self, StoreError> {
        let ways = seeds
            .iter()
            .map(|seed| dialer.within(read_slots(dialer, seed)));
        let (slots, seed, connection) = first_of(ways).await?;
        let mut cluster = Cluster {
            dialer: Arc::clone(dialer),
            slots,
            nodes: HashMap::from([(seed, connection)]),
        };
        cluster.forget_strangers();
        Ok(cluster)
    }

    /// Carries commands out; gives their answers, refusals among them, in their order.
    pub(super) async fn run(&mut self, commands: &[Command]) -> Result<Vec<Value>, StoreError> {
        let mut answers = vec![Value::Nil; commands.len()];
        let mut waiting: Vec<(usize, Route)> = (0..commands.len())
            .map(|index| (index, Route::Owner))
            .collect();
        for round in 0..MAX_ROUNDS {
            let done_before = |error: StoreError| match round {
                0 => error,
                _ => error.with_answer_lost(),
            };
            let shares = self.share_out(commands, &waiting);
            let replies = self.send(shares).await.map_err(done_before)?;
            waiting.clear();
            for (source, index, answer) in replies {
                match redirection(&answer, &source)? {
                    Some(route) => waiting.push((index, route)),
                    None => answers[index] = answer,
                }
            }
            if waiting.is_empty() {
                return Ok(answers);
            }
            self.follow(&waiting).await.map_err(done_before)?;
        }
        let problem = "the redis cluster is moving the keys";
        Err(StoreError::new(Contended, problem).with_answer_lost())
    }

    /// For each master a key that it has, after asking for the slots anew.
    pub(super) async fn keys_of_all(&mut self, stem: &str) -> Result<Vec<String>, StoreError> {
        let masters: Vec<RedisAddress> = self.slots.masters().cloned().collect();
        self.connect_to(masters.iter()).await?;
        let ways = self.nodes.iter().map(|(address, connection)| {
            let mut connection = connection.clone();
            async move { ask_for_slots(&mut connection, address).await }
        });
        self.slots = first_of(ways).await?;
        self.forget_strangers();
        Ok(self.slots.keys_of_all(stem).into_values().collect())
    }

    /// Whether every node that was connected to still answers.
    pub(super) async fn ping(&mut self) -> bool {
        let pings = self.nodes.values_mut().map(|connection| async move {
            let pong: Result<(), RedisError> = cmd("PING").query_async(connection).await;
            pong
        });
        try_join_all(pings).await.is_ok()
    }

    fn share_out(
        &self,
        commands: &[Command],
        waiting: &[(usize, Route)],
    ) -> BTreeMap<RedisAddress, Share> {
        let mut shares: BTreeMap<RedisAddress, Share> = BTreeMap::new();
        for (index, route) in waiting {
            let command = &commands[*index];
            let address = match route {
                Route::Owner => self.slots.master_of(command.slot),
                Route::Moved(address) | Route::Asked(address) => address,
            };
            let share = shares.entry(address.clone()).or_default();
            if matches!(route, Route::Asked(_)) {
                share.pipeline.cmd("ASKING").ignore();
            }
            share.pipeline.add_command(command.cmd.clone());
            share.indices.push(*index);
        }
        shares
    }

    /// Sends each node its share; gives the answers with who gave them and the commands' indices.
    async fn send(
        &mut self,
        shares: BTreeMap<RedisAddress, Share>,
    ) -> Result<Vec<(RedisAddress, usize, Value)>, StoreError> {
        self.connect_to(shares.keys()).await?;
        let asked = shares.into_iter().map(|(address, share)| {
            let mut connection = self.nodes[&address].clone();
            async move {
                let answers = share.ask(&mut connection).await?;
                let indexed = share.indices.into_iter().zip(answers);
                let indexed = indexed.map(|(index, answer)| (address.clone(), index, answer));
                Ok::<_, StoreError>(indexed.collect::<Vec<_>>())
            }
        });
        let answers = try_join_all(asked).await?;
        Ok(answers.into_iter().flatten().collect())
    }

    async fn connect_to(
        &mut self,
        addresses: impl Iterator<Item = &RedisAddress>,
    ) -> Result<(), StoreError> {
        let dialer = &self.dialer;
        let missing = addresses
            .filter(|address| !self.nodes.contains_key(*address))
            .map(|address| async move {
                let connection = dialer.within(dialer.dial(address)).await?;
                Ok::<_, StoreError>((address.clone(), connection))
            });
        let made = try_join_all(missing).await?;
        self.nodes.extend(made);
        Ok(())
    }

    /// Asks for the slots anew where one of them has moved to.
    async fn follow(&mut self, waiting: &[(usize, Route)]) -> Result<(), StoreError> {
        let moved = waiting.iter().find_map(|(_, route)| match route {
            Route::Moved(address) => Some(address),
            Route::Owner | Route::Asked(_) => None,
        });
        let Some(address) = moved else {
            return Ok(());
        };
        self.connect_to(std::iter::once(address)).await?;
        let mut connection = self.nodes[address].clone();
        self.slots = ask_for_slots(&mut connection, address).await?;
        self.forget_strangers();
        Ok(())
    }

    fn forget_strangers(&mut self) {
        let slots = &self.slots;
        self.nodes
            .retain(|address, _| slots.masters().any(|master| master == address));
    }
}

impl Share {
    async fn ask(&self, connection: &mut MultiplexedConnection) -> Result<Vec<Value>, StoreError> {
        let mut pipeline = self.pipeline.clone();
        Ok(pipeline.ignore_errors().query_async(connection).await?)
    }
}

async fn read_slots(
    dialer: &Dialer,
    seed: &RedisAddress,
) -> Result<(Slots, RedisAddress, MultiplexedConnection), StoreError> {
    let mut connection = dialer.dial(seed).await?;
    let slots = ask_for_slots(&mut connection, seed).await?;
    Ok((slots, seed.clone(), connection))
}

async fn ask_for_slots(
    connection: &mut MultiplexedConnection,
    source: &RedisAddress,
) -> Result<Slots, StoreError> {
    let answer: Result<Vec<Value>, RedisError> = slots_question().query_async(connection).await;
    Slots::read(&answer.map_err(no_cluster)?, source)
}

fn slots_question() -> Cmd {
    let mut question = cmd("CLUSTER");
    question.arg("SLOTS");
    question
}

/// A server that is of no cluster says so in words only.
fn no_cluster(error: RedisError) -> StoreError {
    let error = StoreError::from(error);
    if error.class() != Item {
        return error;
    }
    let problem = "redis is no cluster: REDIS_URL must begin with redis:// or redis+sentinel://";
    StoreError::new(Systemic, problem).caused_by(error)
}

/// Where a command has to be sent instead, if its answer says so.
fn redirection(answer: &Value, source: &RedisAddress) -> Result<Option<Route>, StoreError> {
    let Some(refusal) = refusal(answer) else {
        return Ok(None);
    };
    let to: fn(RedisAddress) -> Route = match refusal.kind() {
        Some(ServerErrorKind::Moved) => Route::Moved,
        Some(ServerErrorKind::Ask) => Route::Asked,
        _ => return Ok(None),
    };
    let lost = || {
        let problem = "the redis cluster doesn't say where a key is";
        StoreError::new(Unavailable, problem).with_answer_lost()
    };
    Ok(Some(to(target(refusal, source).ok_or_else(lost)?)))
}

fn target(refusal: &ServerError, source: &RedisAddress) -> Option<RedisAddress> {
    let error = RedisError::from(refusal.clone());
    let (address, _) = error.redirect_node()?;
    let (host, port) = address.rsplit_once(':')?;
    node(host, port.parse().ok()?, source)
}
