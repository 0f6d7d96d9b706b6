//! What follows when PostgreSQL refuses: each class of failure is provoked in a real server, under the real `syncd` and
//! API, and what must come of it is looked at from outside. Where a counted try would be wrong, nodes have
//! `MAX_RETRY_ATTEMPTS=1`: then the first one shows as a dead letter.

mod conditions;
mod items;
mod keys;
mod letters;
mod locks;
mod site;
mod systemic;
