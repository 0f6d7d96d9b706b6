//! `REDIS_URL`: which servers hold the sessions, as whom to log in, and whether in TLS.
//!
//! | form | what |
//! |---|---|
//! | `redis://user:password@host:6379/database` | one server |
//! | `redis+unix:///path/to/socket?db=&user=&pass=` | one server on this machine |
//! | `redis+sentinel://user:password@host:26379,host:26379/service/database` | whichever server is master of the service at the time |
//! | `redis+cluster://user:password@host:6379,host:6379` | a cluster, by some of its nodes |
//!
//! Ports, credentials and database may be left out. `rediss` in place of `redis` means TLS to every server and
//! sentinel; `valkey` and `valkeys` mean the same as these. User and password are those of the servers that hold the
//! data; the sentinels' own are the parameters `sentinel_username` and `sentinel_password`. These are the forms that
//! Python's and Redis' own libraries gave currency; no standard has any but the first. The parameters of TLS are called
//! as in `DATABASE_URL`.
//!
//! A fault never repeats a part of the URL but the name of a parameter: a password with an unescaped character
//! may have come to lie in any other.

use std::collections::BTreeMap;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use url::{Host, form_urlencoded};

use super::certificates::{self, Problem};
use super::settings::{RedisAddress, RedisConfig, RedisLogin, RedisServers, RedisTls};

/// Most servers that are named: each is asked at the same time. Three or five are usual.
const MAX_HOSTS: usize = 32;

const SERVER_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

const FORMS: &str = "write redis://user:password@host:port/database, redis+unix:///path/to/socket, \
    redis+sentinel://user:password@host:port,host:port/service/database or \
    redis+cluster://user:password@host:port,host:port, with rediss for redis where TLS is wanted";

const ESCAPES: &str = "write host, host:port or [IPv6 address]:port, and percent-encode special characters of user \
    and password: % as %25, @ as %40, : as %3A, / as %2F, ? as %3F, # as %23";

const PASSWORD: &str = "write user:password@, or :password@ for the default user";

/// Parameters that name the files of TLS.
const TLS_PARAMETERS: &[&str] = &["sslrootcert", "sslcert", "sslkey"];
const SENTINEL_PARAMETERS: &[&str] = &["sentinel_username", "sentinel_password"];
const SOCKET_PARAMETERS: &[&str] = &["db", "user", "pass"];

/// What other clients call what is meant here, and what to do about it.
const FOREIGN_PARAMETERS: &[(&str, &str)] = &[
    ("ssl_ca_certs", "write sslrootcert"),
    ("ssl_certfile", "write sslcert"),
    ("ssl_keyfile", "write sslkey"),
    (
        "ssl_cert_reqs",
        "remove it: the certificate is always checked",
    ),
    ("verifyPeer", "remove it: the certificate is always checked"),
    ("db", "write the database behind the hosts, as host:port/2"),
    (
        "database",
        "write the database behind the hosts, as host:port/2",
    ),
    ("addr", "write all hosts in one place, separated by commas"),
    ("node", "write all hosts in one place, separated by commas"),
    ("sentinelMasterId", FORMS),
    ("master_name", FORMS),
];

/// Which kind of servers a scheme stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Single,
    Socket,
    Sentinel,
    Cluster,
}

/// Parameters by name.
type Parameters = BTreeMap<String, String>;

/// Reads a URL, and the files it names.
///
/// # Errors
/// Everything that is wrong; only the hosts, if there is no making sense of them.
pub(super) fn parse(text: &str) -> Result<RedisConfig, Vec<Problem>> {
    let wrong = |problem: &str| vec![(problem.to_owned(), FORMS)];
    let parts = Parts::of(text).ok_or_else(|| wrong("is not a URL"))?;
    let (kind, encryption) =
        scheme(parts.scheme).ok_or_else(|| wrong("doesn't begin with a scheme of Redis"))?;
    let addresses = match kind {
        Kind::Socket => vec![socket(&parts)?],
        Kind::Sentinel => addresses(&parts, SENTINEL_PORT)?,
        Kind::Single | Kind::Cluster => addresses(&parts, SERVER_PORT)?,
    };
    let mut problems = Vec::new();
    let read = Reading {
        kind,
        parts: &parts,
        problems: &mut problems,
    };
    let config = read.config(addresses, encryption);
    if problems.is_empty() {
        Ok(config)
    } else {
        Err(problems)
    }
}

/// A URL of Redis as it may be shown: whom one would log in as, and all parameters, are left out.
pub(super) fn without_credentials(text: &str) -> String {
    let Some(parts) = Parts::of(text) else {
        return "***".to_owned();
    };
    let user = if parts.login.is_some() { "***@" } else { "" };
    let parameters = if parts.query.is_some() { "?***" } else { "" };
    let (scheme, hosts, path) = (parts.scheme, parts.hosts, parts.path);
    format!("{scheme}://{user}{hosts}{path}{parameters}")
}

