//! PostgreSQL: tasks, profiles, and what became of operations. SQL is found here and nowhere else.

mod client;
mod connection;
#[cfg(feature = "seeded-bugs")]
mod seeded;
mod session;

mod apply;
mod recall;
mod resources;

mod ledger;
mod list;
mod locks;
mod profile;
mod task;
mod values;

mod errors;
mod migrate;
mod probe;
mod tls;

pub use apply::Applied;
pub use client::{KeyRecord, Postgres};
pub use errors::NEEDS_MIGRATION;
pub use ledger::RECORD_DAYS;
pub use migrate::MigrationReport;
pub use session::Timeouts;
