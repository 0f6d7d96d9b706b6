//! Putting a good file in the place of one that is damaged or gone.
//!
//! A damaged file is never removed: it is set aside under a dated name next to the buffer, and a new one takes its
//! place, in one step as far as others can see. A file that was removed or replaced under a running process is copied
//! out through the descriptor that still reaches it. syncd then salvages what was set aside.
//!
//! All of that happens in one's turn to write (see `lock.rs`). Several processes may find the same damage at once: who
//! comes second sees that the path names another file by then, and just opens that.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use redb::{ConcurrencyMode, Database};

use super::error::BufferError;
use super::file::{Identity, guard_path};
use super::lock::{Turn, beside, hand_over};
use super::schema::{
    CLOCK_KEY, COUNTERS_KEY, Counters, DATABASE_KEY, EPOCHS, META, NODE_BASE_KEY, SCHEMA_KEY,
    SCHEMA_VERSION, encode,
};
use super::wreck::{Head, Wreck};

/// What the name of a file that was set aside has after the buffer's; a time follows.
const SET_ASIDE: &str = ".set-aside-";

/// The same once it has been salvaged.
const SALVAGED: &str = ".salvaged-";

/// What the name of a copy ends with until it is complete.
const UNFINISHED: &str = ".part";

/// How much is copied at once.
const COPY_BYTES: usize = 1024 * 1024;

/// Most files of one second.
const SAME_SECOND_MAX: u32 = 1_000;

/// Files set aside that have not been salvaged, the oldest first.
///
/// # Errors
/// When the directory can't be read.
pub fn set_aside_files(buffer: &Path) -> io::Result<Vec<PathBuf>> {
    named(buffer, SET_ASIDE)
}

/// How many damaged files lie beside the buffer, salvaged or not, until somebody removes them.
pub(super) fn count_damaged_files(buffer: &Path) -> u64 {
    let count = |marker| named(buffer, marker).map_or(0, |files| files.len() as u64);
    count(SET_ASIDE) + count(SALVAGED)
}

/// Renames a file that was set aside, now that what it held is in the buffer. Gives its new name.
///
/// # Errors
/// When it can't be renamed; it is then salvaged again, which changes nothing.
pub fn mark_salvaged(buffer: &Path, file: &Path) -> io::Result<PathBuf> {
    let name = file.to_string_lossy().replace(SET_ASIDE, SALVAGED);
    let marked = PathBuf::from(name);
    fs::rename(file, &marked)?;
    sync_directory(buffer)?;
    Ok(marked)
}

fn named(buffer: &Path, marker: &str) -> io::Result<Vec<PathBuf>> {
    let prefix = beside(buffer, marker);
    let prefix = prefix.file_name().unwrap_or(OsStr::new(marker));
    let mut found = Vec::new();
    for entry in fs::read_dir(directory(buffer))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        if name.starts_with(prefix.as_encoded_bytes()) && !name.ends_with(UNFINISHED.as_bytes()) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Sets the damaged file aside and puts a new, empty one in its place, unless the path names another file by now. Gives
/// where the damaged one is.
pub(super) fn set_aside(
    buffer: &Path,
    damaged: Identity,
    _turn: &Turn<'_>,
) -> Result<Option<PathBuf>, BufferError> {
    let failed = |error: io::Error| BufferError::io(buffer, &error);
    if Identity::at(buffer).map_err(failed)? != Some(damaged) {
        return Ok(None);
    }
    let head = Wreck::open(buffer)
        .map(|wreck| wreck.head())
        .unwrap_or_default();
    let fresh = make_fresh(buffer, head)?;
    let aside = free_name(buffer).map_err(failed)?;
    let swapped = fs::hard_link(buffer, &aside)
        .and_then(|()| fs::rename(&fresh, buffer))
        .and_then(|()| sync_directory(buffer));
    swapped.map_err(failed)?;
    Ok(Some(aside))
}

/// Copies the file that this descriptor still reaches, and that its path no longer names, unless it was set aside by
/// another process. Gives where the copy is.
pub(super) fn rescue(
    buffer: &Path,
    orphan: &File,
    _turn: &Turn<'_>,
) -> io::Result<Option<PathBuf>> {
    let identity = Identity::of(orphan)?;
    for marker in [SET_ASIDE, SALVAGED] {
        for file in named(buffer, marker)? {
            if Identity::at(&file)? == Some(identity) {
                return Ok(None);
            }
        }
    }
    let copy = free_name(buffer)?;
    let unfinished = beside(&copy, UNFINISHED);
    if let Err(error) = copy_out(orphan, &unfinished, buffer) {
        fs::remove_file(&unfinished)?;
        return Err(error);
    }
    fs::rename(&unfinished, &copy)?;
    sync_directory(buffer)?;
    Ok(Some(copy))
}

fn copy_out(from: &File, to: &Path, buffer: &Path) -> io::Result<()> {
    let mut to = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(to)?;
    hand_over(&to, buffer)?;
    let (mut part, mut offset) = (vec![0; COPY_BYTES], 0);
    loop {
        let read = from.read_at(&mut part, offset)?;
        if read == 0 {
            return to.sync_all();
        }
        to.write_all(&part[..read])?;
        offset += read as u64;
    }
}

/// Puts a new file where there is none, that goes on where the one in `copy` ended. One that somebody else has put
/// there in the meantime stays.
pub(super) fn fill_place(
    buffer: &Path,
    copy: Option<&Path>,
    _turn: &Turn<'_>,
) -> Result<(), BufferError> {
    let failed = |error: io::Error| BufferError::io(buffer, &error);
    let head = copy.and_then(|copy| Wreck::open(copy).ok());
    let fresh = make_fresh(buffer, head.map(|wreck| wreck.head()).unwrap_or_default())?;
    match fs::hard_link(&fresh, buffer) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    fs::remove_file(&fresh)
        .and_then(|()| sync_directory(buffer))
        .map_err(failed)
}

/// Makes a new file under another name. It goes on where the old one ended, as far as that could be read: numbers,
/// stamps, the database it belongs to.
fn make_fresh(buffer: &Path, head: Head) -> Result<PathBuf, BufferError> {
    let fresh = beside(buffer, ".new");
    let failed = |error: io::Error| BufferError::io(&fresh, &error);
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)
        .map_err(failed)?;
    hand_over(&file, buffer).map_err(failed)?;
    guard_path(&fresh, || write_head(&fresh, file, head))?;
    Ok(fresh)
}

