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
use std::sync::{Arc, Mutex, PoisonError};

use crate::telemetry::metric;

use super::ballast::Ballast;
use super::error::BufferError;
use super::lock::{Turn, Turnstile, beside, hand_over};
use super::{replacement, verification};

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
    /// The opening, by its generation, in which damage was met, and what was met.
    suspicion: Mutex<Option<(u64, String)>>,
    /// Held while it is opened anew, so that of all who want that one does it.
    opening: Mutex<()>,
}

/// One opening of it.
pub(super) struct Handle {
    pub(super) database: Database,
    /// The file itself: it can be read through this also when its path names another one, or none.
    file: File,
    identity: Identity,
    /// Counts openings, so that what was learned from another file is forgotten.
    pub(super) generation: u64,
}

/// Which file a path names: device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity(pub(super) u64, pub(super) u64);

/// Whether a file at the buffer's path is known to be a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Acquaintance {
    /// The files that belong to a buffer lie beside it.
    Known,
    /// It may be anything, put there by a mistake in `BUFFER_PATH`.
    Stranger,
}

impl OpenFile {
    /// Opens the file, or makes it (0600, in a directory made 0700). One that is damaged is set aside, and a new one
    /// made.
    pub(super) fn open(path: &Path) -> Result<Self, BufferError> {
        let failed = |error: io::Error| BufferError::io(path, &error);
        let acquaintance = acquaint(path).map_err(failed)?;
        // Processes that begin at the same time make it one after the other.
        let opened = (!is_to_be_made(path)).then(|| Handle::open(path, 0));
        let handle = match opened {
            Some(Err(BufferError::Damaged { path, detail }))
                if acquaintance == Acquaintance::Stranger =>
            {
                return Err(BufferError::Stranger { path, detail });
            }
            Some(opened) if !matches!(opened, Err(BufferError::Damaged { .. })) => opened?,
            _ => {
                let turnstile = Turnstile::open(path).map_err(failed)?;
                open_or_replace(path, 0, &turnstile.enter().map_err(failed)?)?
            }
        };
        Ok(OpenFile {
            path: path.to_owned(),
            current: ArcSwap::from_pointee(handle),
            suspicion: Mutex::default(),
            opening: Mutex::default(),
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
        let _alone = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if self.current.load().generation != stale.generation {
            return Ok(());
        }
        let fresh = Handle::open(&self.path, stale.generation + 1)?;
        tracing::debug!(path = %self.path.display(), "buffer file opened anew");
        self.current.store(Arc::new(fresh));
        Ok(())
    }

    /// Notes that an opening has met damage, for the writer to look into.
    pub(super) fn suspect(&self, generation: u64, met: &BufferError) {
        if let BufferError::Damaged { detail, .. } = met {
            let mut suspicion = self
                .suspicion
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            *suspicion = Some((generation, detail.clone()));
        }
    }

    /// Sees to it that the current opening is of the file its path names, and that this one is whole as far as is
    /// known. Nothing is done, at the cost of one look at the path, where that is so. Tells whether it was opened anew.
    ///
    /// What a file holds that was removed or replaced is copied out of it first; a damaged one is set aside.
    pub(super) fn heal(&self, turn: &Turn<'_>) -> Result<Health, BufferError> {
        let handle = self.handle();
        if !handle.is_at(&self.path) {
            self.leave_orphan(&handle, turn)?;
        } else if let Some(detail) = self.take_suspicion(&handle) {
            self.examine(&handle, detail, turn)?;
        } else {
            return Ok(Health::Untouched);
        }
        let _alone = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = self.current.load().generation + 1;
        let fresh = open_or_replace(&self.path, generation, turn)?;
        self.current.store(Arc::new(fresh));
        Ok(Health::OpenedAnew)
    }

    fn take_suspicion(&self, handle: &Handle) -> Option<String> {
        let mut suspicion = self
            .suspicion
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (generation, detail) = suspicion.take()?;
        (generation == handle.generation).then_some(detail)
    }

    fn leave_orphan(&self, handle: &Handle, turn: &Turn<'_>) -> Result<(), BufferError> {
        let failed = |error: io::Error| BufferError::io(&self.path, &error);
        make_directory(&self.path).map_err(failed)?;
        let copy = replacement::rescue(&self.path, &handle.file, turn).map_err(failed)?;
        if Identity::at(&self.path).map_err(failed)?.is_none() {
            replacement::fill_place(&self.path, copy.as_deref(), turn)?;
        }
        match copy {
            Some(copy) => {
                metrics::counter!(metric::BUFFER_SET_ASIDE_TOTAL, "reason" => "replaced")
                    .increment(1);
                tracing::error!(
                    path = %self.path.display(), copy = %copy.display(),
                    "buffer file was removed or replaced: what it held is copied out, for syncd to salvage"
                );
            }
            None => {
                tracing::warn!(path = %self.path.display(), "buffer file was set aside by another process")
            }
        }
        Ok(())
    }

    /// Sets the file aside if it is damaged. What looked like it may have been a defect of this program, or of this
    /// machine's memory; then opening it anew is all it takes.
    ///
    /// The handle of a damaged file is never closed: redb would write to it then, and may panic.
    fn examine(&self, handle: &Handle, detail: String, turn: &Turn<'_>) -> Result<(), BufferError> {
        if verification::is_whole(&self.path) {
            tracing::error!(path = %self.path.display(), detail, "buffer seemed damaged but is whole: opened anew");
            return Ok(());
        }
        std::mem::forget(self.handle());
        put_aside(&self.path, handle.identity, &detail, turn)
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
    pub(super) fn open(path: &Path, generation: u64) -> Result<Self, BufferError> {
        let failed = |error: io::Error| BufferError::io(path, &error);
        make_directory(path).map_err(failed)?;
        let file = open_or_create(path).map_err(failed)?;
        refuse_network_file_system(path, &file)?;
        refuse_emptied(path, &file)?;
        let is_new = file.metadata().map_err(failed)?.len() == 0;
        let identity = Identity::of(&file).map_err(failed)?;
        let kept = file.try_clone().map_err(failed)?;
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
        if is_new {
            replacement::sync_directory(path).map_err(failed)?;
        }
        Ok(Handle {
            database,
            file: kept,
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

/// What [`OpenFile::heal`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    /// Nothing: all was well.
    Untouched,
    /// It has opened the file, or another one, anew.
    OpenedAnew,
}

/// Opens the file; one that is damaged is set aside first.
fn open_or_replace(path: &Path, generation: u64, turn: &Turn<'_>) -> Result<Handle, BufferError> {
    match Handle::open(path, generation) {
        Err(BufferError::Damaged { detail, .. }) => {
            let found = Identity::at(path).map_err(|error| BufferError::io(path, &error))?;
            if let Some(found) = found {
                put_aside(path, found, &detail, turn)?;
            }
            Handle::open(path, generation)
        }
        opened => opened,
    }
}

fn put_aside(
    path: &Path,
    damaged: Identity,
    detail: &str,
    turn: &Turn<'_>,
) -> Result<(), BufferError> {
    if let Some(aside) = replacement::set_aside(path, damaged, turn)? {
        metrics::counter!(metric::BUFFER_SET_ASIDE_TOTAL, "reason" => "damaged").increment(1);
        tracing::error!(
            path = %path.display(), set_aside = %aside.display(), detail,
            "buffer file is damaged: set aside, for syncd to salvage, and a new one made"
        );
    }
    Ok(())
}

/// Whether a file is a buffer's is told by what lies beside it, since of a damaged one nothing else may be left. A file
/// that is still to be made is one: that is put down first, so one that was half made when the power went is known.
pub(super) fn acquaint(path: &Path) -> io::Result<Acquaintance> {
    if beside(path, ".turn").exists() {
        return Ok(Acquaintance::Known);
    }
    if !is_to_be_made(path) {
        return Ok(Acquaintance::Stranger);
    }
    make_directory(path)?;
    Turnstile::open(path)?;
    replacement::sync_directory(path)?;
    Ok(Acquaintance::Known)
}

/// Whether there is no file yet, or an empty one.
fn is_to_be_made(path: &Path) -> bool {
    path.metadata().map_or(true, |metadata| metadata.len() == 0)
}

/// An empty file is a new one, unless there was a ballast already: then it has been emptied.
fn refuse_emptied(path: &Path, file: &File) -> Result<(), BufferError> {
    let length = file
        .metadata()
        .map_err(|error| BufferError::io(path, &error))?
        .len();
    if length == 0 && Ballast::of(path).is_there() {
        return Err(BufferError::Damaged {
            path: path.to_owned(),
            detail: "it has been emptied".to_owned(),
        });
    }
    Ok(())
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
    hand_over(&file, path)?;
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

/// Runs work on a file, turning a panic of redb's into an error.
pub(super) fn guard_path<T>(
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
