//! What can go wrong with the buffer, by what the caller can do about it.

use std::path::{Path, PathBuf};

use thiserror::Error;

use super::keys::KeyedWrite;

/// Why the buffer did not do what was asked. After any of them, nothing of the request is in the file.
#[derive(Debug, Clone, Error)]
pub enum BufferError {
    /// It holds its most items. Draining, or a larger `BUFFER_MAX_SIZE`, makes room.
    #[error("the buffer is full: it holds its most items, {max_items}")]
    Full {
        /// The cap.
        max_items: u64,
    },
    /// The disk it is on has no room. Nothing accepted is lost.
    #[error("the disk of the buffer file {path} is full")]
    DiskFull {
        /// The file.
        path: PathBuf,
    },
    /// The disk was full: what the buffer holds is drained before it takes anything new (its ballast is gone).
    #[error(
        "the disk of the buffer file {path} was full, and nothing new is taken until it has room again"
    )]
    Draining {
        /// The file.
        path: PathBuf,
    },
    /// The item that the request was to be put behind has left meanwhile. What it and those before it have come to can
    /// be read now; then the request can be repeated.
    #[error("what waited of the resource has been settled meanwhile")]
    Outrun,
    /// The operation's idempotency key stands for another one that the file has.
    #[error("the idempotency key stands for another write")]
    KeyTaken(Box<KeyedWrite>),
    /// Another process held the file, or the queue of this one's writer was full, until the deadline.
    #[error("the buffer was busy until the deadline")]
    Busy,
    /// The file, or its directory, can't be opened, read or written.
    #[error("can't use the buffer file {path}: {detail}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's words.
        detail: String,
    },
    /// What the file holds makes no sense.
    #[error("the buffer file {path} is damaged: {detail}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// The path names a file that can't be read as a buffer, and nothing beside it says that it ever was one. It is
    /// left as it is.
    #[error(
        "{path} is no buffer of Holdfast's ({detail}): check BUFFER_PATH; what a damaged buffer that was copied there \
         still holds, `syncd salvage` reads"
    )]
    Stranger {
        /// The file.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// The path names another file than the one that is open: somebody removed or replaced it. The next attempt uses
    /// the file that is there now.
    #[error("the buffer file {path} was removed or replaced under the running process")]
    Replaced {
        /// The path.
        path: PathBuf,
    },
    /// A newer version of Holdfast wrote the file.
    #[error(
        "the buffer file {path} has schema {found}, newer than this program's {known}: upgrade Holdfast"
    )]
    NewerSchema {
        /// The file.
        path: PathBuf,
        /// What the file says.
        found: u64,
        /// What this program knows.
        known: u64,
    },
    /// The file is on a network file system, whose locks and syncs can't be trusted.
    #[error(
        "the buffer file {path} is on a network file system ({kind}): put BUFFER_PATH on a local disk"
    )]
    NetworkFileSystem {
        /// The file.
        path: PathBuf,
        /// Which.
        kind: &'static str,
    },
    /// A file to be salvaged belongs to another database than the buffer.
    #[error(
        "the file {path} belongs to another database than the buffer: set DATABASE_URL and BUFFER_PATH for that one, \
         or export it"
    )]
    Foreign {
        /// The file to be salvaged.
        path: PathBuf,
    },
    /// The file belongs to another database by now than the one this process uses it for: another process is set up
    /// for that one.
    #[error(
        "the buffer file {path} belongs to another database by now: the API and syncd need the same DATABASE_URL"
    )]
    OtherDatabase {
        /// The file.
        path: PathBuf,
    },
    /// The buffer has been closed.
    #[error("the buffer is closed")]
    Closed,
}

impl BufferError {
    /// Whether nothing is wrong with the file and the transaction can go on: the request alone was refused.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(
            self,
            BufferError::Full { .. }
                | BufferError::Draining { .. }
                | BufferError::Outrun
                | BufferError::KeyTaken(_)
                | BufferError::OtherDatabase { .. }
        )
    }

    /// Whether there is no room for anything new, in the buffer or on its disk. It passes by itself.
    pub fn is_full(&self) -> bool {
        matches!(
            self,
            BufferError::Full { .. } | BufferError::DiskFull { .. } | BufferError::Draining { .. }
        )
    }

    /// Whether the file must be looked into before it is used again.
    pub(super) fn wants_healing(&self) -> bool {
        matches!(
            self,
            BufferError::Damaged { .. } | BufferError::Replaced { .. }
        )
    }

    /// A failure of the system's, on this file.
    pub(super) fn io(path: &Path, error: &std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                BufferError::DiskFull {
                    path: path.to_owned(),
                }
            }
            // What redb says of a file that isn't one of its own, or ends too early.
            std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof => {
                BufferError::Damaged {
                    path: path.to_owned(),
                    detail: error.to_string(),
                }
            }
            _ => BufferError::Io {
                path: path.to_owned(),
                detail: error.to_string(),
            },
        }
    }

    /// A failure of redb's, on this file.
    pub(super) fn storage(path: &Path, error: impl Into<redb::Error>) -> Self {
        match error.into() {
            redb::Error::Io(error) => BufferError::io(path, &error),
            redb::Error::Corrupted(detail) => BufferError::Damaged {
                path: path.to_owned(),
                detail,
            },
            other => BufferError::Io {
                path: path.to_owned(),
                detail: other.to_string(),
            },
        }
    }
}
