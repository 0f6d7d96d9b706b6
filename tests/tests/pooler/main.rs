//! Does everything hold behind PgBouncer in transaction mode, where no session is one's own? With a PgBouncer that loses
//! prepared statements and `DB_STATEMENT_CACHE=0`, and with one that keeps them and the default.

mod service;
mod site;
mod warnings;
