//! What syncd serves on `SYNCD_ADDR`: its probes, its metrics, and a page for people that shows and changes nothing.
//!
//! The page is plain HTML without scripts and refers to no other address. Every text in it is escaped. Connections are
//! few, short, and each answers one request, so that nobody outside can take anything from the drain.

use std::convert::Infallible;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use holdfast_shared::domain::Timestamp;
use holdfast_shared::health::StoreHealth;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, X_CONTENT_TYPE_OPTIONS,
};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::board::{Board, Report};
use crate::signals::told_to_stop;
use crate::status::{LaneState, Sources, Status, StoreState, or_unknown};

/// Most connections at once: a few probes, a scraper, some people.
const MOST_CONNECTIONS: usize = 64;

/// How long a request's head may take.
const HEAD_DEADLINE: Duration = Duration::from_secs(5);

/// How long a connection may take altogether.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(15);

/// How long to leave accepting alone after it failed: out of file descriptors, trying at once again helps nobody.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Where the answers come from.
pub struct Source {
    /// What syncd knows about itself.
    pub board: Arc<Board>,
    /// PostgreSQL's watch; `None` where it isn't configured.
    pub postgres: Option<StoreHealth>,
    /// Redis' watch; `None` where it isn't configured.
    pub redis: Option<StoreHealth>,
    /// Most items that may wait.
    pub max_items: u64,
    /// Prometheus' text.
    pub render_metrics: Box<dyn Fn() -> String + Send + Sync>,
}

impl Source {
    fn status(&self, report: &Report) -> Status {
        let buffer = match (&report.buffer_error, &report.buffer) {
            (None, Some(snapshot)) => Ok(snapshot.as_ref()),
            (Some(error), _) => Err(error.clone()),
            (None, None) => Err("starting".to_owned()),
        };
        Status::new(&Sources {
            postgres: store_state(self.postgres.as_ref()),
            redis: store_state(self.redis.as_ref()),
            buffer,
            max_items: self.max_items,
            running: Some(true),
            per_second: [report.lanes[0].per_second, report.lanes[1].per_second],
            eta: [report.lanes[0].eta, report.lanes[1].eta],
            now: Timestamp::from(chrono::Utc::now()),
        })
    }
}

fn store_state(health: Option<&StoreHealth>) -> StoreState {
    health.map_or_else(StoreState::disabled, |health| {
        StoreState::watched(&health.status(), health.is_up())
    })
}

/// Serves until told to stop. Requests under way are cut off then.
pub async fn serve(listener: TcpListener, source: Source, mut stop: watch::Receiver<bool>) {
    let source = Arc::new(source);
    let permits = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let accepting = async {
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let source = Arc::clone(&source);
                    tokio::spawn(async move {
                        converse(stream, source).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "can't accept a connection to the status page");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        () = told_to_stop(&mut stop) => {}
    }
}

/// Answers one request.
async fn converse(stream: TcpStream, source: Arc<Source>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer(request.method(), request.uri().path(), &source);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_DEADLINE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "connection to the status page ended"),
        Err(_) => tracing::debug!("connection to the status page took too long"),
    }
}

fn answer(method: &Method, path: &str, source: &Source) -> Response<Full<Bytes>> {
    let known = matches!(path, "/" | "/livez" | "/readyz" | "/metrics");
    if !known {
        return respond(
            StatusCode::NOT_FOUND,
            TEXT,
            "there is /, /livez, /readyz and /metrics\n".to_owned(),
        );
    }
    if *method != Method::GET && *method != Method::HEAD {
        let mut refusal = respond(
            StatusCode::METHOD_NOT_ALLOWED,
            TEXT,
            "only GET and HEAD\n".to_owned(),
        );
        refusal
            .headers_mut()
            .insert(ALLOW, http::HeaderValue::from_static("GET, HEAD"));
        return refusal;
    }
    match path {
        "/livez" => respond(StatusCode::OK, TEXT, "alive\n".to_owned()),
        "/readyz" => readiness(&source.board.report()),
        "/metrics" => respond(StatusCode::OK, METRICS, (source.render_metrics)()),
        _ => {
            let report = source.board.report();
            respond(StatusCode::OK, HTML, page(&source.status(&report), &report))
        }
    }
}

