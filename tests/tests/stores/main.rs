//! Do the stores keep what they promise? The stores as the programs use them, against real servers of their own.

mod apply;
mod convergence;
mod failures;
mod health;
mod list;
mod operations;
mod others;
mod outages;
mod pooler;
mod redis;
mod schema;
mod stories;
mod support;
