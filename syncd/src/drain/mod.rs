//! The heart: from the buffer's queues into the stores.
//!
//! Each lane drains by itself: read a batch in queue order ([`Drain::next`]), apply it in one transaction of the store
//! ([`Drain::work`]), settle it in one of the buffer. What a failure means is decided here and nowhere
//! else; SQLSTATEs and the like have been sorted into four classes by the store (`FailureClass`):
//!
//! | class | what it means for the lane | for the item |
//! |---|---|---|
//! | unavailable | wait until the store is back | nothing is counted |
//! | contended | find the resource, put it off for a moment ([`parking`]); many at once: pause the lane | nothing is counted |
//! | item | find the item; many and no success: as systemic ([`suspicion`]) | one try is used up ([`retry`]), at the end it is dead, and with a create all that waits for it ([`orphans`]) |
//! | systemic | stop, say so, try again each cycle | nothing is counted |
//!
//! An answer is not a failure: what the store refuses for a reason of the client's is dead at once, but for an update
//! of what isn't there yet, whose create may come from another node: that uses up its tries first.
//!
//! Nothing here sleeps, waits for signals or knows of processes; `worker.rs` does.

mod batch_size;
mod courtesy;
mod deaths;
mod judgement;
mod lane;
mod orphans;
mod parking;
mod rate;
mod retry;
mod sink;
mod suspicion;
pub mod time;

#[cfg(test)]
pub(crate) mod rig;
#[cfg(test)]
mod tests;

pub use deaths::Cause;
pub use judgement::{Trouble, with_causes};
pub use lane::{Drain, Next, Step};
pub use rate::{RateMeter, eta};
pub use sink::{PostgresSink, RedisSink, Sink, Standing};
