//! All routes on one page.
//!
//! warp serves, but does not choose the route: one filter takes the request apart, and this table says what answers
//! it. Built from warp's filters, routing would try each route in turn, and "no such path", "other method" and "not
//! let in" would all be rejections that meet in the end and have to be told apart there: an authentication that
//! failed in one route has been seen to be healed by the next. From a table, 404, 405 with its `Allow`, `HEAD`, the
//! labels of the metrics and the API's description all follow, and none of them can drift.
//!
//! Each route also names what the API's description says of it, so none can be added without.
//!
//! A route under the base path has a handler that takes a [`Caller`], which only the token check makes; so none can
//! be reached without it.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, Stream, StreamExt, TryStreamExt};
use http::header::ALLOW;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use percent_encoding::percent_decode_str;
use tracing::Instrument;
use tracing::Span;
use warp::filters::BoxedFilter;
use warp::path::FullPath;
use warp::reply::Response;
use warp::{Buf, Filter};

use crate::handler::{App, Head, documents, health, operations, profile, sessions, tasks};
use crate::middleware::auth::{Caller, authenticate};
use crate::middleware::exchange::{Berth, ConnectionSlot, Exchange};
use crate::openapi::{self, Access, Described, Description, routes as described};
use crate::transport::body::BodyStream;
use crate::transport::header::{ACCEPT_PATCH, accepted_patches};
use crate::transport::problem::{Kind, Problem};
use crate::transport::response;

/// What becomes of a request.
type Answer = BoxFuture<'static, Result<Response, Problem>>;

/// What answers a route.
#[derive(Clone, Copy)]
pub enum Handler {
    /// For everybody; changes nothing.
    Open(fn(Arc<App>, Head) -> Answer),
    /// For the bearer of a token; changes nothing, and ends when the client goes.
    Read(fn(Arc<App>, Caller, Head) -> Answer),
    /// For the bearer of a token; once begun it is finished, whether the client waits for it or not.
    Write(fn(Arc<App>, Caller, Head, BodyStream) -> Answer),
}

/// One route.
#[derive(Clone)]
pub struct Route {
    /// Its method.
    pub method: Method,
    /// Its path; a segment in braces stands for any one that isn't empty.
    pub template: &'static str,
    /// What answers it.
    pub handler: Handler,
    /// What the API's description says of it.
    pub description: fn() -> Description,
}

macro_rules! routes {
    ($($method:ident $template:literal $kind:ident($handler:path $(, $argument:ident)*) $description:path;)+) => {
        &[$(Route {
            method: Method::$method,
            template: $template,
            handler: Handler::$kind(|app $(, $argument)*| $handler(app $(, $argument)*).boxed()),
            description: $description,
        }),+]
    };
}

