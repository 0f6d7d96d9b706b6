//! The daemon's life: open, serve, drain, reload, leave.

use std::time::Duration;

use holdfast_shared::buffer::{Binding, Buffer, DaemonLock, Lane, Manner, Reader};
use holdfast_shared::config::{BufferConfig, Config};
use tokio::net::TcpListener;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::Instant;

use crate::engine::Engine;
use crate::failure::Failure;
use crate::reload;
use crate::retention::Retention;
use crate::signals::{Orders, told_to_stop};
use crate::status_page::{self, Source};
use crate::systemd::{self, Pulse};
use crate::upkeep::Upkeep;

/// How long closing the buffer may take, at least: the writer's last transaction.
pub const CLOSE_DEADLINE: Duration = Duration::from_secs(5);

/// Renders Prometheus' text.
pub type RenderMetrics = Box<dyn Fn() -> String + Send + Sync>;

/// Drains the buffer until told to stop. The lock shows that nobody else does.
///
/// # Errors
/// When the buffer or the address can't be used, or the store is not the database the buffer belongs to. Nothing that
/// was accepted is lost.
pub async fn run(
    config: Config,
    lock: DaemonLock,
    orders: Orders,
    render_metrics: RenderMetrics,
) -> Result<(), Failure> {
    let buffer = open_buffer(&config).await?;
    tell_of_redis(&config, &buffer).await;
    let mut engine = Engine::start(
        &config,
        &buffer,
        &orders.look,
        Some(Pulse::from_environment()),
    );
    let mut services = JoinSet::new();
    if let Some(listener) = listen(&config).await? {
        let source = Source {
            board: engine.board().clone(),
            postgres: engine.postgres().map(|(_, health)| health.clone()),
            redis: engine.redis().cloned(),
            max_items: buffer.max_items(),
            render_metrics,
        };
        services.spawn(status_page::serve(listener, source, engine.stopped()));
    }
    let retention = Retention::new(buffer.clone(), engine.postgres().cloned());
    services.spawn(retention.run(engine.settings(), engine.stopped()));
    let manner = match config.postgres {
        Some(_) => Manner::Queued,
        None => Manner::Folded,
    };
    services.spawn(Upkeep::new(buffer.clone(), manner).run(engine.stopped()));
    tracing::info!(buffer = %buffer.path().display(), version = env!("CARGO_PKG_VERSION"), "syncd is running");
    systemd::notify_ready(&engine.board().report().status_line());
    let outcome = attend(&config, &mut engine, &mut services, &orders).await;
    leave(&config, engine, &buffer).await;
    drop(lock);
    outcome
}

/// Opens the buffer, which must not belong to a database when none is configured.
///
/// # Errors
/// When it can't be opened, or belongs to a database.
pub async fn open_buffer(config: &Config) -> Result<Buffer, Failure> {
    let settings: BufferConfig = config.buffer.clone();
    let opened = spawn_blocking(move || Buffer::open(&settings)).await;
    let buffer = opened
        .map_err(|panic| Failure::internal(format!("opening the buffer panicked: {panic}")))??;
    if config.postgres.is_none()
        && let Binding::Foreign { waiting } = buffer.bind_database(None).await?
    {
        return Err(Failure::config(format!(
            "the buffer belongs to a database and holds {waiting} items for it, but none is configured: set \
             DATABASE_URL, or run `syncd adopt` to keep them here"
        )));
    }
    Ok(buffer)
}

/// Says what will not get anywhere: what waits for a Redis that is configured no more.
async fn tell_of_redis(config: &Config, buffer: &Buffer) {
    // Of one that can't be read its lanes will tell.
    let Ok(snapshot) = buffer.read(Reader::snapshot).await else {
        return;
    };
    let waiting = snapshot.waiting_in(Lane::Redis);
    if config.redis.is_none() && config.postgres.is_some() && waiting > 0 {
        tracing::warn!(
            waiting,
            "items wait for redis, which is not configured: set REDIS_URL"
        );
    }
}

async fn listen(config: &Config) -> Result<Option<TcpListener>, Failure> {
    let Some(address) = config.syncd_addr else {
        return Ok(None);
    };
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) => Err(Failure::unavailable(format!(
            "can't listen on {address}: {error}; set SYNCD_ADDR to a free address, or to off"
        ))),
    }
}

/// Follows orders until one is to stop, or a worker can't go on.
async fn attend(
    config: &Config,
    engine: &mut Engine,
    services: &mut JoinSet<()>,
    orders: &Orders,
) -> Result<(), Failure> {
    let mut stop = orders.stop.clone();
    let mut read_last = config.clone();
    loop {
        tokio::select! {
            () = told_to_stop(&mut stop) => return Ok(()),
            () = orders.reload.notified() => reload(config, &mut read_last, engine),
            ended = engine.watch() => return Ok(ended?),
            Some(Err(defect)) = services.join_next() => {
                return Err(Failure::internal(format!("a part of syncd ended by a defect: {defect}")));
            }
        }
    }
}

/// Takes over what can change while running; the rest is in force as it was at the start.
fn reload(at_start: &Config, read_last: &mut Config, engine: &Engine) {
    systemd::notify_reloading();
    match Config::load() {
        Ok(read) => {
            let applied = reload::compare(read_last, &read).applied;
            let postponed = reload::compare(at_start, &read).postponed;
            engine.reconfigure(read.sync.clone());
            *read_last = read;
            if applied.is_empty() {
                tracing::info!(
                    "settings read again: nothing has changed that takes effect while running (what a service manager \
                     has put into the environment stays until a restart)"
                );
            } else {
                tracing::info!(applied = applied.join(" "), "settings read again");
            }
            if !postponed.is_empty() {
                tracing::warn!(
                    variables = postponed.join(" "),
                    "changed settings need a restart"
                );
            }
        }
        Err(faults) => tracing::error!(%faults, "settings have faults, those in force stay"),
    }
    systemd::notify_ready(&engine.board().report().status_line());
}

/// Lets the batches under way finish, within the time there is.
async fn leave(config: &Config, mut engine: Engine, buffer: &Buffer) {
    systemd::notify_stopping("finishing the batch");
    tracing::info!("syncd is leaving");
    let until = Instant::now() + config.shutdown_timeout;
    if tokio::time::timeout_at(until, engine.finish())
        .await
        .is_err()
    {
        tracing::warn!(
            deadline_seconds = config.shutdown_timeout.as_secs(),
            "batch not finished in time; it will be applied again"
        );
    }
    drop(engine);
    let left = until.saturating_duration_since(Instant::now());
    close(buffer.clone(), left.max(CLOSE_DEADLINE)).await;
}

/// Closes the buffer, unless another process keeps it for longer than `deadline`.
pub async fn close(buffer: Buffer, deadline: Duration) {
    let closing = spawn_blocking(move || buffer.close());
    if tokio::time::timeout(deadline, closing).await.is_err() {
        tracing::warn!("buffer not closed in time; what was accepted is in it all the same");
    }
}
