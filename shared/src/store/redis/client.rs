//! Making connections, to whatever servers the configuration names.

use std::sync::Arc;
use std::time::Duration;

use deadpool_redis::redis::{RedisError, cmd};

use super::cluster::Cluster;
use super::connection::Connection;
use super::dialer::{Dialer, STORE};
use super::sentinel::{Sentinels, is_master};
use crate::config::{RedisAddress, RedisConfig, RedisServers};
use crate::store::StoreError;
use crate::store::pool::Connector;

/// How to get a connection.
pub(super) struct Client {
    /// To servers that hold the data.
    dialer: Arc<Dialer>,
    servers: Servers,
}

enum Servers {
    Single(RedisAddress),
    Sentinel(Box<Sentinels>),
    Cluster(Vec<RedisAddress>),
}

impl Client {
    /// For calls that may take `timeout`: two thirds of it are for getting a connection, where there is none.
    pub(super) fn new(config: &RedisConfig, timeout: Duration) -> Self {
        let dialer = |login, database| {
            let tls = config.tls.clone();
            Dialer::new((login, database), tls, timeout * 2 / 3, timeout)
        };
        let servers = match &config.servers {
            RedisServers::Single(address) => Servers::Single(address.clone()),
            RedisServers::Cluster(seeds) => Servers::Cluster(seeds.clone()),
            RedisServers::Sentinel {
                sentinels,
                service,
                login,
            } => Servers::Sentinel(Box::new(Sentinels {
                dialer: dialer(login.clone(), 0),
                addresses: sentinels.clone(),
                service: service.clone(),
            })),
        };
        Client {
            dialer: Arc::new(dialer(config.login.clone(), config.database)),
            servers,
        }
    }
}

impl Connector for Client {
    const STORE: &'static str = STORE;

    type Connection = Connection;

    async fn connect(&self) -> Result<Connection, StoreError> {
        let dialer = &self.dialer;
        Ok(match &self.servers {
            Servers::Single(address) => {
                Connection::Server(dialer.within(dialer.dial(address)).await?)
            }
            Servers::Sentinel(sentinels) => {
                Connection::Server(sentinels.connect_to_master(dialer).await?)
            }
            Servers::Cluster(seeds) => Connection::Cluster(Cluster::connect(dialer, seeds).await?),
        })
    }

    /// A server that sentinels watch has to be master still: reads of a replica's are old.
    async fn ping(&self, connection: &mut Connection) -> bool {
        match (&self.servers, connection) {
            (Servers::Sentinel(_), Connection::Server(server)) => {
                is_master(server).await.unwrap_or(false)
            }
            (_, Connection::Server(server)) => {
                let pong: Result<(), RedisError> = cmd("PING").query_async(server).await;
                pong.is_ok()
            }
            (_, Connection::Cluster(cluster)) => cluster.ping().await,
        }
    }
}
