//! The machine that the figures come from: how busy it is, and what its disk does.

use std::env;
use std::fs;
use std::io::Write;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::sys::statfs::{EXT4_SUPER_MAGIC, TMPFS_MAGIC, XFS_SUPER_MAGIC, statfs};

use crate::report::Machine;
use crate::statistics::median;

/// Appends whose median is taken: a fraction of a second on an ordinary disk.
const SYNCS: usize = 200;

/// What is appended at once.
const PAGE: [u8; 4096] = [7; 4096];

/// Looks at the machine before anything is started.
///
/// # Errors
/// When the temporary directory is in memory, where a sync costs nothing and every figure would flatter.
pub fn look(seed: u64) -> Result<Machine> {
    let directory = env::temp_dir();
    let kind = statfs(&directory)
        .context("cannot look at the temporary directory")?
        .filesystem_type();
    ensure!(
        kind != TMPFS_MAGIC,
        "{} is in memory: set TMPDIR to a directory on a disk",
        directory.display()
    );
    let name = match kind {
        EXT4_SUPER_MAGIC => String::from("ext4"),
        XFS_SUPER_MAGIC => String::from("XFS"),
        other => format!("a file system of type {:#x}", other.0),
    };
    Ok(Machine {
        cores: std::thread::available_parallelism()
            .context("cannot count the processors")?
            .get(),
        load_before: load_average()?,
        sync_before_ms: sync_ms()?,
        sync_after_ms: 0.0,
        file_system: name,
        seed,
    })
}

/// The median time of an append of 4 KiB with fdatasync, in milliseconds.
///
/// # Errors
/// When the disk fails.
pub fn sync_ms() -> Result<f64> {
    let mut file = tempfile::tempfile().context("cannot make a file")?;
    let mut times = Vec::with_capacity(SYNCS);
    for _ in 0..SYNCS {
        let began = Instant::now();
        file.write_all(&PAGE).context("cannot append")?;
        file.sync_data().context("cannot sync")?;
        times.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    median(&times).context("nothing was appended")
}

fn load_average() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg").context("cannot read the load")?;
    let first = text
        .split_whitespace()
        .next()
        .and_then(|load| load.parse().ok());
    first.context("no load average")
}
