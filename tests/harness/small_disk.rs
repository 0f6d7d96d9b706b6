//! A file system of its own that is small enough to be filled.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::Uid;
use tempfile::TempDir;

const MIB: u64 = 1024 * 1024;

/// By how much a file that fills the disk grows at once, as long as there is room for it.
const STEPS: [u64; 3] = [16 * MIB, 64 * 1024, 4096];

/// A mounted ext4 in a file. Dropping it unmounts it, so whatever uses it must have ended by then.
#[derive(Debug)]
pub struct SmallDisk {
    directory: TempDir,
}

impl SmallDisk {
    /// Makes and mounts one of so many MiB. `None`, and a loud line on standard error, where that can't be done:
    /// it takes root, loop devices and `mkfs.ext4`.
    ///
    /// # Errors
    /// When it can be done in principle, but fails.
    pub fn mount(size_mib: u64) -> Result<Option<Self>> {
        if !Uid::effective().is_root() {
            eprintln!("SKIPPED: no small file system without root; the full disk is not tested");
            return Ok(None);
        }
        let directory = tempfile::Builder::new()
            .prefix("holdfast-disk-")
            .tempdir()
            .context("cannot create a temporary directory")?;
        let disk = Self { directory };
        let image = disk.directory.path().join("image");
        fs::File::create(&image)?.set_len(size_mib * MIB)?;
        fs::create_dir(disk.path())?;
        run(Command::new("mkfs.ext4")
            .args(["-q", "-F", "-m", "0"])
            .arg(&image))?;
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(&image)
            .arg(disk.path()))?;
        Ok(Some(disk))
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("mounted")
    }

    /// Fills all that is left of it with a file of somebody else's; gives the file.
    ///
    /// # Errors
    /// When it can't be written for another reason than that the disk is full.
    pub fn fill(&self, name: &str) -> Result<PathBuf> {
        let path = self.path().join(name);
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        for step in STEPS {
            while grow(&file, step)? {}
        }
        match file.sync_all() {
            Err(error) if error.kind() != ErrorKind::StorageFull => Err(error.into()),
            _ => Ok(path),
        }
    }
}

/// Reserves so many bytes more; tells whether there was room.
fn grow(file: &fs::File, bytes: u64) -> Result<bool> {
    let offset = i64::try_from(file.metadata()?.len())?;
    match fallocate(file, FallocateFlags::empty(), offset, i64::try_from(bytes)?) {
        Ok(()) => Ok(true),
        Err(Errno::ENOSPC) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.path()) {
            eprintln!("cannot unmount {}: {error:#}", self.path().display());
        }
    }
}

fn unmount(path: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let is_mounted = mounts
        .lines()
        .any(|line| line.split(' ').nth(1) == path.to_str());
    if is_mounted {
        run(Command::new("umount").arg(path))?;
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?} failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
