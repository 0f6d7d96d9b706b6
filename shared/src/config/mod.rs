//! Configuration: what the environment may say, what it said, and everything that is wrong with it.
//!
//! One table ([`variables`]) declares each variable with its default, its bounds and its meaning. The loader,
//! `.env.example`, the manual page and `syncd config show` are all made from it, so none of them can drift.
//! The table is our own rather than confique's: confique ties each variable to a field's type and stops at the
//! first fault, while here all faults are wanted at once, values come from four kinds of places (environment,
//! files, systemd credentials, `.env`), and the bounds belong into the documents too. What would have been left
//! of it is the list of names.
//!
//! Each value is looked for in this order: the process environment (`NAME`, for a secret also `NAME_FILE`), for
//! a secret the systemd credential of that name, `.env` (outside production), the default. A variable that is set
//! but empty counts as unset, and hides what `.env` says.

mod variable;

mod dotenv;
mod fault;
mod source;

mod settings;
mod values;

mod certificates;
mod keys;
mod load;
mod stores;

mod development_secret;
mod document;
pub mod exit;

#[cfg(test)]
mod tests;

pub use development_secret::development_secret;
pub use document::{env_example, man_section};
pub use fault::{ConfigFaults, Fault};
pub use settings::{
    AppEnv, BufferConfig, Config, LogConfig, LogFormat, PostgresConfig, RedisConfig, SessionPolicy,
    Setting, SyncConfig, TokenConfig, TokenKeys,
};
pub use source::Source;
pub use variable::{Kind, Section, Variable, variables};
