//! Looking at processes through `/proc`, and signalling them by id.
//!
//! A process is known by its id *and* its start time, so that a number which
//! the kernel has given to somebody else meanwhile is never signalled.

use std::fs;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

/// One process, as it was when it was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    pid: i32,
    started_ticks: u64,
}

struct Stat {
    state: char,
    parent: i32,
    started_ticks: u64,
}

impl Process {
    /// The process with this id; `None` when there is none or it has ended.
    pub fn find(pid: u32) -> Option<Self> {
        let pid = i32::try_from(pid).ok()?;
        let stat = read_stat(pid)?;
        Some(Self {
            pid,
            started_ticks: stat.started_ticks,
        })
    }

    /// Memory of it that is resident now, in bytes; `None` when it has ended.
    pub fn resident_bytes(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
        (!self.is_gone()).then_some(kibibytes * 1024)
    }

    /// Its children, in no particular order.
    pub fn children(&self) -> Vec<Process> {
        let Ok(entries) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter_map(|pid| Some((pid, read_stat(pid)?)))
            .filter(|(_, stat)| stat.parent == self.pid)
            .map(|(pid, stat)| Process {
                pid,
                started_ticks: stat.started_ticks,
            })
            .collect()
    }

    /// Whether it has ended; one that only waits to be collected has.
    pub fn is_gone(&self) -> bool {
        read_stat(self.pid).is_none_or(|stat| stat.started_ticks != self.started_ticks)
    }

    /// Sends `signal`; a process that is gone is left in peace.
    ///
    /// # Errors
    /// When the signal may not be sent.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if self.is_gone() {
            return Ok(());
        }
        match signal::kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => {
                Err(error).with_context(|| format!("cannot send {signal} to process {}", self.pid))
            }
        }
    }
}

/// Reads `/proc/PID/stat`; a zombie counts as no process.
fn read_stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses and may hold anything.
    let (_, after_name) = text.rsplit_once(')')?;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let stat = Stat {
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        started_ticks: fields.get(19)?.parse().ok()?,
    };
    (!matches!(stat.state, 'Z' | 'X')).then_some(stat)
}
