//! Many clients that do the same at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use holdfast_tests::eventually;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// Connections that are opened at the same time: within any queue of a
/// listening socket.
const OPENING: usize = 100;

/// The receive buffer of a client, in bytes: of an answer nobody reads, little
/// more than this leaves the server.
const RECEIVE_BYTES: u32 = 4096;

/// Between two requests of a connection that is kept alive: half of what an
/// idle one is allowed.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// The most that is read of an answer.
const ANSWER_BYTES: u64 = 64 * 1024;

/// Connects as a client that doesn't take much at once.
async fn connect(address: &str) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4().context("no socket")?;
    socket.set_recv_buffer_size(RECEIVE_BYTES)?;
    let address = address.parse().context("an address")?;
    socket.connect(address).await.context("cannot connect")
}

/// Clients that are connected and have sent the same.
pub struct Crowd(Vec<TcpStream>);

/// Clients that keep their connections alive.
pub struct Kept {
    leave: watch::Sender<bool>,
    clients: JoinSet<Result<()>>,
}

impl Crowd {
    /// Connects this many clients.
    pub async fn connect(address: &str, count: usize) -> Result<Self> {
        Self::gather(address, count, b"").await
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Others join them.
    pub fn add(&mut self, others: Crowd) {
        self.0.extend(others.0);
    }

    /// Connects this many clients, which all send this.
    pub async fn gather(address: &str, count: usize, start: &[u8]) -> Result<Self> {
        let (address, start): (Arc<str>, Arc<[u8]>) = (address.into(), start.into());
        let opening = Arc::new(Semaphore::new(OPENING));
        let mut joining = JoinSet::new();
        for _ in 0..count {
            let (address, start, opening) = (address.clone(), start.clone(), opening.clone());
            joining.spawn(async move {
                let _turn = opening.acquire().await?;
                let mut connection = connect(&address).await?;
                connection.write_all(&start).await?;
                Ok::<_, anyhow::Error>(connection)
            });
        }
        let joined = joining.join_all().await;
        Ok(Crowd(joined.into_iter().collect::<Result<_>>()?))
    }

    /// Connects this many clients, which ask whether the process is alive now
    /// and then, and gives them once all have been answered.
    pub async fn keep_alive(address: &str, count: usize, patience: Duration) -> Result<Kept> {
        let (leave, left) = watch::channel(false);
        let answered = Arc::new(AtomicUsize::new(0));
        let opening = Arc::new(Semaphore::new(OPENING));
        let mut clients = JoinSet::new();
        for _ in 0..count {
            let address = address.to_owned();
            let (answered, opening, left) = (answered.clone(), opening.clone(), left.clone());
            clients.spawn(async move { keep_asking(&address, &answered, &opening, left).await });
        }
        let what = format!("{count} clients to be answered");
        eventually(patience, &what, async || {
            let now = answered.load(Ordering::Relaxed);
            if now == count { Ok(()) } else { Err(now) }
        })
        .await?;
        Ok(Kept { leave, clients })
    }

    /// All send a byte each `gap` until the server has closed their connection;
    /// gives what each was answered.
    pub async fn drip(self, gap: Duration, patience: Duration) -> Result<Vec<Vec<u8>>> {
        let mut dripping = JoinSet::new();
        for connection in self.0 {
            dripping.spawn(tokio::time::timeout(patience, drip(connection, gap)));
        }
        let mut answers = Vec::new();
        while let Some(dripped) = dripping.join_next().await {
            answers.push(dripped?.context("a connection was never closed")?);
        }
        Ok(answers)
    }

    /// All send this and read until their connection is closed.
    pub async fn exchange(self, request: &[u8], patience: Duration) -> Result<Vec<Vec<u8>>> {
        let request: Arc<[u8]> = request.into();
        let mut asking = JoinSet::new();
        for connection in self.0 {
            let request = request.clone();
            asking.spawn(tokio::time::timeout(patience, ask(connection, request)));
        }
        let mut answers = Vec::new();
        while let Some(asked) = asking.join_next().await {
            answers.push(asked?.context("a connection was never closed")??);
        }
        Ok(answers)
    }

    /// Waits, without reading, until the server has cut every connection; gives
    /// the most that `measure` has said meanwhile.
    pub async fn wait_cut(
        mut self,
        patience: Duration,
        measure: impl Fn() -> Result<u64>,
    ) -> Result<u64> {
        let mut most = 0;
        eventually(patience, "every connection to be cut", async || {
            most = most.max(measure().map_err(|error| format!("{error:#}"))?);
            // An error is told once.
            self.0.retain(|connection| !is_cut(connection));
            let open = self.0.len();
            if open == 0 {
                Ok(())
            } else {
                Err(format!("{open} are open"))
            }
        })
        .await?;
        Ok(most)
    }
}

impl Kept {
    /// All go.
    pub async fn leave(mut self) -> Result<()> {
        self.leave.send_replace(true);
        while let Some(left) = self.clients.join_next().await {
            left.context("a client has panicked")??;
        }
        Ok(())
    }
}

async fn keep_asking(
    address: &str,
    answered: &AtomicUsize,
    opening: &Semaphore,
    mut left: watch::Receiver<bool>,
) -> Result<()> {
    let turn = opening.acquire().await?;
    let mut connection = TcpStream::connect(address)
        .await
        .context("cannot connect")?;
    drop(turn);
    let mut is_first = true;
    while !*left.borrow() {
        connection
            .write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            .await?;
        let mut answer = vec![0; 1024];
        let length = connection.read(&mut answer).await?;
        let text = String::from_utf8_lossy(&answer[..length]).into_owned();
        ensure!(text.starts_with("HTTP/1.1 200 "), "answered with {text:?}");
        ensure!(
            !text.contains("connection: close"),
            "only a spare connection"
        );
        if std::mem::take(&mut is_first) {
            answered.fetch_add(1, Ordering::Relaxed);
        }
        tokio::select! {
            () = tokio::time::sleep(KEEP_ALIVE) => {}
            changed = left.changed() => changed?,
        }
    }
    Ok(())
}

async fn drip(mut connection: TcpStream, gap: Duration) -> Vec<u8> {
    let (mut reading, mut writing) = connection.split();
    let mut answer = Vec::new();
    let reading = async {
        // However it ends, what was answered before is what counts.
        let _closed_or_reset = (&mut reading)
            .take(ANSWER_BYTES)
            .read_to_end(&mut answer)
            .await;
    };
    let writing = async {
        loop {
            tokio::time::sleep(gap).await;
            if writing.write_all(b"x").await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        () = reading => {}
        () = writing => {}
    }
    answer
}

async fn ask(mut connection: TcpStream, request: Arc<[u8]>) -> Result<Vec<u8>> {
    let (mut reading, mut writing) = connection.split();
    let mut answer = Vec::new();
    // A server that refuses early doesn't read it all.
    let sending = async { drop(writing.write_all(&request).await) };
    let reading = async {
        let read = (&mut reading)
            .take(ANSWER_BYTES)
            .read_to_end(&mut answer)
            .await;
        match read {
            Ok(_) => Ok(()),
            Err(_) if !answer.is_empty() => Ok(()),
            Err(error) => bail!("cut off without an answer: {error}"),
        }
    };
    tokio::join!(sending, reading).1?;
    Ok(answer)
}

/// Whether the other side has reset a connection, without reading from it.
fn is_cut(connection: &TcpStream) -> bool {
    connection.take_error().is_ok_and(|error| error.is_some())
}
