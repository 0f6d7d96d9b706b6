//! Connections to a store: made on demand, kept warm, and never used again after a doubt.
//!
//! deadpool counts the slots. What is added here is what an outage asks for: a whole call is bounded in time,
//! waiting for a connection included; a connection returns to the pool only from a call that ended in order, and is
//! closed after a timeout, a broken socket, or when the caller went away in the middle; and one failure of the store
//! condemns every connection made before, so that nobody tries dead ones in turn when the store is back, or stays with
//! one that hangs when the address leads to another. A connection in steady use costs no round trip of its own.

use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use deadpool::Runtime;
use deadpool::managed::{
    self, Metrics, Object, Pool, PoolError, QueueMode, RecycleError, RecycleResult, TimeoutType,
};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{FailureClass, StoreError};

/// A connection that was last taken this long ago is asked whether it lives: long enough that a busy one never is,
/// short against what firewalls let live unused.
const IDLE_BEFORE_PING: Duration = Duration::from_secs(1);

/// How long a call may go on whose connection has come into doubt: what a probe may take, so that a store which has only
/// faltered answers, and one that hangs, behind an address that leads elsewhere by now, holds up nobody.
const DOUBTED_LIMIT: Duration = Duration::from_secs(1);

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
            epoch: watch::Sender::new(0),
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

    /// Does that unless `asking` ends well; also when the one who asks doesn't wait for its end: work that was given up on,
    /// because it took too long, says the same of the store as work that failed.
    pub(super) async fn doubt_unless_well<T>(
        &self,
        asking: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let doubtful = Doubtful(Some(self.pool.manager()));
        let answer = asking.await?;
        doubtful.dispel();
        Ok(answer)
    }

    /// Does some work with a connection, all of it within the call's deadline.
    pub(super) async fn call<T>(
        &self,
        work: impl AsyncFnOnce(&mut C::Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let deadline = Instant::now() + self.call_limit;
        let mut lease = self.lease(deadline).await?;
        let epoch = lease.epoch();
        let late = || Err(StoreError::answer_late(C::STORE));
        let ended = tokio::select! {
            ended = timeout_at(deadline, work(lease.connection())) => ended.unwrap_or_else(|_| late()),
            () = self.too_long_in_doubt(epoch) => late(),
        };
        match &ended {
            Ok(_) => lease.give_back(),
            Err(error) if error.class() == FailureClass::Unavailable => self.doubt(),
            Err(error) if error.leaves_connection_sound() => lease.give_back(),
            Err(_) => {}
        }
        ended
    }

    /// Ends [`DOUBTED_LIMIT`] after a connection of this epoch has come into doubt.
    async fn too_long_in_doubt(&self, made_in: u64) {
        let mut epoch = self.pool.manager().epoch.subscribe();
        let doubted = epoch.wait_for(|epoch| *epoch != made_in).await.is_ok();
        debug_assert!(doubted, "the sender lives as long as the pool");
        sleep(DOUBTED_LIMIT).await;
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

/// Somebody who asks the store whether it is well.
struct Doubtful<'p, C>(Option<&'p Factory<C>>);

impl<C> Doubtful<'_, C> {
    fn dispel(mut self) {
        self.0 = None;
    }
}

impl<C> Drop for Doubtful<'_, C> {
    fn drop(&mut self) {
        if let Some(factory) = self.0 {
            factory.doubt();
        }
    }
}

/// Makes connections for the pool, and tells it which are still good.
struct Factory<C> {
    connector: C,
    /// How many doubts there were.
    epoch: watch::Sender<u64>,
    ping_limit: Duration,
}

/// A connection, and after how many doubts it was made.
struct Pooled<T> {
    connection: T,
    epoch: u64,
}

impl<C> Factory<C> {
    fn doubt(&self) {
        self.epoch.send_modify(|epoch| *epoch += 1);
    }
}

impl<C: Connector> managed::Manager for Factory<C> {
    type Type = Pooled<C::Connection>;
    type Error = StoreError;

    async fn create(&self) -> Result<Self::Type, StoreError> {
        let epoch = *self.epoch.borrow();
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
        if pooled.epoch != *self.epoch.borrow() || metrics.age() > MAX_LIFETIME {
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

    /// How many doubts there were when the connection was made.
    fn epoch(&self) -> u64 {
        let object = self.object.as_ref();
        object.expect("taken only when the lease ends").epoch
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