/// The parts of a URL. Not the `url` crate's, which knows but one host.
struct Parts<'u> {
    scheme: &'u str,
    login: Option<&'u str>,
    hosts: &'u str,
    path: &'u str,
    query: Option<&'u str>,
    fragment: Option<&'u str>,
}

impl<'u> Parts<'u> {
    fn of(text: &'u str) -> Option<Parts<'u>> {
        let (scheme, rest) = text.split_once("://")?;
        let (rest, fragment) = split(rest, '#');
        let (rest, query) = split(rest, '?');
        let end = rest.find('/').unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (login, hosts) = match authority.rsplit_once('@') {
            Some((login, hosts)) => (Some(login), hosts),
            None => (None, authority),
        };
        Some(Parts {
            scheme,
            login,
            hosts,
            path,
            query,
            fragment,
        })
    }
}

fn split(text: &str, mark: char) -> (&str, Option<&str>) {
    match text.split_once(mark) {
        Some((before, after)) => (before, Some(after)),
        None => (text, None),
    }
}

fn scheme(text: &str) -> Option<(Kind, Option<RedisTls>)> {
    let text = text.to_ascii_lowercase();
    let (base, kind) = split(&text, '+');
    let encryption = match base {
        "redis" | "valkey" => None,
        "rediss" | "valkeys" => Some(RedisTls::default()),
        "unix" if kind.is_none() => return Some((Kind::Socket, None)),
        _ => return None,
    };
    let kind = match kind {
        None => Kind::Single,
        Some("sentinel") => Kind::Sentinel,
        Some("cluster") => Kind::Cluster,
        Some("unix") if encryption.is_none() => Kind::Socket,
        Some(_) => return None,
    };
    Some((kind, encryption))
}

fn socket(parts: &Parts) -> Result<RedisAddress, Vec<Problem>> {
    let path = decoded(parts.path).filter(|path| path.len() > 1);
    match path {
        Some(path) if parts.hosts.is_empty() && parts.login.is_none() => {
            Ok(RedisAddress::Socket(PathBuf::from(path)))
        }
        _ => {
            let remedy = "write redis+unix:///path/to/socket, with db, user and pass as parameters";
            Err(vec![("doesn't name a socket".to_owned(), remedy)])
        }
    }
}

fn addresses(parts: &Parts, default_port: u16) -> Result<Vec<RedisAddress>, Vec<Problem>> {
    let hosts: Vec<&str> = parts.hosts.split(',').collect();
    let count = hosts.len();
    if count > MAX_HOSTS {
        let problem = format!("names {count} hosts, more than {MAX_HOSTS}");
        return Err(vec![(problem, "name some of them: they know the others")]);
    }
    let (mut addresses, mut problems) = (Vec::new(), Vec::new());
    for (number, host) in (1..).zip(hosts) {
        match address(host, default_port) {
            Some(address) => addresses.push(address),
            None => problems.push((
                format!("host {number} of {count} is not one that can be connected to"),
                ESCAPES,
            )),
        }
    }
    if problems.is_empty() {
        Ok(addresses)
    } else {
        Err(problems)
    }
}

/// A name or an address, and a port. The addresses that mean any are none to connect to.
fn address(text: &str, default_port: u16) -> Option<RedisAddress> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let host = match Host::parse(host).ok()? {
        Host::Domain(name) if name.bytes().all(is_of_host_name) => name,
        Host::Ipv4(address) if !address.is_unspecified() => address.to_string(),
        Host::Ipv6(address) if !address.is_unspecified() => address.to_string(),
        Host::Domain(_) | Host::Ipv4(_) | Host::Ipv6(_) => return None,
    };
    let port = match port {
        Some(port) => port.parse().ok().filter(|port| *port > 0)?,
        None => default_port,
    };
    Some(RedisAddress::Tcp(host, port))
}

/// The underscore is of no host name, but of those of Docker's.
fn is_of_host_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._".contains(&byte)
}

fn decoded(text: &str) -> Option<String> {
    let decoded = percent_decode_str(text).decode_utf8().ok()?;
    Some(decoded.into_owned())
}

/// The reading of a URL whose hosts are known.
struct Reading<'r> {
    kind: Kind,
    parts: &'r Parts<'r>,
    problems: &'r mut Vec<Problem>,
}

