//! A connection: to the one server that holds everything, or to a cluster.

use deadpool_redis::redis::Value;
use deadpool_redis::redis::aio::MultiplexedConnection;

use super::cluster::Cluster;
use super::commands::Commands;
use super::errors::accepted;
use crate::store::StoreError;

/// The beginning of the keys that a probe writes.
const PROBE_KEY: &str = "holdfast:probe:";

/// How long they live.
const PROBE_TTL_MS: u64 = 1000;

/// A connection.
pub(super) enum Connection {
    Server(MultiplexedConnection),
    Cluster(Cluster),
}

impl Connection {
    /// Carries commands out; gives their answers in their order. Those that are refused keep none of the others from
    /// being carried out.
    pub(super) async fn run(&mut self, commands: Commands) -> Result<Vec<Value>, StoreError> {
        accepted(match self {
            Connection::Server(server) => commands.into_pipeline().query_async(server).await?,
            Connection::Cluster(cluster) => cluster.run(commands.as_slice()).await?,
        })
    }

    /// Writes something of no consequence on every server that writes could go to.
    pub(super) async fn write_probe(&mut self) -> Result<(), StoreError> {
        let keys = match self {
            Connection::Server(_) => vec![format!("{PROBE_KEY}0")],
            Connection::Cluster(cluster) => cluster.keys_of_all(PROBE_KEY).await?,
        };
        let mut commands = Commands::default();
        for key in keys {
            commands.on(&key, "SET").arg(1).arg("PX").arg(PROBE_TTL_MS);
        }
        self.run(commands).await.map(drop)
    }
}
