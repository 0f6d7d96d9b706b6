//! The page that shows the API's description and lets people try requests: Swagger UI, which its crate carries, under a
//! page and a start of our own.
//!
//! Its own page is not used: it loads its parts relative to a path that ends in a slash, and brings a bar that asks for
//! the address of any description.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use utoipa_swagger_ui::Config;

use super::{Document, OPENAPI};

/// Where the page is, with and without the slash at its end.
const PATHS: [&str; 2] = ["/docs", "/docs/"];

/// What the page is made of, by its name under `/docs/`.
pub const ASSETS: [&str; 5] = [
    "swagger-ui-bundle.js",
    "swagger-ui.css",
    "favicon-32x32.png",
    START,
    STYLE,
];

/// Starts Swagger UI on our description.
const START: &str = "holdfast.js";
/// What the page adds to its style.
const STYLE: &str = "holdfast.css";

/// The page runs its own scripts, shows its own pictures, those within its style and those an answer holds, and asks its
/// own origin only.
const SOURCES: &str =
    "script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'";

/// The page under both its paths, and its parts.
pub fn all() -> impl Iterator<Item = (String, Document)> {
    let page = || Bytes::from_static(include_bytes!("../../assets/docs.html"));
    let pages = PATHS.map(|path| {
        let document = Document::new("text/html; charset=utf-8", page());
        (path.to_owned(), document.allowing(SOURCES))
    });
    let assets = ASSETS.map(|name| (format!("/docs/{name}"), asset(name)));
    pages.into_iter().chain(assets)
}

fn asset(name: &'static str) -> Document {
    let media_type = match name.rsplit('.').next() {
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        _ => "image/png",
    };
    match name {
        START => Document::new(media_type, include_str!("../../assets/docs.js").into()),
        STYLE => Document::new(media_type, include_str!("../../assets/docs.css").into()),
        _ => of_swagger_ui(name, media_type),
    }
}

/// A file of Swagger UI's.
fn of_swagger_ui(name: &'static str, media_type: &'static str) -> Document {
    let config: Arc<Config<'static>> = Arc::new(Config::from(OPENAPI));
    let served = utoipa_swagger_ui::serve(name, config);
    let file = served.ok().flatten().expect("Swagger UI has this file");
    let bytes = match file.bytes {
        Cow::Borrowed(bytes) => Bytes::from_static(bytes),
        Cow::Owned(bytes) => bytes.into(),
    };
    Document::new(media_type, bytes)
}
