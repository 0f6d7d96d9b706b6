//! Redis: sessions, and which of them were revoked.
//!
//! | key | what |
//! |---|---|
//! | `session:{id}` | hash of a session's fields; expires with its token |
//! | `user_sessions:{user}` | sorted set of the user's session ids by expiry; expires with the last of them |
//! | `revocation:{id}` | there while the session is revoked; expires when the revocation may be forgotten |
//! | `revocations` | sorted set of revocations by position, for nodes that mirror them |
//! | `{revocations}:expiry` | the same by when they may be forgotten, to trim both |
//! | `holdfast:probe:{number}` | what health probes write |
//!
//! The braces of the last but one are part of the key: in a cluster they put it beside the one above it, with which it is
//! changed in one script. Nothing else has to change at once: what is done to several keys is done again as a whole
//! when it failed, which changes nothing where it had been done.
//!
//! The servers may be one, the master of a service that sentinels watch, or a cluster. A `client` makes connections to
//! any of them, a `connection` carries commands out on the servers that have their keys. Both are our own over
//! deadpool-redis' connection to one server (protocol and TLS). The Sentinel client of its redis crate (1.8) waits for the
//! sentinel that is named first, up to a second if that one hangs, which is longer than a whole call may take, and a
//! sentinel is often lost together with the master. Its Cluster client repeats and reconnects by a schedule of its own,
//! holds up every call while it does, and reports a wrong password or certificate as a broken connection; so an error of
//! the deployment would look like an outage.

mod commands;
mod errors;

mod dialer;

mod cluster;
mod sentinel;
mod slots;

mod client;
mod connection;

mod sessions;

pub use sessions::{Redis, RevocationCursor, RevocationPage};