/// Ready means that the buffer can be used. Stores that are away are what syncd is there for.
fn readiness(report: &Report) -> Response<Full<Bytes>> {
    match (&report.buffer_error, &report.buffer) {
        (None, Some(_)) => respond(
            StatusCode::OK,
            TEXT,
            format!("ready: {}\n", report.status_line()),
        ),
        (Some(_), _) => respond(
            StatusCode::SERVICE_UNAVAILABLE,
            TEXT,
            "the buffer can't be used\n".to_owned(),
        ),
        (None, None) => respond(
            StatusCode::SERVICE_UNAVAILABLE,
            TEXT,
            "starting\n".to_owned(),
        ),
    }
}

fn respond(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let headers: [(HeaderName, &'static str); 4] = [
        (CONTENT_TYPE, kind),
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (
            CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'",
        ),
    ];
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    for (name, value) in headers {
        response
            .headers_mut()
            .insert(name, http::HeaderValue::from_static(value));
    }
    response
}

const HEAD: &str = "<!doctype html>
<html lang=\"en\">
<head>
<meta charset=\"utf-8\">
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">
<meta http-equiv=\"refresh\" content=\"5\">
<title>syncd</title>
<style>
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 50rem; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: 0 0 2rem; }
caption { text-align: left; font-weight: bold; padding: .3rem 0; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #8886; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
</style>
</head>
<body>
";

/// The page.
fn page(status: &Status, report: &Report) -> String {
    let mut html = HEAD.to_owned();
    push(
        &mut html,
        format_args!(
            "<h1>syncd: {}</h1>\n",
            escape(&status.status.replace('_', " "))
        ),
    );
    push(
        &mut html,
        format_args!("<p>{}</p>\n", escape(&report.status_line())),
    );
    html.push_str("<table>\n<caption>Stores</caption>\n");
    html.push_str(
        "<tr><th>store</th><th>state</th><th>since</th><th class=\"number\">latency</th></tr>\n",
    );
    push_store(&mut html, "PostgreSQL", &status.stores.postgres);
    push_store(&mut html, "Redis", &status.stores.redis);
    html.push_str("</table>\n<table>\n<caption>Waiting, by priority</caption>\n<tr><th>lane</th>");
    for heading in ["1", "2", "3", "4", "5", "all", "per second", "time left"] {
        push(
            &mut html,
            format_args!("<th class=\"number\">{heading}</th>"),
        );
    }
    html.push_str("</tr>\n");
    push_lane(
        &mut html,
        "PostgreSQL (tasks, profiles)",
        &status.lanes.postgres,
    );
    push_lane(&mut html, "Redis (revocations)", &status.lanes.redis);
    html.push_str("</table>\n");
    push_buffer(&mut html, status);
    push(
        &mut html,
        format_args!(
            "<p><small>syncd {}</small></p>\n</body>\n</html>\n",
            escape(status.version)
        ),
    );
    html
}

fn push_store(html: &mut String, name: &str, store: &StoreState) {
    let state = match &store.error {
        Some(error) => format!("{}: {error}", store.state),
        None => store.state.to_owned(),
    };
    let since = store.since.as_deref().unwrap_or("");
    let latency = store
        .latency_ms
        .map(|latency| format!("{latency} ms"))
        .unwrap_or_default();
    push(
        html,
        format_args!(
            "<tr><td>{name}</td><td>{}</td><td>{}</td><td class=\"number\">{latency}</td></tr>\n",
            escape(&state),
            escape(since)
        ),
    );
}

fn push_lane(html: &mut String, name: &str, lane: &LaneState) {
    push(html, format_args!("<tr><td>{name}</td>"));
    for number in lane.numbers() {
        push(
            html,
            format_args!("<td class=\"number\">{}</td>", or_unknown(number)),
        );
    }
    let eta = lane
        .eta_seconds
        .map_or_else(|| "unknown".to_owned(), |eta| format!("{eta} s"));
    push(
        html,
        format_args!(
            "<td class=\"number\">{}</td><td class=\"number\">{eta}</td></tr>\n",
            lane.items_per_second
        ),
    );
}

fn push_buffer(html: &mut String, status: &Status) {
    html.push_str("<table>\n<caption>Buffer</caption>\n");
    let buffer = &status.buffer;
    let rows = [
        ("state", buffer.state.to_owned()),
        (
            "items waiting",
            format!(
                "{} of at most {}",
                or_unknown(buffer.pending),
                buffer.max_items
            ),
        ),
        (
            "oldest",
            format!("{} s", or_unknown(buffer.oldest_age_seconds)),
        ),
        ("size", format!("{} bytes", or_unknown(buffer.bytes))),
        (
            "dead letters",
            format!("{} (syncd dead list)", or_unknown(buffer.dead)),
        ),
    ];
    for (name, value) in rows {
        push(
            html,
            format_args!("<tr><th>{name}</th><td>{}</td></tr>\n", escape(&value)),
        );
    }
    html.push_str("</table>\n");
}

fn push(html: &mut String, text: std::fmt::Arguments<'_>) {
    html.write_fmt(text)
        .expect("writing into a String never fails");
}

/// A text as it may stand between tags and in quoted attributes.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn source(board: Arc<Board>) -> Source {
        let render_metrics = Box::new(|| "holdfast_store_up 1\n".to_owned());
        Source {
            board,
            postgres: None,
            redis: None,
            max_items: 10,
            render_metrics,
        }
    }

    async fn ask(method: Method, path: &str, board: &Arc<Board>) -> (StatusCode, String) {
        let response = answer(&method, path, &source(Arc::clone(board)));
        let status = response.status();
        let body = response
            .into_body()
            .collect()
            .await
            .expect("a body in memory")
            .to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    #[tokio::test]
    async fn readiness_follows_the_buffer_and_life_does_not() {
        let board = Arc::<Board>::default();
        assert_eq!(
            ask(Method::GET, "/readyz", &board).await.0,
            StatusCode::SERVICE_UNAVAILABLE
        );
        board.see_buffer(Err("gone".to_owned()));
        assert_eq!(
            ask(Method::GET, "/readyz", &board).await.0,
            StatusCode::SERVICE_UNAVAILABLE
        );
        assert_eq!(ask(Method::GET, "/livez", &board).await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn the_page_is_escaped_and_refers_to_no_other_address() {
        let board = Arc::<Board>::default();
        board.see_buffer(Err("<script>alert('x')</script>".to_owned()));
        let (status, html) = ask(Method::GET, "/", &board).await;
        assert_eq!(status, StatusCode::OK);
        assert!(
            html.contains("&lt;script&gt;") && !html.contains("<script"),
            "{html}"
        );
        assert!(
            !html.contains("://") && !html.contains("src=") && !html.contains("href="),
            "{html}"
        );
    }

    #[tokio::test]
    async fn other_methods_and_paths_are_refused() {
        let board = Arc::<Board>::default();
        assert_eq!(
            ask(Method::POST, "/", &board).await.0,
            StatusCode::METHOD_NOT_ALLOWED
        );
        assert_eq!(
            ask(Method::GET, "/dead", &board).await.0,
            StatusCode::NOT_FOUND
        );
        assert!(
            ask(Method::GET, "/metrics", &board)
                .await
                .1
                .contains("holdfast_store_up")
        );
    }

    #[tokio::test]
    async fn a_head_has_no_body_and_the_connection_ends() -> std::io::Result<()> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let (give_stop, stop) = watch::channel(false);
        let serving = tokio::spawn(serve(listener, source(Arc::default()), stop));
        let mut stream = TcpStream::connect(address).await?;
        stream
            .write_all(b"HEAD /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            .await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        assert!(
            text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\n"),
            "{text}"
        );
        give_stop.send_replace(true);
        assert!(serving.await.is_ok());
        Ok(())
    }
}
