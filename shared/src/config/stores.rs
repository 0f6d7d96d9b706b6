//! The addresses of the stores: checked here as far as one can without connecting, since a mistyped URL looks
//! exactly like an outage later on, and an outage is what this program hides.

use secrecy::ExposeSecret;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::Url;

use super::certificates;
use super::fault::quoted;
use super::redis_url;
use super::settings::{PostgresConfig, RedisConfig};
use super::values::Values;
use super::variable::{
    DATABASE_URL, DB_HOST, DB_MAX_CONNECTIONS, DB_NAME, DB_PASSWORD, DB_PORT, DB_SSLMODE,
    DB_STATEMENT_CACHE, DB_USER, REDIS_URL, Variable,
};

/// Connection parameters in a URL that the driver acts on; it silently ignores all others.
const URL_PARAMETERS: &[&str] = &[
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

const DATABASE_URL_REMEDY: &str =
    "write postgres://user:password@host:port/name, with special characters percent-encoded";

const HOST_REMEDY: &str = "write postgres://user:password@host:port/name, or postgres:///name?host=/run/postgresql \
    for a socket";

/// PostgreSQL, by `DATABASE_URL` or by `DB_HOST` and its companions; `None` if neither is set.
pub(super) fn postgres(values: &mut Values) -> Option<PostgresConfig> {
    let max_connections = values.number(&DB_MAX_CONNECTIONS);
    let statement_cache = values.number(&DB_STATEMENT_CACHE);
    let options = if values.is_set(&DATABASE_URL) {
        refuse_if_set(values, &DB_HOST, BESIDE_URL);
        refuse_companions(values, BESIDE_URL);
        by_url(values)?
    } else if values.is_set(&DB_HOST) {
        by_parts(values)
    } else {
        refuse_companions(values, WITHOUT_HOST);
        return None;
    };
    let options = options.statement_cache_capacity(statement_cache);
    Some(PostgresConfig {
        options,
        max_connections,
        statement_cache,
    })
}

/// What is wrong, and what to do.
type Refusal = (&'static str, &'static str);

const BESIDE_URL: Refusal = (
    "set together with DATABASE_URL",
    "put it into the URL, or leave the URL out",
);
const WITHOUT_HOST: Refusal = (
    "has no effect without DB_HOST",
    "set DB_HOST too, or remove it",
);

fn refuse_companions(values: &mut Values, refusal: Refusal) {
    for part in [DB_PORT, DB_USER, DB_PASSWORD, DB_NAME, DB_SSLMODE] {
        refuse_if_set(values, &part, refusal);
    }
}

fn refuse_if_set(values: &mut Values, variable: &Variable, (problem, remedy): Refusal) {
    if values.is_set(variable) {
        values.refuse(variable, problem, remedy);
    }
}

fn by_parts(values: &mut Values) -> PgConnectOptions {
    let host = values.text(&DB_HOST).unwrap_or_default();
    if host.contains([',', ':', '@', ' ']) && host.parse::<std::net::Ipv6Addr>().is_err() {
        let problem = format!("{} is not one host", quoted(&host));
        values.refuse(
            &DB_HOST,
            &problem,
            "write one name or address, and the port in DB_PORT",
        );
    }
    let mode = values
        .choice(&DB_SSLMODE, |word| Some(Tls(word.parse().ok()?)))
        .0;
    let options = PgConnectOptions::new_without_pgpass()
        .host(&host)
        .port(values.number(&DB_PORT))
        .username(&values.text(&DB_USER).unwrap_or_default())
        .database(&values.text(&DB_NAME).unwrap_or_default())
        .ssl_mode(mode);
    match values.secret(&DB_PASSWORD) {
        Some(password) => options.password(password.expose_secret()),
        None => options,
    }
}

/// The driver's modes but `allow`, which would try without TLS first and so protects nothing.
#[derive(Default)]
struct Tls(PgSslMode);

fn by_url(values: &mut Values) -> Option<PgConnectOptions> {
    let text = values.secret(&DATABASE_URL)?;
    let Ok(url) = Url::parse(text.expose_secret()) else {
        values.refuse(&DATABASE_URL, "is not a URL", DATABASE_URL_REMEDY);
        return None;
    };
    for problem in database_url_problems(&url) {
        values.refuse(&DATABASE_URL, &problem.0, problem.1);
    }
    // The driver's own message may quote any part of the URL, so it is left out.
    let Ok(options) = text.expose_secret().parse::<PgConnectOptions>() else {
        values.refuse(
            &DATABASE_URL,
            "is not accepted by the driver",
            DATABASE_URL_REMEDY,
        );
        return None;
    };
    for problem in certificates::of_postgres(&url, options.get_ssl_mode()) {
        values.refuse(&DATABASE_URL, &problem.0, problem.1);
    }
    Some(options)
}

fn database_url_problems(url: &Url) -> Vec<(String, &'static str)> {
    let mut problems = Vec::new();
    if !matches!(url.scheme(), "postgres" | "postgresql") {
        problems.push((
            "doesn't begin with postgres://".to_owned(),
            DATABASE_URL_REMEDY,
        ));
    }
    if url.fragment().is_some() {
        problems.push(("has an unescaped #".to_owned(), "write it as %23"));
    }
    let hosts = hosts(url);
    if hosts.is_empty() {
        problems.push(("names no host".to_owned(), HOST_REMEDY));
    }
    if url.port() == Some(0) {
        problems.push(port_0());
    }
    if hosts.iter().any(|host| host.contains(',')) {
        problems.push((
            "names several hosts".to_owned(),
            "write one name that leads to the primary, such as a proxy's or a virtual address",
        ));
    }
    for (key, value) in url.query_pairs() {
        problems.extend(parameter_problem(&key, &value));
    }
    problems
}

fn port_0() -> (String, &'static str) {
    ("names port 0".to_owned(), "leave it out, or write 5432")
}

/// The hosts it names, also in parameters; the driver would connect to the last, or, without any, to wherever its own
/// environment says.
fn hosts(url: &Url) -> Vec<String> {
    let parameters = url
        .query_pairs()
        .filter(|(key, _)| matches!(&**key, "host" | "hostaddr"))
        .map(|(_, value)| value.into_owned());
    let host = url.host_str().map(str::to_owned);
    host.into_iter()
        .chain(parameters)
        .filter(|host| !host.is_empty())
        .collect()
}

fn parameter_problem(key: &str, value: &str) -> Option<(String, &'static str)> {
    if key == "statement-cache-capacity" {
        return Some((
            format!("has the parameter {key}"),
            "set DB_STATEMENT_CACHE instead",
        ));
    }
    if !URL_PARAMETERS.contains(&key) && !key.starts_with("options[") {
        let problem = format!("has the parameter {}, which would do nothing", quoted(key));
        return Some((problem, "remove it"));
    }
    if key == "port" && value.parse::<u16>() == Ok(0) {
        return Some(port_0());
    }
    let is_mode = |value: &str| {
        let mode = value.parse::<PgSslMode>();
        mode.is_ok_and(|mode| !matches!(mode, PgSslMode::Allow))
    };
    if matches!(key, "sslmode" | "ssl-mode") && !is_mode(value) {
        let problem = format!("has the sslmode {}", quoted(value));
        return Some((
            problem,
            "write disable, prefer, require, verify-ca or verify-full",
        ));
    }
    None
}

/// Redis; `None` if it isn't set.
pub(super) fn redis(values: &mut Values) -> Option<RedisConfig> {
    let url = values.secret(&REDIS_URL)?;
    match redis_url::parse(url.expose_secret()) {
        Ok(config) => Some(config),
        Err(problems) => {
            for (problem, remedy) in &problems {
                values.refuse(&REDIS_URL, problem, remedy);
            }
            None
        }
    }
}

/// A database's URL as it may be shown: whom one would log in as, and all parameters, are left out.
pub(super) fn without_credentials(text: &str) -> String {
    let Ok(mut url) = Url::parse(text) else {
        return "***".to_owned();
    };
    let named = !url.username().is_empty() || url.password().is_some();
    let parameters = if url.query().is_some() { "?***" } else { "" };
    url.set_query(None);
    url.set_fragment(None);
    let host = url.host_str().unwrap_or_default();
    let user = if named { "***@" } else { "" };
    let port = url
        .port()
        .map(|port| format!(":{port}"))
        .unwrap_or_default();
    format!(
        "{}://{user}{host}{port}{}{parameters}",
        url.scheme(),
        url.path()
    )
}
