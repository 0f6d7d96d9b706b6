//! A TCP proxy that stands for a bad network between two real processes.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::ports::ReservedPort;

/// Bytes taken at once from either side.
const CHUNK_BYTES: usize = 16 * 1024;

/// Starting a process takes milliseconds.
const BIND_DEADLINE: Duration = Duration::from_secs(10);
const BIND_GAP: Duration = Duration::from_millis(5);

/// What happens to what passes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// All goes through.
    Pass,
    /// Open connections are reset, new ones are refused.
    Cut,
    /// Connections are accepted and stay open; nothing goes through.
    BlackHole,
    /// What clients send goes through, the answers don't: the server may have
    /// done what it was asked to, and nobody learns it.
    HalfOpen,
    /// All goes through, each chunk this much later.
    Delay(Duration),
}

/// Listens on a port of its own and forwards to another on 127.0.0.1, until it
/// is dropped. What a [`Flow`] holds back is delivered once it passes again, as
/// TCP would.
#[derive(Debug)]
pub struct FaultProxy {
    port: ReservedPort,
    target: Arc<AtomicU16>,
    flow: watch::Sender<Flow>,
    listening: watch::Receiver<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToServer,
    ToClient,
}

impl FaultProxy {
    /// Starts a proxy to `target` (a port on 127.0.0.1), passing everything.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(target: u16) -> Result<Self> {
        let port = ReservedPort::claim()?;
        let listener = bind(port.number()).await?;
        let (flow, flow_seen) = watch::channel(Flow::Pass);
        let (listening_now, listening) = watch::channel(true);
        let target = Arc::new(AtomicU16::new(target));
        let acceptor = Acceptor {
            port: port.number(),
            target: Arc::clone(&target),
            flow: flow_seen,
            listening: listening_now,
        };
        tokio::spawn(acceptor.run(listener));
        Ok(Self {
            port,
            target,
            flow,
            listening,
        })
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Leads new connections to another port, as a virtual address that has moved. Open ones stay where they are.
    pub fn lead_to(&self, target: u16) {
        self.target.store(target, Ordering::SeqCst);
    }

    /// Switches the flow, for open connections and new ones. When it returns,
    /// the port refuses ([`Flow::Cut`]) or accepts connections.
    ///
    /// # Errors
    /// When the proxy has stopped, because its port couldn't be bound again.
    pub async fn set(&mut self, flow: Flow) -> Result<()> {
        self.flow.send(flow).context("the proxy has stopped")?;
        let wanted = flow != Flow::Cut;
        self.listening
            .wait_for(|listening| *listening == wanted)
            .await
            .context("the proxy has stopped")?;
        Ok(())
    }
}

struct Acceptor {
    port: u16,
    target: Arc<AtomicU16>,
    flow: watch::Receiver<Flow>,
    listening: watch::Sender<bool>,
}

impl Acceptor {
    /// Ends when the proxy is dropped, and with it the sender of the flow.
    async fn run(mut self, first: TcpListener) {
        let mut listener = first;
        loop {
            if !self.accept_until_cut(listener).await {
                return;
            }
            self.listening.send_replace(false);
            if self.flow.wait_for(|flow| *flow != Flow::Cut).await.is_err() {
                return;
            }
            let Ok(bound) = bind(self.port).await else {
                return;
            };
            self.listening.send_replace(true);
            listener = bound;
        }
    }

    /// False when the proxy is gone. On return the listener is closed, and with
    /// `epoch` every connection of this time ends.
    async fn accept_until_cut(&mut self, listener: TcpListener) -> bool {
        let mut cut_seen = self.flow.clone();
        let (_epoch, epoch_ended) = watch::channel(());
        loop {
            tokio::select! {
                cut = cut_seen.wait_for(|flow| *flow == Flow::Cut) => return cut.is_ok(),
                accepted = listener.accept() => {
                    if let Ok((client, _)) = accepted {
                        let flow = self.flow.clone();
                        let target = self.target.load(Ordering::SeqCst);
                        tokio::spawn(serve(client, target, flow, epoch_ended.clone()));
                    }
                }
            }
        }
    }
}

/// The port is ours alone, so that in its way is only a listener of this process that was just closed: a child that is
/// being started holds it until it has become another program.
async fn bind(port: u16) -> Result<TcpListener> {
    let started = Instant::now();
    loop {
        match TcpListener::bind(("127.0.0.1", port)).await {
            Err(error)
                if error.kind() == ErrorKind::AddrInUse && started.elapsed() < BIND_DEADLINE =>
            {
                tokio::time::sleep(BIND_GAP).await;
            }
            bound => return bound.with_context(|| format!("cannot bind port {port}")),
        }
    }
}

/// Serves one connection until both sides have ended it, one has failed, or its
/// epoch ends. Failures need no report: each side sees the reset.
async fn serve(
    mut client: TcpStream,
    target: u16,
    flow: watch::Receiver<Flow>,
    mut epoch: watch::Receiver<()>,
) {
    let reached = tokio::select! {
        _ = epoch.changed() => None,
        server = reach(target, flow.clone()) => server.ok(),
    };
    let Some(mut server) = reached else {
        return reset(&client);
    };
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let requests = pump(from_client, to_server, flow.clone(), Direction::ToServer);
    let answers = pump(from_server, to_client, flow, Direction::ToClient);
    let ended_in_order = tokio::select! {
        _ = epoch.changed() => false,
        both = async { tokio::try_join!(requests, answers) } => both.is_ok(),
    };
    if !ended_in_order {
        reset(&client);
        reset(&server);
    }
}

/// Connects to the server, once there isn't a black hole in front of it.
async fn reach(target: u16, mut flow: watch::Receiver<Flow>) -> Result<TcpStream> {
    flow.wait_for(|flow| *flow != Flow::BlackHole).await?;
    let server = TcpStream::connect(("127.0.0.1", target)).await?;
    server.set_nodelay(true)?;
    Ok(server)
}

/// Makes the following close a reset. A socket that refuses this is broken
/// already, and its peer sees that.
fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}

/// Copies one direction, and hands an orderly end on to the other side.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut flow: watch::Receiver<Flow>,
    direction: Direction,
) -> Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let length = from.read(&mut chunk).await?;
        let delay = wait_to_pass(&mut flow, direction).await?;
        tokio::time::sleep(delay).await;
        if length == 0 {
            return Ok(to.shutdown().await?);
        }
        to.write_all(&chunk[..length]).await?;
    }
}

/// Waits until a chunk may go on; gives the delay it goes on with.
async fn wait_to_pass(flow: &mut watch::Receiver<Flow>, direction: Direction) -> Result<Duration> {
    let may_pass = |flow: &Flow| match flow {
        Flow::Pass | Flow::Delay(_) => true,
        Flow::HalfOpen => direction == Direction::ToServer,
        Flow::Cut | Flow::BlackHole => false,
    };
    let passing = *flow.wait_for(may_pass).await?;
    Ok(match passing {
        Flow::Delay(delay) => delay,
        _ => Duration::ZERO,
    })
}
