//! A client's connection with two bounds that neither TCP nor the protocol has: a client that stops reading doesn't
//! hold its answer for ever, and a client that is still sending when it is answered gets to see that answer. It is also
//! where the protocol's own refusals get their body.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use crate::refusal;

/// How long an answer may wait for the client to take any more of it.
const WRITE_STALL: Duration = Duration::from_secs(30);

/// How long a connection that has been answered for the last time is read from. Closing a socket with unread data
/// makes the system send a reset, which overtakes the answer (RFC 9112 §9.6): a 413 would never be seen.
const LINGER: Duration = Duration::from_secs(1);

/// Bytes thrown away at once while lingering.
const LINGER_CHUNK: usize = 4096;

/// A client's connection.
#[derive(Debug)]
pub struct ClientStream {
    stream: TcpStream,
    stall: Option<Pin<Box<Sleep>>>,
    linger: Option<Pin<Box<Sleep>>>,
    /// What is still to be sent of a refusal in place of the protocol's own.
    refusal: Bytes,
}

impl ClientStream {
    /// Bounds this connection.
    pub fn new(stream: TcpStream) -> Self {
        ClientStream {
            stream,
            stall: None,
            linger: None,
            refusal: Bytes::new(),
        }
    }

    /// Sends the rest of a refusal, if there is any.
    fn poll_refusal(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.refusal.is_empty() {
            let written = Pin::new(&mut self.stream).poll_write(context, &self.refusal);
            match ready!(self.bound(context, written))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.refusal.advance(count),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Lets a write through, or ends it when none has got any further for [`WRITE_STALL`].
    fn bound<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stall = None;
            return written;
        }
        let stall = self
            .stall
            .get_or_insert_with(|| Box::pin(sleep(WRITE_STALL)));
        ready!(stall.as_mut().poll(context));
        // Else the system would go on offering the rest, which takes memory, for minutes.
        self.stream.set_zero_linger()?;
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, into)
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_refusal(context))?;
        if let Some(refusal) = refusal::instead_of(bytes) {
            this.refusal = refusal;
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.bound(context, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // A refusal is a head alone.
        if let [head] = slices {
            return self.poll_write(context, head);
        }
        let this = self.get_mut();
        ready!(this.poll_refusal(context))?;
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        this.bound(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_refusal(context))?;
        Pin::new(&mut this.stream).poll_flush(context)
    }

    /// Ends our side, then reads until the client ends its own, or for [`LINGER`].
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
        }
        let linger = this.linger.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        loop {
            // Also looked at between reads, as a client that sends without pause would keep this busy.
            if linger.deadline() <= Instant::now() || linger.as_mut().poll(context).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut space = [0; LINGER_CHUNK];
            let mut thrown_away = ReadBuf::new(&mut space);
            let read = ready!(Pin::new(&mut this.stream).poll_read(context, &mut thrown_away));
            if read.is_err() || thrown_away.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (ClientStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        (
            ClientStream::new(accepted.expect("accepted").0),
            client.expect("connected"),
        )
    }

    #[tokio::test]
    async fn a_client_that_is_still_sending_sees_the_answer() {
        let (mut server, client) = pair().await;
        let (mut reading, mut writing) = client.into_split();
        let sending = tokio::spawn(async move {
            let chunk = [b'x'; 16 * 1024];
            for _ in 0..64 {
                if writing.write_all(&chunk).await.is_err() {
                    return;
                }
            }
        });
        server.write_all(b"too large").await.expect("written");
        server.shutdown().await.expect("ended");
        drop(server);
        let mut answer = String::new();
        reading.read_to_string(&mut answer).await.expect("no reset");
        assert_eq!(answer, "too large");
        sending.await.expect("no panic");
    }

    #[tokio::test]
    async fn lingering_ends_though_the_client_never_does() {
        let (mut server, _client) = pair().await;
        let started = Instant::now();
        server.shutdown().await.expect("ended");
        assert!(started.elapsed() >= LINGER);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_loses_its_connection() {
        let (mut server, _client) = pair().await;
        let chunk = vec![0; 1024 * 1024];
        let error = loop {
            match server.write_all(&chunk).await {
                Ok(()) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
