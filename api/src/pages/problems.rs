//! A page about each kind of problem, under the address that is its `type`, and one that lists them.
//!
//! Plain HTML without scripts, made from the same table as the problems themselves. Whatever comes into a page is
//! escaped, though all of it is our own.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use holdfast_shared::repository::Awaited;
use sha2::{Digest, Sha256};

use super::Document;
use crate::openapi::example::REQUEST_ID;
use crate::transport::advice::Advice;
use crate::transport::problem::{Kind, MEDIA_TYPE, TYPE_PREFIX};

/// The pages' style. It is part of each page, and the only thing their policy lets them use.
const STYLE: &str = include_str!("../../assets/problems.css");

/// Where the list is, with and without the slash at its end.
const LIST_PATHS: [&str; 2] = ["/problems", TYPE_PREFIX];

/// Every page, by its path.
pub fn all() -> impl Iterator<Item = (String, Document)> {
    let lists = LIST_PATHS.map(|path| (path.to_owned(), html(&list())));
    let pages = Kind::ALL.map(|kind| (kind.describe().0.to_owned(), html(&page(kind))));
    lists.into_iter().chain(pages)
}

fn html(page: &str) -> Document {
    let style = STANDARD.encode(Sha256::digest(STYLE));
    Document::new("text/html; charset=utf-8", page.to_owned().into())
        .allowing(&format!("style-src 'sha256-{style}'"))
}

fn list() -> String {
    let mut kinds = Kind::ALL;
    kinds.sort_by_key(|kind| kind.describe().2);
    let mut rows = String::new();
    for kind in kinds {
        let (address, title, status) = kind.describe();
        push(
            &mut rows,
            format_args!(
                "<tr><td class=\"status\">{}</td><td><a href=\"{}\">{}</a></td><td>{}</td></tr>\n",
                status.as_u16(),
                escape(address),
                escape(title),
                marked(kind.advice().meaning)
            ),
        );
    }
    let body = format!(
        "<h1>Problems</h1>\n\
         <p>Every failure is answered as a problem document (RFC 9457), <code>{MEDIA_TYPE}</code>. Its <code>type</code> \
         is the address of one of these pages and never changes its meaning, so decide by it; <code>detail</code> is for \
         people.</p>\n\
         <table>\n<thead><tr><th scope=\"col\">status</th><th scope=\"col\">problem</th>\
         <th scope=\"col\">what has happened</th></tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n"
    );
    whole("Problems", &body)
}

fn page(kind: Kind) -> String {
    let (address, title, status) = kind.describe();
    let Advice {
        meaning,
        client,
        operator,
    } = kind.advice();
    let example = kind.example();
    let example = serde_json::to_string_pretty(&example.document(REQUEST_ID))
        .expect("a document of texts and numbers can be written");
    let reason = status.canonical_reason().unwrap_or_default();
    let retry = kind.awaited().map_or_else(String::new, |awaited| {
        format!("<dt>Retry-After</dt><dd>{}</dd>\n", measure_of(awaited))
    });
    let body = format!(
        "<h1>{title}</h1>\n<p class=\"meaning\">{meaning}</p>\n\
         <dl>\n<dt>status</dt><dd>{status} {reason}</dd>\n<dt>type</dt><dd><code>{address}</code></dd>\n{retry}</dl>\n\
         <h2>What to do about it</h2>\n\
         <h3>As a client's developer</h3>\n<p>{client}</p>\n\
         <h3>As an operator</h3>\n<p>{operator}</p>\n\
         <h2>An example</h2>\n<pre><code>HTTP/1.1 {status} {reason}\n\
         Content-Type: {MEDIA_TYPE}\n\n{example}</code></pre>\n",
        title = escape(title),
        meaning = marked(meaning),
        status = status.as_u16(),
        reason = escape(reason),
        address = escape(address),
        client = marked(client),
        operator = marked(operator),
        example = escape(&example),
    );
    whole(title, &body)
}

/// What the wait is measured by.
fn measure_of(awaited: Awaited) -> &'static str {
    match awaited {
        Awaited::Moment => "a second or two",
        Awaited::Postgres | Awaited::Redis => {
            "as long again as the store has been away, up to about a minute"
        }
        Awaited::Room | Awaited::Drain => {
            "as long as the buffer takes to make room at its present pace, up to about a minute"
        }
    }
}

fn whole(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title} · Holdfast</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <nav aria-label=\"Documentation\"><a href=\"/docs\">API</a> <a href=\"{TYPE_PREFIX}\">Problems</a></nav>\n\
         <main>\n{body}</main>\n</body>\n</html>\n",
        title = escape(title),
    )
}

/// Text as HTML, with what is between backquotes as code.
fn marked(text: &str) -> String {
    let mut html = String::new();
    for (index, part) in text.split('`').enumerate() {
        let part = escape(part);
        match index % 2 {
            0 => html.push_str(&part),
            _ => push(&mut html, format_args!("<code>{part}</code>")),
        }
    }
    html
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

fn push(html: &mut String, text: std::fmt::Arguments<'_>) {
    html.write_fmt(text).expect("a string takes any text");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_a_page_and_the_list_leads_to_it() {
        let list = list();
        for kind in Kind::ALL {
            let (address, title, status) = kind.describe();
            assert!(list.contains(&format!("href=\"{address}\"")), "{kind:?}");
            let page = page(kind);
            let named = [
                title,
                address,
                status.as_str(),
                "As an operator",
                "href=\"/docs\"",
            ];
            for text in named {
                assert!(page.contains(text), "{kind:?}: {text}");
            }
        }
    }

    #[test]
    fn whatever_comes_into_a_page_is_escaped() {
        assert_eq!(
            marked("<b> `a & \"b\"`"),
            "&lt;b&gt; <code>a &amp; &quot;b&quot;</code>"
        );
    }
}
