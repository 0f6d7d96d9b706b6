//! Does Holdfast work with Redis as it is run in the field: behind Sentinel, as
//! a Cluster, over TLS? And do revocations hold whatever Redis loses?

mod cluster;
mod lost;
mod sentinel;
mod site;
mod stores;
mod tls;