fn write_head(path: &Path, file: File, head: Head) -> Result<(), BufferError> {
    let storage = |error: redb::Error| BufferError::storage(path, error);
    let backend = redb::backends::FileBackend::new(file).map_err(|error| storage(error.into()))?;
    let mut builder = Database::builder();
    builder.set_concurrency_mode(ConcurrencyMode::MultiWriter);
    let database = builder
        .create_with_backend(backend)
        .map_err(|error| storage(error.into()))?;
    let txn = database
        .begin_write()
        .map_err(|error| storage(error.into()))?;
    let mut meta = txn
        .open_table(META)
        .map_err(|error| storage(error.into()))?;
    let old = head.counters.unwrap_or_default();
    let counters = Counters {
        next_seq: old.next_seq,
        next_finish: old.next_finish,
        high_water: old.high_water,
        writers: old.writers,
        revocation_changes: old.revocation_changes + 1,
        ..Counters::default()
    };
    let mut values = vec![
        (SCHEMA_KEY, SCHEMA_VERSION.to_le_bytes().to_vec()),
        (COUNTERS_KEY, encode(&counters)),
    ];
    values.extend(
        head.node_base
            .map(|base| (NODE_BASE_KEY, base.to_le_bytes().to_vec())),
    );
    values.extend(
        head.database
            .map(|id| (DATABASE_KEY, id.as_bytes().to_vec())),
    );
    values.extend(head.clock.map(|clock| (CLOCK_KEY, clock)));
    for (key, value) in values {
        meta.insert(key, value.as_slice())
            .map_err(|error| storage(error.into()))?;
    }
    drop(meta);
    let mut epochs = txn
        .open_table(EPOCHS)
        .map_err(|error| storage(error.into()))?;
    for (run, epoch) in head.epochs {
        epochs
            .insert(run, epoch.as_slice())
            .map_err(|error| storage(error.into()))?;
    }
    drop(epochs);
    txn.commit().map_err(|error| storage(error.into()))
}

/// A name that no file beside the buffer has, of this second.
fn free_name(buffer: &Path) -> io::Result<PathBuf> {
    let time = chrono::Utc::now().format("%Y%m%dT%H%M%SZ");
    (0..SAME_SECOND_MAX)
        .map(|number| match number {
            0 => beside(buffer, &format!("{SET_ASIDE}{time}")),
            number => beside(buffer, &format!("{SET_ASIDE}{time}-{number}")),
        })
        .find(|path| !path.exists())
        .ok_or_else(|| io::ErrorKind::AlreadyExists.into())
}

fn directory(buffer: &Path) -> &Path {
    let parent = buffer.parent();
    parent
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Makes durable which files there are beside the buffer, and it itself.
pub(super) fn sync_directory(buffer: &Path) -> io::Result<()> {
    File::open(directory(buffer))?.sync_all()
}

impl Identity {
    /// Of an open file.
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Identity(metadata.dev(), metadata.ino()))
    }

    /// Of the file a path names; `None` where there is none.
    pub(super) fn at(path: &Path) -> io::Result<Option<Self>> {
        match path.metadata() {
            Ok(metadata) => Ok(Some(Identity(metadata.dev(), metadata.ino()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}
