//! Connecting to one server or sentinel, whichever it is.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use deadpool::managed::Manager as _;
use deadpool_redis::Manager;
use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::io::tcp::TcpSettings;
use deadpool_redis::redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo,
    IntoConnectionInfo, Pipeline, RedisConnectionInfo, RedisError, TlsCertificates, Value,
};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use secrecy::ExposeSecret;
use tokio::time::timeout;

use super::errors::{accepted, unconnected};
use crate::config::{RedisAddress, RedisLogin, RedisTls};
use crate::store::FailureClass::{Item, Systemic, Unavailable};
use crate::store::StoreError;

/// The name of this store in messages.
pub(super) const STORE: &str = "redis";

/// How connections are made to servers that let in the same users.
pub(super) struct Dialer {
    login: RedisLogin,
    database: u32,
    tls: Option<RedisTls>,
    settings: AsyncConnectionConfig,
    limit: Duration,
}

impl Dialer {
    /// Makes connections, [within](Dialer::within) `limit`; each answer on them may take `answer_limit`.
    pub(super) fn new(
        (login, database): (RedisLogin, u32),
        tls: Option<RedisTls>,
        limit: Duration,
        answer_limit: Duration,
    ) -> Self {
        // All that is done to get a connection has one limit in common.
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(Some(answer_limit));
        Dialer {
            login,
            database,
            tls,
            settings,
            limit,
        }
    }

    /// Does what it takes to get to a connection, within the time that is given for one.
    pub(super) async fn within<T>(
        &self,
        attempt: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        timeout(self.limit, attempt)
            .await
            .unwrap_or_else(|_| Err(self.late()))
    }

    /// A server that doesn't speak TLS waits for a client to say something that it understands.
    fn late(&self) -> StoreError {
        match self.tls {
            None => StoreError::connection_late(STORE),
            Some(_) => StoreError::new(
                Unavailable,
                "redis did not accept a connection in TLS in time",
            ),
        }
    }

    /// Connects and logs in. The server has answered then.
    pub(super) async fn dial(
        &self,
        address: &RedisAddress,
    ) -> Result<MultiplexedConnection, StoreError> {
        let info = self.info(address).await?;
        let manager = Manager::new_with_config(info, self.settings.clone()).map_err(unconnected)?;
        let mut connection = manager.create().await.map_err(unconnected)?;
        self.log_in(&mut connection).await?;
        Ok(connection)
    }

    /// Where to connect, and how.
    async fn info(&self, address: &RedisAddress) -> Result<ConnectionInfo, StoreError> {
        let info = self.plain_info(address);
        let Some(tls) = &self.tls else {
            return Ok(info);
        };
        let certificates = TlsCertificates {
            root_cert: match &tls.root_certificates {
                Some(path) => Some(read(path).await?),
                None => None,
            },
            client_tls: match &tls.client {
                Some((certificate, key)) => Some(ClientTlsConfig {
                    client_cert: read(certificate).await?,
                    client_key: read(key).await?,
                }),
                None => None,
            },
        };
        let client = Client::build_with_tls(info, certificates).map_err(unusable)?;
        Ok(client.get_connection_info().clone())
    }

    /// Without certificates, and without logging in, which the crate would do, but without telling what the server said.
    fn plain_info(&self, address: &RedisAddress) -> ConnectionInfo {
        let address = match address {
            RedisAddress::Socket(path) => ConnectionAddr::Unix(path.clone()),
            RedisAddress::Tcp(host, port) if self.tls.is_none() => {
                ConnectionAddr::Tcp(host.clone(), *port)
            }
            RedisAddress::Tcp(host, port) => ConnectionAddr::TcpTls {
                host: host.clone(),
                port: *port,
                insecure: false,
                tls_params: None,
            },
        };
        let settings = match self.tls {
            // TLS 1.3 lets a client learn last whether its own certificate will do. The crate says why it didn't only if
            // it was exchanging something itself at that moment; otherwise the connection is found broken.
            Some(_) => RedisConnectionInfo::default(),
            None => RedisConnectionInfo::default().set_skip_set_lib_name(),
        };
        address
            .into_connection_info()
            .expect("an address is always one")
            .set_tcp_settings(TcpSettings::default().set_nodelay(true))
            .set_redis_settings(settings)
    }

