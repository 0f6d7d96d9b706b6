//! The API's description of itself (OpenAPI 3.1), made from what serves: the routes come from the router's table, which
//! demands a description of each; limits and words from the constants and enumerations that requests are read by;
//! examples from the code that writes answers.
//!
//! In reading order: [`document`] puts all of it together, [`description`] says what there is to say of a route, and
//! [`routes`] says it. What must not be here: anything that answers a request.

pub mod document;

pub mod description;
pub mod routes;

pub mod answer;
pub mod example;
pub mod header;
pub mod parameter;

mod profile;
pub mod resource;
mod schema;
mod task;

pub use description::Description;
pub use document::{Access, Described, document};
