//! The open file: opening it safely, knowing whether it still is the one its path names, and opening it anew after
//! an error.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use arc_swap::ArcSwap;
use nix::sys::statfs::{self, FsType};
use redb::backends::FileBackend;
use redb::{ConcurrencyMode, Database, ReadTransaction, ReadableDatabase};
use std::sync::Arc;

use super::error::BufferError;

/// redb's cache of one handle: enough for a full scan of a million items (its own default is 1 GiB).
const CACHE_BYTES: usize = 32 * 1024 * 1024;

/// File systems whose locks and syncs reach over a network, by the magic number of statfs(2).
const NETWORK_FILE_SYSTEMS: [(FsType, &str); 5] = [
    (statfs::NFS_SUPER_MAGIC, "NFS"),
    (statfs::SMB_SUPER_MAGIC, "SMB"),
    (FsType(0xFF53_4D42), "CIFS"),
    (FsType(0xFE53_4D42), "SMB2"),
    (FsType(0x00C3_6400), "Ceph"),
];

/// The buffer file, open.
pub(super) struct OpenFile {
    path: PathBuf,
    current: ArcSwap<Handle>,
}

/// One opening of it.
pub(super) struct Handle {
    pub(super) database: Database,
    identity: Identity,
    /// Counts openings, so that what was learned from another file is forgotten.
    pub(super) generation: u64,
}

/// Which file a path names: device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity(u64, u64);

impl OpenFile {
    /// Opens the file, or makes it (0600, in a directory made 0700).
    pub(super) fn open(path: &Path) -> Result<Self, BufferError> {
        let handle = Handle::open(path, 0)?;
        Ok(OpenFile {
            path: path.to_owned(),
            current: ArcSwap::from_pointee(handle),
        })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The current opening.
    pub(super) fn handle(&self) -> Arc<Handle> {
        self.current.load_full()
    }

    /// Opens the file anew, unless somebody else has since `stale` was current. redb refuses to go on with a handle
    /// after an I/O error.
    pub(super) fn reopen(&self, stale: &Handle) -> Result<(), BufferError> {
        if self.current.load().generation != stale.generation {
            return Ok(());
        }
        let fresh = Handle::open(&self.path, stale.generation + 1)?;
        tracing::warn!(path = %self.path.display(), "buffer file opened anew");
        self.current.store(Arc::new(fresh));
        Ok(())
    }

    /// The file's size in bytes.
    pub(super) fn size_bytes(&self) -> Result<u64, BufferError> {
        let metadata = self
            .path
            .metadata()
            .map_err(|error| BufferError::io(&self.path, &error))?;
        Ok(metadata.len())
    }

    /// Runs work on the file, turning a panic of redb's (a zeroed page makes it panic) into an error.
    pub(super) fn guard<T>(
        &self,
        work: impl FnOnce() -> Result<T, BufferError>,
    ) -> Result<T, BufferError> {
        guard_path(&self.path, work)
    }

    /// An error of redb's about this file.
    pub(super) fn storage(&self, error: impl Into<redb::Error>) -> BufferError {
        BufferError::storage(&self.path, error)
    }
}

impl Handle {
    fn open(path: &Path, generation: u64) -> Result<Self, BufferError> {
        let failed = |error: io::Error| BufferError::io(path, &error);
        make_directory(path).map_err(failed)?;
        let file = open_or_create(path).map_err(failed)?;
        refuse_network_file_system(path, &file)?;
        let identity = Identity::of(&file).map_err(failed)?;
        let database = guard_path(path, || {
            let backend =
                FileBackend::new(file).map_err(|error| BufferError::storage(path, error))?;
            #[cfg(test)]
            let backend = super::model::Backend::new(path, backend);
            #[cfg(feature = "seeded-bugs")]
            let backend = super::unsynced::Unsynced(backend);
            let mut builder = Database::builder();
            builder
                .set_cache_size(CACHE_BYTES)
                .set_concurrency_mode(ConcurrencyMode::MultiWriter);
            builder
                .create_with_backend(backend)
                .map_err(|error| BufferError::storage(path, error))
        })?;
        Ok(Handle {
            database,
            identity,
            generation,
        })
    }

    /// Whether the path still names this file. A file that was removed or replaced goes on taking writes that nobody
    /// will ever find.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        path.metadata()
            .is_ok_and(|metadata| Identity(metadata.dev(), metadata.ino()) == self.identity)
    }

    /// Begins a read transaction: a snapshot of the last commit of any process.
    pub(super) fn begin_read(&self, path: &Path) -> Result<ReadTransaction, BufferError> {
        self.database
            .begin_read()
            .map_err(|error| BufferError::storage(path, error))
    }
}

impl Identity {
    fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Identity(metadata.dev(), metadata.ino()))
    }
}

fn make_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() && !parent.exists() => {
            DirBuilder::new().recursive(true).mode(0o700).create(parent)
        }
        _ => Ok(()),
    }
}

fn open_or_create(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    if file.metadata()?.mode() & 0o077 != 0 {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

fn refuse_network_file_system(path: &Path, file: &File) -> Result<(), BufferError> {
    let found = statfs::fstatfs(file)
        .map_err(|errno| BufferError::io(path, &errno.into()))?
        .filesystem_type();
    match NETWORK_FILE_SYSTEMS
        .iter()
        .find(|(magic, _)| *magic == found)
    {
        Some((_, kind)) => Err(BufferError::NetworkFileSystem {
            path: path.to_owned(),
            kind,
        }),
        None => Ok(()),
    }
}

fn guard_path<T>(
    path: &Path,
    work: impl FnOnce() -> Result<T, BufferError>,
) -> Result<T, BufferError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Err(BufferError::Damaged {
            path: path.to_owned(),
            detail: format!("reading it panicked: {said}"),
        })
    })
}
