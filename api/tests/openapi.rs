//! The description against the code it describes: its paths against the table of routes, its schemas against what is
//! shown and what is taken, its limits against the parsers.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_api::middleware::guard::ANSWER_DEADLINE;
use holdfast_api::router::{self, Handler, ROUTES};
use holdfast_api::transport::body::{BODY_DEADLINE, MAX_BODY_BYTES};
use holdfast_api::transport::problem::{Kind, Problem};
use holdfast_api::transport::query::MAX_LIMIT;
use holdfast_api::transport::{query, request};
use serde_json::{Map, Value, json};

fn description() -> Value {
    serde_json::from_slice(&router::openapi()).expect("JSON")
}

/// Every operation, with its path and method.
fn operations(description: &Value) -> Vec<(String, String, Value)> {
    let paths = description["paths"].as_object().expect("an object");
    let of_path = |(path, item): (&String, &Value)| -> Vec<_> {
        let item = item.as_object().expect("an object");
        let operations = item
            .iter()
            .map(|(method, operation)| (path.clone(), method.to_uppercase(), operation.clone()));
        operations.collect()
    };
    paths.iter().flat_map(of_path).collect()
}

fn schema<'a>(description: &'a Value, name: &str) -> &'a Value {
    &description["components"]["schemas"][name]
}

fn names(object: &Value) -> BTreeSet<String> {
    let members = object.as_object().expect("an object");
    members.keys().cloned().collect()
}

fn texts(list: &Value) -> BTreeSet<String> {
    let items = list.as_array().into_iter().flatten();
    items.filter_map(Value::as_str).map(str::to_owned).collect()
}

#[test]
fn the_paths_are_the_table_of_routes() {
    let described: BTreeSet<(String, String)> = operations(&description())
        .into_iter()
        .map(|(path, method, _)| (path, method))
        .collect();
    let mut served = BTreeSet::new();
    for route in ROUTES {
        served.insert((route.template.to_owned(), route.method.to_string()));
        if route.method == http::Method::GET {
            served.insert((route.template.to_owned(), "HEAD".to_owned()));
        }
    }
    assert_eq!(described, served);
}

#[test]
fn each_operation_has_a_name_of_its_own_and_the_parameters_of_its_path() {
    let mut ids = BTreeSet::new();
    for (path, method, operation) in operations(&description()) {
        let id = operation["operationId"]
            .as_str()
            .expect("a name")
            .to_owned();
        assert!(ids.insert(id.clone()), "{id} twice");
        let parameters = operation["parameters"].as_array().expect("a list");
        let in_path: BTreeSet<&str> = parameters
            .iter()
            .filter(|parameter| parameter["in"] == "path")
            .filter_map(|parameter| parameter["name"].as_str())
            .collect();
        let in_template: BTreeSet<&str> = path
            .split('/')
            .filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'))
            .collect();
        assert_eq!(in_path, in_template, "{method} {path}");
        let responses = names(&operation["responses"]);
        assert!(
            responses.iter().any(|status| status.starts_with('2')),
            "{method} {path}"
        );
        assert!(
            responses.contains("500") && responses.contains("503"),
            "{method} {path}"
        );
    }
}

#[test]
fn what_needs_a_token_says_so() {
    let described = operations(&description());
    for route in ROUTES {
        let (_, _, operation) = described
            .iter()
            .find(|(path, method, _)| path == route.template && method == route.method.as_str())
            .expect("it is described");
        let is_open = matches!(route.handler, Handler::Open(_));
        let security = operation["security"].as_array().expect("a list");
        assert_eq!(security.is_empty(), is_open, "{}", route.template);
        assert_eq!(
            operation["responses"]["401"].is_null(),
            is_open,
            "{}",
            route.template
        );
    }
}

#[test]
fn links_lead_to_operations_and_their_parameters() {
    let all = operations(&description());
    let parameters: BTreeMap<&str, BTreeSet<&str>> = all
        .iter()
        .map(|(_, _, operation)| {
            let parameters = operation["parameters"].as_array().into_iter().flatten();
            let names = parameters.filter_map(|parameter| parameter["name"].as_str());
            (
                operation["operationId"].as_str().expect("a name"),
                names.collect(),
            )
        })
        .collect();
    let mut count = 0;
    for (path, _, operation) in &all {
        for response in operation["responses"]
            .as_object()
            .into_iter()
            .flat_map(Map::values)
        {
            for link in response["links"]
                .as_object()
                .into_iter()
                .flat_map(Map::values)
            {
                let target = link["operationId"].as_str().expect("a name");
                let taken = parameters
                    .get(target)
                    .unwrap_or_else(|| panic!("{path}: no {target}"));
                for name in names(&link["parameters"]) {
                    assert!(
                        taken.contains(name.as_str()),
                        "{path}: {target} takes no {name}"
                    );
                }
                count += 1;
            }
        }
    }
    assert!(count > 5, "hardly any links");
}

