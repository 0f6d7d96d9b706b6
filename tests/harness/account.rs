//! The account that the private servers run as.
//!
//! PostgreSQL refuses to run as root, and a Redis needs no root either. When
//! the tests run as root, both run as `postgres`, or `nobody` where there is no
//! such user; otherwise as whoever runs the tests.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::unistd::{Uid, User};

/// Tried in this order when the tests run as root.
const UNPRIVILEGED: [&str; 2] = ["postgres", "nobody"];

/// Who the servers run as.
#[derive(Debug, Clone)]
pub struct Account {
    /// Set when it isn't simply the user who runs the tests.
    other_user: Option<User>,
}

impl Account {
    /// Picks the account.
    ///
    /// # Errors
    /// When run as root on a machine that has none of the unprivileged users.
    pub fn for_servers() -> Result<Self> {
        if !Uid::effective().is_root() {
            return Ok(Self { other_user: None });
        }
        for name in UNPRIVILEGED {
            if let Some(user) = User::from_name(name).context("cannot read the user database")? {
                return Ok(Self {
                    other_user: Some(user),
                });
            }
        }
        bail!("run as root, but there is none of the users {UNPRIVILEGED:?} to run servers as")
    }

    /// The numeric id of the account.
    pub fn uid(&self) -> u32 {
        match &self.other_user {
            Some(user) => user.uid.as_raw(),
            None => Uid::effective().as_raw(),
        }
    }

    /// The name of the account, when it isn't simply the user who runs the tests.
    pub fn name(&self) -> Option<&str> {
        self.other_user.as_ref().map(|user| user.name.as_str())
    }

    /// Makes `command` run as this account.
    pub fn assign(&self, command: &mut Command) {
        if let Some(user) = &self.other_user {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
    }

    /// Gives the account `path` (not what is below it).
    ///
    /// # Errors
    /// When the owner can't be changed.
    pub fn give(&self, path: &Path) -> Result<()> {
        let Some(user) = &self.other_user else {
            return Ok(());
        };
        chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
            .with_context(|| format!("cannot give {} to {}", path.display(), user.name))
    }
}
