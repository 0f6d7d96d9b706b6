//! Connections to a store: made on demand, kept warm, and never used again after a doubt.
//!
//! deadpool counts the slots. What is added here is what an outage asks for: a whole call is bounded in time,
//! waiting for a connection included; a connection returns to the pool only from a call that ended in order, and is
//! closed after a timeout, a broken socket, or when the caller went away in the middle; and one failure of the store
//! condemns every connection made before, so that nobody tries dead ones in turn when the store is back. A connection
//! in steady use costs no round trip of its own.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use deadpool::Runtime;
use deadpool::managed::{
    self, Metrics, Object, Pool, PoolError, QueueMode, RecycleError, RecycleResult, TimeoutType,
};
use tokio::time::{Instant, timeout, timeout_at};

use super::{FailureClass, StoreError};

/// A connection that was last taken this long ago is asked whether it lives: long enough that a busy one never is,
/// short against what firewalls let live unused.
const IDLE_BEFORE_PING: Duration = Duration::from_secs(1);

/// Age at which a connection is replaced, so that a change of address or certificate reaches every process.
const MAX_LIFETIME: Duration = Duration::from_secs(30 * 60);

/// How one store is connected to.
pub(super) trait Connector: Send + Sync + 'static {
    /// The store's name in messages.
    const STORE: &'static str;

    /// A connection.
    type Connection: Send;

    /// Makes one, within a time of its own.
    fn connect(&self) -> impl Future<Output = Result<Self::Connection, StoreError>> + Send;

    /// Whether one still lives; may take for ever.
    fn ping(&self, connection: &mut Self::Connection) -> impl Future<Output = bool> + Send;
}

/// The connections of one process to one store.
pub(super) struct Connections<C: Connector> {
    pool: Pool<Factory<C>>,
    call_limit: Duration,
}

impl<C: Connector> Connections<C> {
    /// Up to `size` connections, none of them made yet; each call may take `call_limit`.
    pub(super) fn new(connector: C, size: usize, call_limit: Duration) -> Self {
        let factory = Factory {
            connector,
            epoch: AtomicU64::new(0),
            ping_limit: call_limit / 4,
        };
        let pool = Pool::builder(factory)
            .max_size(size)
            .queue_mode(QueueMode::Lifo)
            .runtime(Runtime::Tokio1)
            .build()
            .expect("a runtime is set");
        Connections { pool, call_limit }
    }

    pub(super) fn connector(&self) -> &C {
        &self.pool.manager().connector
    }

    /// Condemns every connection made so far: the store was seen to fail.
    pub(super) fn doubt(&self) {
        self.pool.manager().doubt();
    }

    /// Condemns them as soon as this is dropped, unless it is dispelled before: work that was given up on, because it
    /// took too long, says the same of the store as work that failed.
    pub(super) fn doubt_unless_dispelled(&self) -> Doubt<'_, C> {
        Doubt {
            connections: Some(self),
        }
    }

    /// Does some work with a connection, all of it within the call's deadline.
    pub(super) async fn call<T>(
        &self,
        work: impl AsyncFnOnce(&mut C::Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let deadline = Instant::now() + self.call_limit;
        let mut lease = self.lease(deadline).await?;
        let late = |_| StoreError::answer_late(C::STORE);
        let ended = timeout_at(deadline, work(lease.connection()))
            .await
            .map_err(late)
            .flatten();
        match &ended {
            Ok(_) => lease.give_back(),
            Err(error) if error.class() == FailureClass::Unavailable => self.doubt(),
            Err(error) if error.leaves_connection_sound() => lease.give_back(),
            Err(_) => {}
        }
        ended
    }

    async fn lease(&self, deadline: Instant) -> Result<Lease<C>, StoreError> {
        let wait = Some(deadline.saturating_duration_since(Instant::now()));
        let limits = managed::Timeouts {
            wait,
            create: None,
            recycle: None,
        };
        match timeout_at(deadline, self.pool.timeout_get(&limits)).await {
            Ok(Ok(object)) => Ok(Lease {
                object: Some(object),
            }),
            Ok(Err(PoolError::Backend(error))) => Err(error),
            Ok(Err(PoolError::Timeout(TimeoutType::Wait))) => {
                Err(StoreError::no_connection_free(C::STORE))
            }
            Ok(Err(_)) | Err(_) => Err(StoreError::connection_late(C::STORE)),
        }
    }
}

/// A doubt in all connections made so far.
pub(super) struct Doubt<'c, C: Connector> {
    connections: Option<&'c Connections<C>>,
}

impl<C: Connector> Doubt<'_, C> {
    /// There was nothing in it.
    pub(super) fn dispel(mut self) {
        self.connections = None;
    }
}

impl<C: Connector> Drop for Doubt<'_, C> {
    fn drop(&mut self) {
        if let Some(connections) = self.connections {
            connections.doubt();
        }
    }
}

/// Makes connections for the pool, and tells it which are still good.
struct Factory<C> {
    connector: C,
    epoch: AtomicU64,
    ping_limit: Duration,
}

/// A connection, and after how many doubts it was made.
struct Pooled<T> {
    connection: T,
    epoch: u64,
}

impl<C> Factory<C> {
    fn doubt(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }
}

impl<C: Connector> managed::Manager for Factory<C> {
    type Type = Pooled<C::Connection>;
    type Error = StoreError;

    async fn create(&self) -> Result<Self::Type, StoreError> {
        let epoch = self.epoch.load(Ordering::Acquire);
        Ok(Pooled {
            connection: self.connector.connect().await?,
            epoch,
        })
    }

    async fn recycle(
        &self,
        pooled: &mut Self::Type,
        metrics: &Metrics,
    ) -> RecycleResult<StoreError> {
        if pooled.epoch != self.epoch.load(Ordering::Acquire) || metrics.age() > MAX_LIFETIME {
            return Err(RecycleError::message(
                "made before the last doubt, or too old",
            ));
        }
        if metrics.last_used() < IDLE_BEFORE_PING {
            return Ok(());
        }
        if timeout(self.ping_limit, self.connector.ping(&mut pooled.connection))
            .await
            .unwrap_or(false)
        {
            return Ok(());
        }
        self.doubt();
        Err(RecycleError::message("does not answer"))
    }
}

/// A connection in use. It is closed unless it is given back.
struct Lease<C: Connector> {
    object: Option<Object<Factory<C>>>,
}

impl<C: Connector> Lease<C> {
    fn connection(&mut self) -> &mut C::Connection {
        &mut self
            .object
            .as_mut()
            .expect("taken only when the lease ends")
            .connection
    }

    fn give_back(mut self) {
        drop(self.object.take());
    }
}

impl<C: Connector> Drop for Lease<C> {
    fn drop(&mut self) {
        if let Some(object) = self.object.take() {
            drop(Object::take(object));
        }
    }
}

/// A connection beside the pool, for one user at a time: a health probe must not wait for others.
pub(super) struct Reserved<T> {
    connection: Mutex<Option<T>>,
}

impl<T> Reserved<T> {
    /// None yet.
    pub(super) fn new() -> Self {
        Reserved {
            connection: Mutex::new(None),
        }
    }

    /// The connection, if one was kept. Unless it is kept again, the next user makes a new one.
    pub(super) fn take(&self) -> Option<T> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Keeps a connection that has just proved itself.
    pub(super) fn keep(&self, connection: T) {
        *self
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(connection);
    }
}