#[test]
fn every_kind_of_problem_is_among_the_answers() {
    let description = description();
    let responses = description["components"]["responses"].to_string();
    for kind in Kind::ALL {
        let (r#type, ..) = kind.describe();
        assert!(responses.contains(&format!("\"{type}\"")), "{kind:?}");
    }
    let types = texts(&schema(&description, "Problem")["properties"]["type"]["enum"]);
    assert_eq!(types.len(), Kind::ALL.len());
}

#[test]
fn what_is_shown_has_the_fields_of_its_schema_and_all_of_them() {
    let description = description();
    let shown = |pointer: &str| description.pointer(pointer).expect("an example").clone();
    let body = "content/application~1json/examples";
    let answer = |path: &str, example: &str| {
        let path = path.replace('/', "~1");
        shown(&format!(
            "/paths/{path}/get/responses/200/{body}/{example}/value"
        ))
    };
    let pages = [
        ("Task", answer("/api/v1/tasks/{id}", "synced")),
        ("TaskPage", answer("/api/v1/tasks", "synced")),
        ("Profile", answer("/api/v1/profile", "synced")),
        ("Operation", answer("/api/v1/operations/{id}", "dead")),
        ("OperationPage", answer("/api/v1/operations", "pending")),
        ("SessionPage", answer("/api/v1/sessions", "one")),
        (
            "Session",
            answer("/api/v1/sessions", "one")["items"][0].clone(),
        ),
        ("Health", answer("/health", "online")),
    ];
    for (name, shown) in pages {
        let schema = schema(&description, name);
        assert_eq!(names(&schema["properties"]), names(&shown), "{name}");
        assert_eq!(texts(&schema["required"]), names(&shown), "{name}");
    }
}

#[test]
fn every_json_body_has_an_example() {
    for (path, method, operation) in operations(&description()) {
        let request = operation["requestBody"]["content"].clone();
        let answers = operation["responses"]
            .as_object()
            .expect("an object")
            .values();
        let contents = answers
            .map(|answer| answer["content"].clone())
            .chain([request]);
        for content in contents.filter(Value::is_object) {
            for (media_type, body) in content.as_object().expect("an object") {
                let has_example = body["examples"]
                    .as_object()
                    .is_some_and(|all| !all.is_empty());
                let is_json = media_type.ends_with("json");
                assert!(has_example || !is_json, "{method} {path}: {media_type}");
            }
        }
    }
}

#[test]
fn numbers_in_texts_are_those_of_the_code() {
    let says = |kind: Kind, number: u64| {
        let meaning = kind.advice().meaning;
        assert!(
            meaning.contains(&format!(" {number} ")),
            "{kind:?}: {meaning}"
        );
    };
    says(Kind::BodyTooLarge, MAX_BODY_BYTES as u64);
    says(Kind::BodyTimeout, BODY_DEADLINE.as_secs());
    says(Kind::TimedOut, ANSWER_DEADLINE.as_secs());
    let introduction = description()["info"]["description"].to_string();
    assert!(introduction.contains(&format!(" {MAX_LIMIT} items")));
    let limit = Kind::BadParameter.example();
    assert!(
        limit.detail().ends_with(&format!(" {MAX_LIMIT}")),
        "{}",
        limit.detail()
    );
}

type Parser = fn(&[u8]) -> Result<(), Problem>;

/// Each body that is taken: its schema, what reads it, and what it can't be without.
fn bodies() -> [(&'static str, Parser, Value); 4] {
    [
        (
            "NewTask",
            |body| request::new_task(body).map(drop),
            json!({"title": "x"}),
        ),
        (
            "TaskPatch",
            |body| request::task_patch(body).map(drop),
            json!({}),
        ),
        (
            "NewProfile",
            |body| request::whole_profile(body).map(drop),
            json!({}),
        ),
        (
            "ProfilePatch",
            |body| request::profile_patch(body).map(drop),
            json!({}),
        ),
    ]
}

/// A value that each field takes.
fn good(field: &str) -> Value {
    match field {
        "status" => json!("done"),
        "priority" => json!(1),
        "due_at" => json!("2026-01-01T00:00:00Z"),
        "tags" => json!(["a"]),
        "email" => json!("ann@example.org"),
        "avatar_url" => json!("https://example.org/ann.png"),
        "locale" => json!("de-CH"),
        "timezone" => json!("Europe/Zurich"),
        "preferences" => json!({"a": null}),
        _ => json!("x"),
    }
}

fn with(base: &Value, field: &str, value: Value) -> Vec<u8> {
    let mut body = base.clone();
    body[field] = value;
    body.to_string().into_bytes()
}

#[test]
fn each_field_of_a_body_is_read_and_no_other_is() {
    let description = description();
    for (name, parse, base) in bodies() {
        let schema = schema(&description, name);
        assert_eq!(schema["additionalProperties"], false, "{name}");
        assert_eq!(texts(&schema["required"]), names(&base), "{name}");
        let fields = names(&schema["properties"]);
        for field in &fields {
            let read = parse(&with(&base, field, good(field)));
            assert!(read.is_ok(), "{name}: {field}: {read:?}");
        }
        // What others of these bodies have, and what is only shown, is refused.
        for other in [
            "id",
            "title",
            "email",
            "sync_state",
            "created_at",
            "completed_at",
        ] {
            let is_read = parse(&with(&base, other, good(other))).is_ok();
            assert_eq!(is_read, fields.contains(other), "{name}: {other}");
        }
    }
}

#[test]
fn null_and_the_longest_text_are_taken_where_the_schema_says_so() {
    let description = description();
    let mut lengths = 0;
    for (name, parse, base) in bodies() {
        for (field, schema) in schema(&description, name)["properties"]
            .as_object()
            .expect("an object")
        {
            let nullable = schema.to_string().contains("\"null\"");
            let taken = parse(&with(&base, field, Value::Null)).is_ok();
            assert_eq!(taken, nullable, "{name}: {field}: null");
            // A text with a form of its own can't be made up to a length here.
            let Some(longest) = schema["maxLength"].as_u64().filter(|_| is_free(schema)) else {
                continue;
            };
            let text = |length: u64| json!("é".repeat(length as usize));
            assert!(
                parse(&with(&base, field, text(longest))).is_ok(),
                "{name}: {field}"
            );
            assert!(
                parse(&with(&base, field, text(longest + 1))).is_err(),
                "{name}: {field}"
            );
            lengths += 1;
        }
    }
    assert_eq!(
        lengths, 6,
        "descriptions, names and words about oneself, each twice"
    );
}

/// Whether a text may have any characters.
fn is_free(schema: &Value) -> bool {
    schema["pattern"] == r"^[^\u0000]*$"
}

#[test]
fn each_query_parameter_is_read() {
    type Reader = fn(&str) -> Result<(), Problem>;
    let readers: [(&str, Reader); 3] = [
        ("/api/v1/tasks", |raw| query::tasks(raw).map(drop)),
        ("/api/v1/operations", |raw| query::operations(raw).map(drop)),
        ("/api/v1/operations/{id}", |raw| query::wait(raw).map(drop)),
    ];
    let description = description();
    for (path, read) in readers {
        let parameters = description["paths"][path]["get"]["parameters"]
            .as_array()
            .expect("a list");
        for parameter in parameters
            .iter()
            .filter(|parameter| parameter["in"] == "query")
        {
            let name = parameter["name"].as_str().expect("a name");
            for value in values(&parameter["schema"]) {
                let read = read(&format!("{name}={value}"));
                assert!(
                    read.is_ok() || name == "cursor",
                    "{path}: {name}={value}: {read:?}"
                );
                // A made-up cursor is refused as one that is known.
                assert!(read.is_ok() || !read.expect_err("refused").detail().contains("not known"));
            }
        }
        assert!(read("colour=red").is_err());
    }
}

/// Values that a schema allows: its words, its bounds, or one of its form.
fn values(schema: &Value) -> Vec<String> {
    if let Some(words) = schema["enum"].as_array() {
        return words
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect();
    }
    match (
        &schema["minimum"],
        &schema["maximum"],
        schema["format"].as_str(),
    ) {
        (Value::Number(least), Value::Number(most), _) => vec![least.to_string(), most.to_string()],
        (_, _, Some("date-time")) => vec!["2026-01-01T00:00:00Z".to_owned()],
        _ => vec!["x".to_owned()],
    }
}
