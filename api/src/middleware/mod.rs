//! What happens to every request, whatever it is about: who sent it, under which name it is logged, and what it may
//! take of our time.

pub mod auth;
pub mod compression;
pub mod cors;
pub mod exchange;
pub mod guard;
pub mod key;
pub mod key_set;
pub mod rate;
pub mod token;
