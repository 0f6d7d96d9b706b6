//! What the tests of the whole, the demo and the benchmark stand on.
//!
//! Nothing here is mocked: PostgreSQL, Redis and Holdfast's own binaries run
//! as processes of their own, on private ports and in private directories, so
//! any number of tests can run side by side. Whatever is started here is ended
//! by its process id when its owner is dropped, also when a test panics.

pub mod account;
pub mod answer;
pub mod certificates;
pub mod client;
pub mod daemon;
pub mod ledger;
pub mod load;
pub mod loop_disk;
pub mod node;
pub mod pgbouncer;
pub mod ports;
pub mod postgres;
mod postgres_standby;
mod postgres_template;
pub mod postgres_tls;
pub mod processes;
pub mod program;
pub mod proxy;
pub mod python;
pub mod raw_http;
pub mod redis;
pub mod redis_cluster;
pub mod redis_service;
pub mod small_disk;
pub mod stall_watch;
pub mod story;
pub mod summary;
pub mod tokens;
pub mod wait;

pub use answer::Answer;
pub use certificates::Authority;
pub use client::Client;
pub use ledger::Ledger;
pub use loop_disk::LoopDisk;
pub use node::{Finished, Node};
pub use pgbouncer::{PgBouncer, Statements};
pub use ports::ReservedPort;
pub use postgres::Postgres;
pub use program::Program;
pub use proxy::{FaultProxy, Flow};
pub use redis::Redis;
pub use redis_cluster::RedisCluster;
pub use redis_service::RedisService;
pub use small_disk::SmallDisk;
pub use stall_watch::StallWatch;
pub use wait::eventually;
