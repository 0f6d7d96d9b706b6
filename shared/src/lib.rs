//! What Holdfast's two processes have in common: the domain, the buffer file, the stores, and the one place that
//! chooses between them.

pub mod buffer;
pub mod clock;
pub mod config;
pub mod domain;
pub mod health;
pub mod repository;
pub mod seeded;
pub mod store;
pub mod telemetry;
