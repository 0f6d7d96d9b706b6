//! The master of a service that sentinels watch.

use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{RedisError, Role, cmd};

use super::dialer::{Dialer, first_of};
use crate::config::RedisAddress;
use crate::store::FailureClass::{Item, Systemic, Unavailable};
use crate::store::StoreError;

/// Those who know which server is master.
pub(super) struct Sentinels {
    pub(super) dialer: Dialer,
    pub(super) addresses: Vec<RedisAddress>,
    pub(super) service: String,
}

impl Sentinels {
    /// Connects to the master by whichever sentinel leads there first: they are often lost together with a server.
    pub(super) async fn connect_to_master(
        &self,
        servers: &Dialer,
    ) -> Result<MultiplexedConnection, StoreError> {
        let ways = self
            .addresses
            .iter()
            .map(|sentinel| servers.within(self.connect_by(sentinel, servers)));
        first_of(ways).await
    }

    async fn connect_by(
        &self,
        sentinel: &RedisAddress,
        servers: &Dialer,
    ) -> Result<MultiplexedConnection, StoreError> {
        let master = self
            .ask(sentinel)
            .await
            .map_err(|error| error.of("a sentinel"))?;
        let mut connection = servers.dial(&master).await?;
        // One that was master until now, or is to be it in a moment, is named too.
        if is_master(&mut connection).await? {
            Ok(connection)
        } else {
            let problem = "the sentinels name a server as master that is none now";
            Err(StoreError::new(Unavailable, problem))
        }
    }

    async fn ask(&self, sentinel: &RedisAddress) -> Result<RedisAddress, StoreError> {
        let mut connection = self.dialer.dial(sentinel).await?;
        let mut question = cmd("SENTINEL");
        question.arg("GET-MASTER-ADDR-BY-NAME").arg(&self.service);
        let answer: Option<(String, u16)> = question
            .query_async(&mut connection)
            .await
            .map_err(no_sentinel)?;
        let (host, port) = answer.ok_or_else(|| {
            let problem = "it knows no service of the name in REDIS_URL";
            StoreError::new(Systemic, problem)
        })?;
        Ok(RedisAddress::Tcp(host, port))
    }
}

/// Whether a server takes writes from clients, as far as it knows.
pub(super) async fn is_master(connection: &mut MultiplexedConnection) -> Result<bool, StoreError> {
    let role: Role = cmd("ROLE").query_async(connection).await?;
    Ok(matches!(role, Role::Primary { .. }))
}

/// An ordinary server doesn't know the command.
fn no_sentinel(error: RedisError) -> StoreError {
    let error = StoreError::from(error);
    if error.class() != Item {
        return error;
    }
    StoreError::new(Systemic, "it is none: REDIS_URL must name sentinels").caused_by(error)
}
