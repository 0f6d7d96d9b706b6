//! Why a command ends without having done what was asked, and the exit code that says so.

use std::fmt::Display;

use holdfast_shared::buffer::BufferError;
use holdfast_shared::config::{ConfigFaults, exit};
use holdfast_shared::store::{FailureClass, StoreError};

use crate::drain::with_causes;
use crate::worker::WorkerError;

/// A command that failed: what to say, on one line unless it lists things, and what to exit with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The exit code, after `sysexits.h`.
    pub code: u8,
    message: String,
}

impl Failure {
    fn new(code: u8, message: impl Display) -> Self {
        Failure {
            code,
            message: message.to_string(),
        }
    }

    /// The command line asks for what can't be.
    pub fn usage(message: impl Display) -> Self {
        Failure::new(exit::USAGE, message)
    }

    /// Something that is needed can't be reached.
    pub fn unavailable(message: impl Display) -> Self {
        Failure::new(exit::UNAVAILABLE, message)
    }

    /// A defect of this program's.
    pub fn internal(message: impl Display) -> Self {
        Failure::new(exit::INTERNAL, message)
    }

    /// A file can't be read or written.
    pub fn io(message: impl Display) -> Self {
        Failure::new(exit::IO, message)
    }

    /// It may go well later.
    pub fn try_later(message: impl Display) -> Self {
        Failure::new(exit::TRY_LATER, message)
    }

    /// The configuration doesn't fit.
    pub fn config(message: impl Display) -> Self {
        Failure::new(exit::CONFIG, message)
    }
}

impl From<ConfigFaults> for Failure {
    fn from(faults: ConfigFaults) -> Self {
        Failure::config(faults)
    }
}

impl From<BufferError> for Failure {
    fn from(error: BufferError) -> Self {
        match error {
            BufferError::Busy | BufferError::Full { .. } | BufferError::Draining { .. } => {
                Failure::try_later(error)
            }
            BufferError::NetworkFileSystem { .. }
            | BufferError::Foreign { .. }
            | BufferError::OtherDatabase { .. } => Failure::config(error),
            _ => Failure::io(error),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let message = with_causes(&error);
        match error.class() {
            FailureClass::Unavailable => Failure::unavailable(message),
            FailureClass::Contended => Failure::try_later(message),
            FailureClass::Systemic => Failure::config(message),
            FailureClass::Item => Failure::internal(message),
        }
    }
}

impl From<WorkerError> for Failure {
    fn from(error: WorkerError) -> Self {
        match error {
            WorkerError::Foreign { .. } => Failure::config(error),
            WorkerError::Broken(_) => Failure::internal(error),
        }
    }
}