/// Every route. Of several that match a path the first one counts.
pub static ROUTES: &[Route] = routes! {
    POST   "/api/v1/tasks"            Write(tasks::create, caller, head, body)      described::tasks::create;
    GET    "/api/v1/tasks"            Read(tasks::list, caller, head)               described::tasks::list;
    GET    "/api/v1/tasks/{id}"       Read(tasks::read, caller, head)               described::tasks::read;
    PUT    "/api/v1/tasks/{id}"       Write(tasks::replace, caller, head, body)     described::tasks::replace;
    PATCH  "/api/v1/tasks/{id}"       Write(tasks::patch, caller, head, body)       described::tasks::patch;
    DELETE "/api/v1/tasks/{id}"       Write(tasks::delete, caller, head, body)      described::tasks::delete;
    GET    "/api/v1/profile"          Read(profile::read, caller, head)             described::profile::read;
    PUT    "/api/v1/profile"          Write(profile::replace, caller, head, body)   described::profile::replace;
    PATCH  "/api/v1/profile"          Write(profile::patch, caller, head, body)     described::profile::patch;
    GET    "/api/v1/operations"       Read(operations::list, caller, head)          described::operations::list;
    GET    "/api/v1/operations/{id}"  Read(operations::read, caller, head)          described::operations::read;
    GET    "/api/v1/sessions"         Read(sessions::list, caller, head)            described::sessions::list;
    DELETE "/api/v1/sessions/current" Write(sessions::log_out, caller, head, body)  described::sessions::log_out;
    DELETE "/api/v1/sessions/{id}"    Write(sessions::revoke, caller, head, body)   described::sessions::revoke;
    GET    "/livez"                   Open(health::livez, head)                     described::health::livez;
    GET    "/readyz"                  Open(health::readyz, head)                    described::health::readyz;
    GET    "/health"                  Open(health::health, head)                    described::health::health;
    GET    "/metrics"                 Open(health::metrics, head)                   described::health::metrics;
    GET    "/openapi.json"            Open(documents::read, head)                   described::documents::openapi;
    GET    "/docs"                    Open(documents::read, head)                   described::documents::docs;
    GET    "/docs/"                   Open(documents::read, head)                   described::documents::docs_directory;
    GET    "/docs/{asset}"            Open(documents::read, head)                   described::documents::docs_asset;
    GET    "/problems"                Open(documents::read, head)                   described::documents::problems;
    GET    "/problems/"               Open(documents::read, head)                   described::documents::problems_directory;
    GET    "/problems/{name}"         Open(documents::read, head)                   described::documents::problem;
};

/// The API's description of itself, as JSON.
pub fn openapi() -> Vec<u8> {
    let described = ROUTES.iter().map(|route| Described {
        method: &route.method,
        template: route.template,
        access: match route.handler {
            Handler::Open(_) => Access::Everybody,
            Handler::Read(_) | Handler::Write(_) => Access::Bearer,
        },
        description: (route.description)(),
    });
    serde_json::to_vec(&openapi::document(described)).expect("a description is JSON")
}