impl Reading<'_> {
    /// The configuration, of no use if there are problems.
    fn config(mut self, addresses: Vec<RedisAddress>, encryption: Option<RedisTls>) -> RedisConfig {
        self.refuse_fragment();
        let parameters = self.parameters(encryption.is_some().then_some(TLS_PARAMETERS));
        let (service, database) = self.path(&parameters);
        let login = match self.kind {
            Kind::Socket => self.login_of(parameters.get("user"), parameters.get("pass")),
            _ => self.login(),
        };
        RedisConfig {
            servers: self.servers(addresses, service, &parameters),
            login,
            database,
            tls: encryption.map(|_| certificates::of_redis(&parameters, self.problems)),
        }
    }

    fn refuse(&mut self, problem: impl Into<String>, remedy: &'static str) {
        self.problems.push((problem.into(), remedy));
    }

    fn servers(
        &mut self,
        mut addresses: Vec<RedisAddress>,
        service: String,
        parameters: &Parameters,
    ) -> RedisServers {
        match self.kind {
            Kind::Cluster => RedisServers::Cluster(addresses),
            Kind::Sentinel => RedisServers::Sentinel {
                sentinels: addresses,
                service,
                login: self.login_of(
                    parameters.get("sentinel_username"),
                    parameters.get("sentinel_password"),
                ),
            },
            Kind::Single | Kind::Socket => {
                if addresses.len() > 1 {
                    let remedy = "name one, or begin with redis+sentinel:// or redis+cluster://";
                    self.refuse("names several hosts", remedy);
                }
                RedisServers::Single(addresses.swap_remove(0))
            }
        }
    }

    fn refuse_fragment(&mut self) {
        match self.parts.fragment {
            Some("insecure") => self.refuse(
                "asks that the certificate isn't checked",
                "remove #insecure, and name the authority's certificate in sslrootcert",
            ),
            Some(_) => self.refuse("has an unescaped #", "write it as %23"),
            None => {}
        }
    }

    /// Those that have a meaning here.
    fn parameters(&mut self, tls: Option<&[&str]>) -> Parameters {
        let of_kind = match self.kind {
            Kind::Sentinel => SENTINEL_PARAMETERS,
            Kind::Socket => SOCKET_PARAMETERS,
            Kind::Single | Kind::Cluster => &[],
        };
        let mut parameters = Parameters::new();
        let query = self.parts.query.unwrap_or_default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            if !of_kind.contains(&&*name) && !tls.unwrap_or_default().contains(&&*name) {
                let (problem, remedy) = unknown_parameter(&name);
                self.refuse(problem, remedy);
            } else if parameters
                .insert(name.clone().into_owned(), value.into_owned())
                .is_some()
            {
                self.refuse(format!("has {name} twice"), "give it once");
            }
        }
        parameters
    }

    /// The service, where there is one, and the database.
    fn path(&mut self, parameters: &Parameters) -> (String, u32) {
        let path = match self.kind {
            Kind::Socket => parameters.get("db").map_or("", String::as_str),
            _ => self.parts.path.trim_matches('/'),
        };
        let (service, database) = match self.kind {
            Kind::Sentinel => split(path, '/'),
            _ => ("", Some(path).filter(|path| !path.is_empty())),
        };
        if self.kind == Kind::Sentinel && !is_service(service, database) {
            let remedy = "write it behind the hosts, as host:26379,host:26379/mymaster/0";
            self.refuse("names no service of Sentinel's", remedy);
        }
        let number: Option<u32> = database.map_or(Some(0), |text| text.parse().ok());
        if number.is_none() {
            self.refuse("has a database that is no number", ESCAPES);
        }
        if self.kind == Kind::Cluster && number.is_some_and(|number| number > 0) {
            self.refuse(
                "names a database of a cluster",
                "remove it: a cluster has only one",
            );
        }
        (service.to_owned(), number.unwrap_or_default())
    }

    fn login(&mut self) -> RedisLogin {
        let Some(login) = self.parts.login else {
            return RedisLogin::default();
        };
        let (user, password) = split(login, ':');
        let (Some(user), Some(password)) = (decoded(user), decoded(password.unwrap_or_default()))
        else {
            self.refuse("has a user or password that is not UTF-8", ESCAPES);
            return RedisLogin::default();
        };
        self.login_of(Some(&user), Some(&password))
    }

    /// Redis has no user without a password.
    fn login_of(&mut self, user: Option<&String>, password: Option<&String>) -> RedisLogin {
        let user = user.filter(|user| !user.is_empty());
        let password = password.filter(|password| !password.is_empty());
        if user.is_some() && password.is_none() {
            self.refuse("names a user without a password", PASSWORD);
        }
        RedisLogin {
            user: user.cloned(),
            password: password.map(|password| password.as_str().into()),
        }
    }
}

/// The characters are those that Sentinel allows. A number alone will have been meant as the database.
fn is_service(service: &str, database: Option<&str>) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    let is_number = service.bytes().all(|byte| byte.is_ascii_digit());
    service.bytes().all(allowed) && (!is_number || database.is_some() && !service.is_empty())
}

fn unknown_parameter(name: &str) -> Problem {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    if !name.bytes().all(is_name) {
        return ("has a parameter that is none".to_owned(), ESCAPES);
    }
    if TLS_PARAMETERS.contains(&name) {
        let problem = format!("has {name}, which is of use with TLS only");
        return (problem, "write rediss in place of redis, or remove it");
    }
    let foreign = FOREIGN_PARAMETERS.iter().find(|(known, _)| *known == name);
    (
        format!("has the parameter {name:?}, which would do nothing"),
        foreign.map_or("remove it", |(_, remedy)| remedy),
    )
}
