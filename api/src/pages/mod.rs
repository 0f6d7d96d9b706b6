//! Documents for people and tools, all made once, at the start: the API's description, the page that shows it, and a page
//! about each problem. None of them refers to anything outside, and their policies forbid browsers to load any.

pub mod docs;
mod document;
mod problems;

use std::collections::HashMap;

pub use document::Document;

/// Where the API's description is.
pub const OPENAPI: &str = "/openapi.json";

/// Every document, by its path.
pub struct Documents(HashMap<String, Document>);

impl Documents {
    /// All of them, given the API's description as JSON.
    pub fn new(openapi: Vec<u8>) -> Self {
        let description = Document::new("application/json", openapi.into());
        let all = [(OPENAPI.to_owned(), description)]
            .into_iter()
            .chain(docs::all())
            .chain(problems::all());
        Documents(all.collect())
    }

    /// The one under this path.
    pub fn find(&self, path: &str) -> Option<&Document> {
        self.0.get(path)
    }
}
