//! Free ports that stay ours.
//!
//! A port that is only found free can be lost before it is used, and again
//! between a server's kill and its restart. So a port here is claimed by a
//! locked file that every test process on the machine respects, and it is taken
//! from below the range out of which the kernel serves outgoing connections.

use std::env;
use std::fs::{self, File, TryLockError};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use nix::unistd::Uid;
use tokio::net::TcpSocket;

/// Below Linux' default range for outgoing connections (32768 and up), above
/// the ports that well-known servers use.
const FIRST: u32 = 15_000;
/// How many ports there are to choose from.
const COUNT: u32 = 15_000;
/// A prime that doesn't divide [`COUNT`], so that stepping by it visits all.
const STEP: u32 = 7_919;

static CLAIMS: AtomicU32 = AtomicU32::new(0);

/// A port on 127.0.0.1 that no other test on this machine is given while this
/// value lives.
#[derive(Debug)]
pub struct ReservedPort {
    number: u16,
    _claim: File,
}

impl ReservedPort {
    /// Claims a port on which nobody listens.
    ///
    /// # Errors
    /// When the directory of claims can't be written, or every port is taken.
    pub fn claim() -> Result<Self> {
        let directory = claims_directory()?;
        for _ in 0..COUNT {
            let number = next_candidate();
            if let Some(claim) = try_claim(&directory, number)? {
                return Ok(Self {
                    number,
                    _claim: claim,
                });
            }
        }
        bail!("no free port in {FIRST}..{}", FIRST + COUNT)
    }

    /// The port's number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// `127.0.0.1:` and the number.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.number)
    }
}

fn claims_directory() -> Result<PathBuf> {
    let directory = env::temp_dir().join(format!("holdfast-ports-{}", Uid::current()));
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    Ok(directory)
}

/// Spreads processes over the range by their id, and one process' claims too.
fn next_candidate() -> u16 {
    let claim = CLAIMS.fetch_add(1, Ordering::Relaxed);
    let offset = std::process::id().wrapping_mul(131).wrapping_add(claim) % COUNT;
    let spread = u64::from(offset) * u64::from(STEP) % u64::from(COUNT);
    u16::try_from(u64::from(FIRST) + spread).expect("the range ends below 65536")
}

fn try_claim(directory: &std::path::Path, number: u16) -> Result<Option<File>> {
    let path = directory.join(format!("{number}.lock"));
    let claim = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
    match claim.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("cannot lock {}", path.display()));
        }
    }
    let is_free = is_free(number).context("cannot look for a free port")?;
    Ok(is_free.then_some(claim))
}

/// Whether nobody listens on it. Nor does this, for a moment in which another thread's child could come to hold what
/// listens, and keep the port.
fn is_free(number: u16) -> io::Result<bool> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    match socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, number))) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(false),
        Err(error) => Err(error),
    }
}
