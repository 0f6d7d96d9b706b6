//! A small disk of our own whose power can be cut: ext4 in an image, mounted
//! through a loop device.
//!
//! The cut is the kernel's own: `FS_IOC_SHUTDOWN` without flushing the journal
//! stops the file system where it is, so whatever was not synced is gone after
//! the next mount. `xfs_io` sends it, for ext4 as well.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::unistd::Uid;
use tempfile::TempDir;

use crate::wait::eventually;

/// The kernel lets go of a killed process' files a moment after its end.
const UNMOUNT_DEADLINE: Duration = Duration::from_secs(10);

/// What is needed beyond the mount itself, by program and Debian package.
const PROGRAMS: [(&str, &str); 4] = [
    ("xfs_io", "xfsprogs"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mount", "mount"),
    ("umount", "mount"),
];

/// A mounted file system. Dropping it unmounts and removes it.
#[derive(Debug)]
pub struct LoopDisk {
    directory: TempDir,
}

impl LoopDisk {
    /// Why there can be no such disk here; `None` when there can.
    pub fn impediment() -> Option<String> {
        if !Uid::effective().is_root() {
            return Some(String::from("only root may mount"));
        }
        let missing = PROGRAMS.iter().find(|(name, _)| program(name).is_none());
        if let Some((name, package)) = missing {
            return Some(format!("there is no {name} (Debian's package {package})"));
        }
        let made = LoopDisk::make(8);
        made.err().map(|error| format!("{error:#}"))
    }

    /// Makes and mounts one of `mebibytes`.
    ///
    /// # Errors
    /// When it can't be made or mounted, such as without a free loop device.
    pub fn make(mebibytes: u64) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("holdfast-disk-")
            .tempdir()
            .context("cannot create a temporary directory")?;
        let (image, mounted) = (image_in(&directory), mounted_in(&directory));
        std::fs::File::create(&image)
            .and_then(|file| file.set_len(mebibytes * 1024 * 1024))
            .context("cannot create the image")?;
        std::fs::create_dir(&mounted).context("cannot create the mount point")?;
        run("mkfs.ext4", &["-q", "-F"], &[&image])?;
        mount(&image, &mounted)?;
        Ok(Self { directory })
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        mounted_in(&self.directory)
    }

    /// Cuts the power: from now on all access fails, and nothing that wasn't
    /// synced will be there again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn cut_power(&self) -> Result<()> {
        // `shutdown` without -f: the journal isn't flushed. -x: the command is
        // one for experts; it is ext4's too.
        run("xfs_io", &["-x", "-c", "shutdown"], &[&self.path()])
    }

    /// Gives it power again: unmounts it, once nobody has a file of it open,
    /// and mounts it, which replays the file system's journal.
    ///
    /// # Errors
    /// When somebody still has a file of it open, or it can't be mounted.
    pub async fn restore_power(&self) -> Result<()> {
        eventually(UNMOUNT_DEADLINE, "the disk to be unmounted", async || {
            self.unmount().map_err(|error| format!("{error:#}"))
        })
        .await?;
        mount(&image_in(&self.directory), &self.path())
    }

    fn unmount(&self) -> Result<()> {
        run("umount", &[], &[&self.path()])
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        // A lazy unmount would hide a process that still runs.
        if let Err(error) = self.unmount() {
            eprintln!("{error:#}");
        }
    }
}

/// A library to preload under which every fsync does nothing: what a program is
/// without durability. `None` where it isn't installed (Debian's package
/// libeatmydata1).
pub fn library_without_syncs() -> Option<PathBuf> {
    let directories = std::fs::read_dir("/usr/lib").ok()?;
    directories
        .filter_map(|entry| Some(entry.ok()?.path().join("libeatmydata.so")))
        .find(|path| path.is_file())
}

fn image_in(directory: &TempDir) -> PathBuf {
    directory.path().join("image")
}

fn mounted_in(directory: &TempDir) -> PathBuf {
    directory.path().join("mounted")
}

fn mount(image: &Path, mounted: &Path) -> Result<()> {
    run("mount", &["-o", "loop"], &[image, mounted])
}

fn program(name: &str) -> Option<PathBuf> {
    let directories = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    directories
        .iter()
        .map(|directory| Path::new(directory).join(name))
        .find(|path| path.is_file())
}

fn run(name: &str, options: &[&str], paths: &[&Path]) -> Result<()> {
    let path = program(name).with_context(|| format!("there is no {name}"))?;
    let output = Command::new(path)
        .args(options)
        .args(paths)
        .output()
        .with_context(|| format!("cannot start {name}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{name} ended with {}: {}", output.status, said.trim());
    }
    Ok(())
}
