//! The HTTP process: it takes requests, lets in who may come in, and has the repository keep what they say.
//!
//! `main` is the lifecycle; [`run`] is all of it that a test can call. A request goes through `server` (connections,
//! bounds), `web` (what happens to every request), `middleware` (its name, its time, its sender), `router` (which
//! route), `handler` (that route), `transport` (reading and writing HTTP) and `usecase` (the operation it becomes) to
//! the shared repository. `openapi` describes all of that, and `pages` shows the description to people.

mod client_stream;
mod descriptors;
pub mod handler;
mod lifecycle;
pub mod middleware;
pub mod openapi;
pub mod pages;
mod refusal;
pub mod router;
pub mod server;
pub mod signal;
pub mod systemd;
pub mod transport;
pub mod usecase;
pub mod web;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use holdfast_shared::config::Config;
use holdfast_shared::repository::{ForeignBuffer, Repository};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::handler::App;
use crate::lifecycle::Phase;
use crate::middleware::rate::RateLimit;
use crate::middleware::token::TokenVerifier;
use crate::pages::Documents;
use crate::server::{SPARE_CONNECTIONS, ServerLimits};
use crate::web::Web;

/// How long closing the buffer may take.
const CLOSE_DEADLINE: Duration = Duration::from_secs(3);

/// Serves requests that come in on `listener` until `stop` is done, then finishes what is under way, for as long as
/// the configuration allows, and closes the buffer.
///
/// # Errors
/// When the token keys or the buffer can't be used; nothing is served then. When the store turns out to be another
/// database than the buffer's: then what is under way is finished as well.
pub async fn run(
    listener: TcpListener,
    config: Config,
    metrics: PrometheusHandle,
    stop: impl Future<Output = ()>,
) -> Result<()> {
    let address = listener
        .local_addr()
        .context("the listener has no address")?;
    let store_connections = config.postgres.as_ref().map_or(0, |p| p.max_connections);
    let limits = ServerLimits {
        max_connections: descriptors::room_for(
            config.max_connections,
            store_connections + SPARE_CONNECTIONS,
        ),
        drain_deadline: config.shutdown_timeout,
    };
    let rate_limit = RateLimit::new(config.rate_limit_per_minute);
    let cors_origins = config.cors_origins.clone();
    let (verifier, repository) = open(config).await?;
    let (phase, phase_watch) = watch::channel(Phase::Serving);
    let following = verifier.key_set().map(|keys| tokio::spawn(keys.follow()));
    let alive = tokio::spawn(systemd::keep_alive());
    announce(address, &repository);
    let app = App {
        repository: repository.clone(),
        verifier,
        rate_limit,
        metrics,
        documents: Documents::new(router::openapi()),
        phase: phase_watch,
    };
    let mut foreign: Option<ForeignBuffer> = None;
    let stop = async {
        tokio::select! {
            () = stop => {}
            met = repository.met_foreign_database() => foreign = Some(met),
        }
        systemd::stopping();
    };
    let web = Web::new(router::filter(Arc::new(app)), &cors_origins);
    server::serve(listener, web, limits, phase, stop).await;
    close(&repository).await;
    for task in following.into_iter().chain([alive]) {
        task.abort();
    }
    foreign.map_or(Ok(()), |met| Err(met.into()))
}

/// Opens what may block, off the runtime's threads.
async fn open(config: Config) -> Result<(TokenVerifier, Repository)> {
    let opening = tokio::task::spawn_blocking(move || -> Result<_> {
        let verifier = TokenVerifier::open(&config.token, &config.buffer.path)?;
        let repository = Repository::open(&config)?;
        Ok((verifier, repository))
    });
    opening.await.context("opening met a defect")?
}

/// Closes the buffer, unless its file is held by somebody who doesn't let go: all that was answered is in it already.
async fn close(repository: &Repository) {
    if tokio::time::timeout(CLOSE_DEADLINE, repository.close())
        .await
        .is_err()
    {
        tracing::warn!("the buffer could not be closed in time");
    }
}

/// Of the stores nothing is known yet: each is announced by its own line as soon as it has been probed.
fn announce(address: SocketAddr, repository: &Repository) {
    let mode = if repository.is_embedded() {
        "embedded"
    } else {
        "stores"
    };
    tracing::info!(%address, mode, version = env!("CARGO_PKG_VERSION"), "taking requests");
    systemd::ready(address);
}
