//! The stores: PostgreSQL for tasks, profiles and what became of operations, Redis for sessions and revocations.
//!
//! A store answers or fails; it never waits for better times, retries an outage, or looks elsewhere. Each call is
//! bounded in time as a whole. What a failure means for the caller is its [`FailureClass`].

mod error;
mod pool;
pub mod postgres;
pub mod redis;

pub use error::{FailureClass, StoreError};
