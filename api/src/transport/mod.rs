//! What goes over the wire: requests turned into checked values, values turned into answers, failures into problems.

pub mod advice;
pub mod body;
pub mod condition;
pub mod cursor;
pub mod document;
pub mod header;
pub mod json;
pub mod prefer;
pub mod problem;
pub mod query;
pub mod request;
pub mod response;
pub mod view;