/// What the table says of a method and a path.
enum Choice {
    Route(&'static Route, String),
    Options(&'static Route),
    OtherMethods(&'static Route),
    Nothing,
}

/// The one filter: it takes any request apart and answers it. It rejects nothing a client can send.
pub fn filter(app: Arc<App>) -> BoxedFilter<(Response,)> {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    warp::method()
        .and(warp::path::full())
        .and(query)
        .and(warp::header::headers_cloned())
        .and(warp::ext::get::<Arc<Exchange>>())
        .and(warp::body::stream())
        .then(
            move |method: Method, path: FullPath, query, headers, exchange, body| {
                let path = path.as_str().to_owned();
                let head = Head {
                    method,
                    path,
                    parameter: String::new(),
                    query,
                    headers,
                };
                answer(Arc::clone(&app), head, boxed(body), exchange)
            },
        )
        .recover(|rejection: warp::Rejection| async move {
            tracing::error!(?rejection, "the framework refused a request");
            Ok::<_, std::convert::Infallible>(Problem::internal().into_response(""))
        })
        .unify()
        .boxed()
}

fn boxed(body: impl Stream<Item = Result<impl Buf, warp::Error>> + Send + 'static) -> BodyStream {
    body.map_ok(|mut chunk| chunk.copy_to_bytes(chunk.remaining()))
        .boxed()
}

async fn answer(
    app: Arc<App>,
    mut head: Head,
    body: BodyStream,
    exchange: Arc<Exchange>,
) -> Response {
    let answered = match choose(&head.method, &head.path) {
        Choice::Route(route, parameter) => {
            exchange.set_route(route.template);
            head.parameter = parameter;
            run(&app, route.handler, head, body, &exchange).await
        }
        Choice::Options(route) => {
            exchange.set_route(route.template);
            Ok(options(&head.path))
        }
        Choice::OtherMethods(route) => {
            exchange.set_route(route.template);
            Err(method_not_allowed(&head.path))
        }
        // Of the server as a whole (RFC 9110 §9.3.7).
        Choice::Nothing if head.method == Method::OPTIONS && head.path == "*" => {
            Ok(response::empty(StatusCode::NO_CONTENT))
        }
        Choice::Nothing => Err(Problem::not_found()),
    };
    answered.unwrap_or_else(|problem| {
        let problem = match problem.awaited() {
            Some(awaited) => problem.retry_after(app.repository.retry_after(awaited)),
            None => problem,
        };
        problem.into_response(exchange.request_id())
    })
}

async fn run(
    app: &Arc<App>,
    handler: Handler,
    head: Head,
    body: BodyStream,
    exchange: &Exchange,
) -> Result<Response, Problem> {
    match handler {
        Handler::Open(handler) => handler(Arc::clone(app), head).await,
        Handler::Read(handler) => {
            let caller = admit(app, &head.headers, exchange).await?;
            handler(Arc::clone(app), caller, head).await
        }
        Handler::Write(handler) => {
            let caller = admit(app, &head.headers, exchange).await?;
            let write = handler(Arc::clone(app), caller, head, body);
            finish(write, exchange.slot()).await
        }
    }
}

async fn admit(app: &App, headers: &HeaderMap, exchange: &Exchange) -> Result<Caller, Problem> {
    if exchange.berth() == Berth::Spare {
        let detail = "this node has as many connections as it takes; try again later";
        return Err(Problem::new(Kind::TooManyConnections, detail));
    }
    let caller = authenticate(&app.verifier, &app.repository, headers).await?;
    Span::current().record("user_id", caller.user.as_str());
    if let Some(limit) = &app.rate_limit {
        let standing = limit.count(&caller.user);
        exchange.set_standing(standing);
        standing.admit()?;
    }
    Ok(caller)
}

/// Runs a write on its own, so that a client that hangs up doesn't stop it halfway, which would cost a store
/// connection each time. It keeps the client's place among the connections until it is done, so that there are never
/// more of them than connections, and the end of the process waits for them.
async fn finish(write: Answer, slot: ConnectionSlot) -> Result<Response, Problem> {
    let kept = async move {
        let answer = write.await;
        drop(slot);
        answer
    };
    match tokio::spawn(kept.in_current_span()).await {
        Ok(answer) => answer,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_cancelled) => Err(Problem::internal()),
        },
    }
}

fn choose(method: &Method, path: &str) -> Choice {
    // Whatever can be read can be asked about (RFC 9110 §9.3.2); the server leaves the body out.
    let wanted = if *method == Method::HEAD {
        &Method::GET
    } else {
        method
    };
    let mut matching = ROUTES
        .iter()
        .filter_map(|route| Some((route, parameter(route.template, path)?)))
        .peekable();
    let Some((first, _)) = matching.peek() else {
        return Choice::Nothing;
    };
    let first = *first;
    match matching.find(|(route, _)| route.method == *wanted) {
        Some((route, parameter)) => Choice::Route(route, parameter),
        None if *method == Method::OPTIONS => Choice::Options(first),
        None => Choice::OtherMethods(first),
    }
}

/// What stands for the template's parameter in a path that matches; an empty text where it has none.
fn parameter(template: &str, path: &str) -> Option<String> {
    let mut parameter = String::new();
    let (mut expected, mut given) = (template.split('/'), path.split('/'));
    loop {
        match (expected.next(), given.next()) {
            (None, None) => return Some(parameter),
            (Some(name), Some(segment)) if name.starts_with('{') && !segment.is_empty() => {
                parameter = percent_decode_str(segment).decode_utf8().ok()?.into_owned();
            }
            (Some(name), Some(segment)) if name == segment => {}
            _ => return None,
        }
    }
}

/// The methods of a path, for `Allow`.
fn allowed(path: &str) -> String {
    let mut methods: Vec<&str> = vec!["OPTIONS"];
    for route in ROUTES
        .iter()
        .filter(|route| parameter(route.template, path).is_some())
    {
        methods.push(route.method.as_str());
        if route.method == Method::GET {
            methods.push("HEAD");
        }
    }
    methods.sort_unstable();
    methods.dedup();
    methods.join(", ")
}

/// What a path can be asked for (RFC 9110 §9.3.7). Not a browser's question in advance: that never comes this far.
fn options(path: &str) -> Response {
    let mut answer = response::empty(StatusCode::NO_CONTENT);
    let value = HeaderValue::try_from(allowed(path)).expect("methods are ASCII");
    let headers = answer.headers_mut();
    headers.insert(ALLOW, value);
    if takes(path, &Method::PATCH) {
        headers.insert(ACCEPT_PATCH, accepted_patches());
    }
    answer
}

fn takes(path: &str, method: &Method) -> bool {
    let mut routes = ROUTES.iter().filter(|route| route.method == *method);
    routes.any(|route| parameter(route.template, path).is_some())
}

fn method_not_allowed(path: &str) -> Problem {
    let allowed = allowed(path);
    let value = HeaderValue::try_from(&allowed).expect("methods are ASCII");
    Problem::new(Kind::MethodNotAllowed, format!("this path takes {allowed}"))
        .with_header(ALLOW, value)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn chosen(method: &str, path: &str) -> Option<(&'static str, String)> {
        match choose(&method.parse().expect("a method"), path) {
            Choice::Route(route, parameter) => Some((route.template, parameter)),
            _ => None,
        }
    }

    #[test]
    fn a_path_and_a_method_choose_one_route() {
        assert_eq!(
            chosen("POST", "/api/v1/tasks"),
            Some(("/api/v1/tasks", String::new()))
        );
        assert_eq!(
            chosen("GET", "/api/v1/tasks/x"),
            Some(("/api/v1/tasks/{id}", "x".to_owned()))
        );
        assert_eq!(
            chosen("HEAD", "/api/v1/tasks/x"),
            Some(("/api/v1/tasks/{id}", "x".to_owned()))
        );
        assert_eq!(
            chosen("DELETE", "/api/v1/sessions/current"),
            Some(("/api/v1/sessions/current", String::new()))
        );
        assert_eq!(
            chosen("DELETE", "/api/v1/sessions/a%2Fb%7C"),
            Some(("/api/v1/sessions/{id}", "a/b|".to_owned()))
        );
    }

    #[test]
    fn what_is_not_in_the_table_is_nothing() {
        for path in [
            "/",
            "",
            "/api/v1",
            "/api/v1/",
            "/api/v1/tasks/",
            "/api/v1/tasks/a/b",
            "//api/v1/tasks",
            "/API/v1/tasks",
            "/api/v1/tasks/%FF",
            "*",
        ] {
            assert!(
                matches!(choose(&Method::GET, path), Choice::Nothing),
                "{path}"
            );
        }
    }

    #[test]
    fn another_method_is_told_which_there_are() {
        assert!(matches!(
            choose(&Method::POST, "/livez"),
            Choice::OtherMethods(_)
        ));
        assert!(matches!(
            choose(&Method::OPTIONS, "/api/v1/tasks"),
            Choice::Options(_)
        ));
        assert!(matches!(
            choose(&Method::OPTIONS, "/api/v1/task"),
            Choice::Nothing
        ));
        assert_eq!(allowed("/api/v1/tasks"), "GET, HEAD, OPTIONS, POST");
        assert_eq!(
            allowed("/api/v1/tasks/x"),
            "DELETE, GET, HEAD, OPTIONS, PATCH, PUT"
        );
        assert_eq!(allowed("/api/v1/sessions/current"), "DELETE, OPTIONS");
    }

    #[test]
    fn only_what_is_outside_the_base_path_is_open() {
        let mut seen = HashSet::new();
        for route in ROUTES {
            let is_open = matches!(route.handler, Handler::Open(_));
            assert_eq!(
                is_open,
                !route.template.starts_with("/api/v1/"),
                "{}",
                route.template
            );
            let is_read = matches!(route.handler, Handler::Read(_) | Handler::Open(_));
            assert_eq!(is_read, route.method == Method::GET, "{}", route.template);
            assert!(
                seen.insert((route.method.clone(), route.template)),
                "{} twice",
                route.template
            );
        }
    }
}
