//! Does the API describe itself, for tools and for people, rightly and without anything from outside?

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use holdfast_tests::{Answer, Node, Program, python};
use serde_json::Value;

/// Many times what the checks take.
const PATIENCE: Duration = Duration::from_secs(120);

struct Site {
    api: Program,
    _node: Node,
}

async fn start() -> Result<Site> {
    let node = Node::new()?;
    let api = node.start_api().await?;
    Ok(Site { api, _node: node })
}

impl Site {
    async fn get(&self, path: &str) -> Result<Answer> {
        self.api.anonymous().get_outside(path).await
    }

    async fn description(&self) -> Result<Value> {
        Ok(self.get("/openapi.json").await?.expect(200).json().clone())
    }
}

#[tokio::test]
async fn the_description_is_openapi_and_its_examples_are_as_its_schemas_say() -> Result<()> {
    let site = start().await?;
    let description = site.get("/openapi.json").await?;
    let verdict = python::check_description(description.expect(200).text(), PATIENCE).await?;
    assert!(verdict.is_good, "{}", verdict.text);
    Ok(())
}

#[tokio::test]
async fn a_description_that_lies_is_found_out() -> Result<()> {
    let site = start().await?;
    let mut description = site.description().await?;
    let status = description.pointer_mut("/components/schemas/Task/properties/status/enum");
    *status.context("tasks have a status")? = serde_json::json!(["nothing that is shown"]);
    let verdict = python::check_description(&description.to_string(), PATIENCE).await?;
    assert!(!verdict.is_good, "{}", verdict.text);
    Ok(())
}

#[tokio::test]
async fn documents_are_kept_by_their_tag_and_can_be_asked_about() -> Result<()> {
    let site = start().await?;
    for path in [
        "/openapi.json",
        "/docs",
        "/docs/",
        "/docs/swagger-ui-bundle.js",
        "/problems/gone",
    ] {
        let whole = site.get(path).await?;
        assert_eq!(
            whole.expect(200).expect_header("cache-control"),
            "no-cache",
            "{path}"
        );
        let tag = whole.expect_header("etag");
        let again = site
            .api
            .anonymous()
            .outside(path)
            .header("if-none-match", tag);
        let again = site.api.anonymous().send(again).await?;
        assert_eq!(again.expect(304).text(), "", "{path}");
        assert_eq!(again.expect_header("etag"), tag, "{path}");
        let head = site.api.anonymous().head_outside(path).await?;
        assert_eq!(head.expect(200).text(), "", "{path}");
        for header in ["etag", "content-type", "content-security-policy"] {
            assert_eq!(
                head.expect_header(header),
                whole.expect_header(header),
                "{path}"
            );
        }
    }
    Ok(())
}

/// What a page has its browser load: the values of `src` and of `link`'s `href`.
fn loaded(page: &str) -> BTreeSet<String> {
    let of_tag = |tag: &str, attribute: &str| -> Vec<String> {
        let tags = page.split('<').filter(|part| part.starts_with(tag));
        let values = tags.filter_map(|part| part.split_once(&format!(" {attribute}=\"")));
        values
            .filter_map(|(_, rest)| rest.split('"').next())
            .map(str::to_owned)
            .collect()
    };
    let scripts = of_tag("script", "src");
    scripts.into_iter().chain(of_tag("link", "href")).collect()
}

#[tokio::test]
async fn the_page_has_all_it_is_made_of_and_nothing_from_outside() -> Result<()> {
    let site = start().await?;
    let page = site.get("/docs").await?;
    assert_eq!(
        page.expect(200).expect_header("content-type"),
        "text/html; charset=utf-8"
    );
    assert_eq!(page.text(), site.get("/docs/").await?.expect(200).text());
    let policy = page.expect_header("content-security-policy");
    assert!(policy.starts_with("default-src 'none';"), "{policy}");
    assert!(
        !policy.contains("http") && !policy.contains("*"),
        "{policy}"
    );
    let parts = loaded(page.text());
    assert_eq!(parts.len(), 5, "{parts:?}");
    for part in parts {
        assert!(part.starts_with("/docs/"), "{part} is from elsewhere");
        let answer = site.get(&part).await?;
        let content_type = answer.expect(200).expect_header("content-type");
        let expected = match part.rsplit('.').next() {
            Some("js") => "text/javascript; charset=utf-8",
            Some("css") => "text/css; charset=utf-8",
            _ => "image/png",
        };
        assert_eq!(content_type, expected, "{part}");
    }
    Ok(())
}

#[tokio::test]
async fn each_problem_of_the_description_has_a_page() -> Result<()> {
    let site = start().await?;
    let description = site.description().await?;
    let types = description.pointer("/components/schemas/Problem/properties/type/enum");
    let types = types
        .and_then(Value::as_array)
        .context("problems have types")?;
    assert!(types.len() > 20, "{types:?}");
    let list = site.get("/problems/").await?;
    for path in types.iter().filter_map(Value::as_str) {
        assert!(
            list.expect(200).text().contains(&format!("\"{path}\"")),
            "{path} is not listed"
        );
        let page = site.get(path).await?;
        assert_eq!(
            page.expect(200).expect_header("content-type"),
            "text/html; charset=utf-8"
        );
        assert!(
            page.text().contains(path) && page.text().contains("href=\"/docs\""),
            "{path}"
        );
        assert!(!page.text().contains("<script"), "{path}");
    }
    site.get("/problems/of-nobody").await?.expect_problem(404);
    site.get("/docs/nothing.js").await?.expect_problem(404);
    Ok(())
}

#[tokio::test]
async fn who_reads_no_gzip_gets_the_same_unpacked() -> Result<()> {
    let site = start().await?;
    let path = "/docs/swagger-ui.css";
    let plain = site.get(path).await?;
    assert_eq!(plain.expect(200).header("content-encoding"), None);
    assert!(plain.text().contains(".swagger-ui"));
    let packed = site
        .api
        .anonymous()
        .outside(path)
        .header("accept-encoding", "gzip");
    let packed = packed.send().await?;
    assert_eq!(packed.headers()["content-encoding"], "gzip");
    assert_eq!(packed.headers()["etag"], plain.expect_header("etag"));
    let packed = packed.bytes().await?;
    assert!(packed.starts_with(&[0x1f, 0x8b]) && packed.len() * 3 < plain.text().len());
    Ok(())
}