    /// Also asks for a sign of life: a server that is loading, or wants a password, says so only then.
    async fn log_in(&self, connection: &mut MultiplexedConnection) -> Result<(), StoreError> {
        let mut pipeline = Pipeline::new();
        if let Some(password) = &self.login.password {
            pipeline
                .cmd("AUTH")
                .arg(self.login.user.as_slice())
                .arg(password.expose_secret());
        }
        if self.database > 0 {
            pipeline.cmd("SELECT").arg(self.database);
        }
        pipeline.cmd("PING").ignore_errors();
        let answers: Result<Vec<Value>, RedisError> = pipeline.query_async(connection).await;
        accepted(answers.map_err(|error| self.shut_out(error))?)
            .map(drop)
            .map_err(refused_to_let_in)
    }

    fn shut_out(&self, error: RedisError) -> StoreError {
        if self.tls.is_none() && error.is_connection_dropped() {
            let problem = "redis ends new connections at once: does it want TLS, so that REDIS_URL must begin with rediss?";
            return StoreError::new(Unavailable, problem).caused_by(error);
        }
        unconnected(error)
    }
}

async fn read(path: &Path) -> Result<Vec<u8>, StoreError> {
    tokio::fs::read(path).await.map_err(|error| {
        StoreError::new(Systemic, "a file that REDIS_URL names can't be read").caused_by(error)
    })
}

fn unusable(error: RedisError) -> StoreError {
    StoreError::new(Systemic, "a file that REDIS_URL names can't be used").caused_by(error)
}

/// To whom a password is sent that has none, or who hasn't that database, says so in words only.
fn refused_to_let_in(error: StoreError) -> StoreError {
    if error.class() != Item {
        return error;
    }
    StoreError::new(
        Systemic,
        "redis refuses the password or the database of REDIS_URL",
    )
    .caused_by(error)
}

/// What comes of the first attempt that succeeds; when none does, of the failures the one that somebody has to mend,
/// since the others may be there at the same time and pass.
pub(super) async fn first_of<T>(
    attempts: impl Iterator<Item = impl Future<Output = Result<T, StoreError>>>,
) -> Result<T, StoreError> {
    let mut attempts: FuturesUnordered<_> = attempts.collect();
    let mut failure = StoreError::new(Unavailable, "redis can't be reached");
    while let Some(ended) = attempts.next().await {
        match ended {
            Ok(reached) => return Ok(reached),
            Err(error) if failure.class() != Systemic => failure = error,
            Err(_) => {}
        }
    }
    Err(failure)
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;
    use crate::store::FailureClass;

    fn failing(class: FailureClass) -> Result<u8, StoreError> {
        Err(StoreError::new(class, "as told"))
    }

    #[tokio::test]
    async fn the_first_success_counts_and_of_failures_the_one_to_mend() {
        let attempts = [failing(Systemic), Ok(7), failing(Unavailable)].map(ready);
        assert_eq!(
            first_of(attempts.into_iter()).await.expect("one succeeds"),
            7
        );
        for classes in [[Unavailable, Systemic], [Systemic, Unavailable]] {
            let attempts = classes.map(|class| ready(failing(class)));
            let error = first_of(attempts.into_iter())
                .await
                .expect_err("none succeeds");
            assert_eq!(error.class(), Systemic);
        }
        let attempts: [std::future::Ready<Result<u8, StoreError>>; 0] = [];
        let error = first_of(attempts.into_iter())
            .await
            .expect_err("there is none");
        assert_eq!(error.class(), Unavailable);
    }

    #[tokio::test]
    async fn an_attempt_takes_no_longer_than_it_may() {
        let login = (RedisLogin::default(), 0);
        let limit = Duration::from_millis(20);
        let dialer = Dialer::new(login, None, limit, limit);
        let late = dialer.within(pending::<Result<(), StoreError>>()).await;
        assert_eq!(late.expect_err("it never ends").class(), Unavailable);
    }
}
