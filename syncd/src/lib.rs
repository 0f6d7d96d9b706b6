//! `syncd`: drains the buffer into PostgreSQL and Redis, and lets people look at it and act on it.
//!
//! [`daemon::run`] is the daemon; everything it is made of can be driven without it. `main.rs` only parses the command
//! line and turns a [`Failure`] into an exit code.

pub mod board;
pub mod cli;
pub mod daemon;
pub mod drain;
pub mod engine;
pub mod failure;
pub mod gate;
pub mod lock;
pub mod lookout;
mod metrics;
pub mod reload;
pub mod retention;
pub mod signals;
pub mod status;
pub mod status_page;
pub mod systemd;
pub mod upkeep;
pub mod worker;

pub use daemon::run;
pub use failure::Failure;
