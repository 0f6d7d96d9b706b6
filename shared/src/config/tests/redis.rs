//! What `REDIS_URL` may be, and what is said of everything else.

use std::path::PathBuf;

use secrecy::ExposeSecret;

use super::{faults, file, load, only_fault};
use crate::config::{RedisAddress, RedisConfig, RedisLogin, RedisServers, RedisTls};

fn read(url: &str) -> RedisConfig {
    load(&[("REDIS_URL", url)]).redis.expect("set")
}

fn tcp(host: &str, port: u16) -> RedisAddress {
    RedisAddress::Tcp(host.to_owned(), port)
}

fn single(host: &str, port: u16) -> RedisServers {
    RedisServers::Single(tcp(host, port))
}

/// What they show is all there is in them, but for passwords, of which these have none.
#[track_caller]
fn assert_same(servers: &RedisServers, expected: &RedisServers) {
    assert_eq!(format!("{servers:?}"), format!("{expected:?}"));
}

/// User and password.
fn shown(login: &RedisLogin) -> (Option<&str>, Option<&str>) {
    let password = login.password.as_ref();
    (
        login.user.as_deref(),
        password.map(|password| password.expose_secret()),
    )
}

#[test]
fn one_server_is_named_as_everywhere() {
    for (url, servers, login, database) in [
        ("redis://redis", single("redis", 6379), (None, None), 0),
        (
            "REDIS://Redis.Example/",
            single("redis.example", 6379),
            (None, None),
            0,
        ),
        (
            "valkey://my_valkey:1/3",
            single("my_valkey", 1),
            (None, None),
            3,
        ),
        (
            "redis://127.0.0.1/2",
            single("127.0.0.1", 6379),
            (None, None),
            2,
        ),
        ("redis://[::1]", single("::1", 6379), (None, None), 0),
        (
            "redis://[2001:db8::7]:6380/",
            single("2001:db8::7", 6380),
            (None, None),
            0,
        ),
        (
            "redis://:pa%20ss@redis",
            single("redis", 6379),
            (None, Some("pa ss")),
            0,
        ),
        (
            "redis://me%40home:p%40s%3As%2F%C3%BC+%25@redis:6380/2",
            single("redis", 6380),
            (Some("me@home"), Some("p@s:s/ü+%")),
            2,
        ),
        (
            "redis://:a:b@c@redis",
            single("redis", 6379),
            (None, Some("a:b@c")),
            0,
        ),
        ("redis://:@redis", single("redis", 6379), (None, None), 0),
    ] {
        let config = read(url);
        assert_same(&config.servers, &servers);
        assert_eq!(shown(&config.login), login, "{url}");
        assert_eq!((config.database, config.tls), (database, None), "{url}");
    }
}

#[test]
fn a_socket_is_named_by_its_path() {
    for (url, path, login, database) in [
        (
            "redis+unix:///run/redis.sock",
            "/run/redis.sock",
            (None, None),
            0,
        ),
        ("unix:///run/my%20redis", "/run/my redis", (None, None), 0),
        (
            "valkey+unix:///v?db=3&user=me&pass=p%40ss",
            "/v",
            (Some("me"), Some("p@ss")),
            3,
        ),
    ] {
        let config = read(url);
        let address = RedisAddress::Socket(PathBuf::from(path));
        assert_same(&config.servers, &RedisServers::Single(address));
        assert_eq!(shown(&config.login), login, "{url}");
        assert_eq!(config.database, database, "{url}");
    }
}

#[test]
fn a_service_of_sentinels_has_hosts_a_name_and_two_logins() {
    let url = "redis+sentinel://me:mine@one,two:26380,[::1]/my-master_1.0/2\
        ?sentinel_username=guard&sentinel_password=gu%2Brd";
    let config = read(url);
    let RedisServers::Sentinel {
        sentinels,
        service,
        login,
    } = config.servers
    else {
        panic!("no sentinels");
    };
    assert_eq!(
        sentinels,
        [tcp("one", 26379), tcp("two", 26380), tcp("::1", 26379)]
    );
    assert_eq!((service.as_str(), config.database), ("my-master_1.0", 2));
    assert_eq!(shown(&config.login), (Some("me"), Some("mine")));
    assert_eq!(shown(&login), (Some("guard"), Some("gu+rd")));
    assert_eq!(config.tls, None);

    let config = read("valkeys+sentinel://one/mymaster/");
    assert_eq!(
        (config.database, config.tls),
        (0, Some(RedisTls::default()))
    );
    let RedisServers::Sentinel { service, login, .. } = config.servers else {
        panic!("no sentinels");
    };
    assert_eq!(
        (service.as_str(), shown(&login)),
        ("mymaster", (None, None))
    );
    read("redis+sentinel://one/7/0");
}

#[test]
fn a_cluster_is_named_by_some_of_its_nodes() {
    for url in [
        "redis+cluster://:pw@one:1,two",
        "redis+cluster://:pw@one:1,two/0",
    ] {
        let config = read(url);
        let nodes = vec![tcp("one", 1), tcp("two", 6379)];
        assert_same(&config.servers, &RedisServers::Cluster(nodes));
        assert_eq!(shown(&config.login), (None, Some("pw")));
        assert_eq!((config.database, config.tls), (0, None));
    }
    assert!(read("rediss+cluster://one").tls.is_some());
}

/// The paths of a certificate, its key, and another key, with the directory they are in.
fn pem_files() -> (tempfile::TempDir, [String; 3]) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let own = rcgen::generate_simple_self_signed(vec!["redis".to_owned()]).expect("made");
    let other = rcgen::KeyPair::generate().expect("made");
    let texts = [
        ("certificate", own.cert.pem()),
        ("key", own.signing_key.serialize_pem()),
        ("other", other.serialize_pem()),
    ];
    let paths = texts.map(|(name, text)| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    });
    (directory, paths)
}

#[test]
fn the_files_of_tls_are_named_as_for_postgres() {
    assert_eq!(read("rediss://redis").tls, Some(RedisTls::default()));
    let (_directory, [certificate, key, _]) = pem_files();
    for form in [
        "rediss://redis",
        "rediss+cluster://one,two",
        "rediss+sentinel://one/mymaster",
    ] {
        let url = format!("{form}?sslrootcert={certificate}&sslcert={certificate}&sslkey={key}");
        let tls = read(&url).tls.expect("asked for");
        assert_eq!(tls.root_certificates, Some(PathBuf::from(&certificate)));
        assert_eq!(
            tls.client,
            Some((PathBuf::from(&certificate), PathBuf::from(&key)))
        );
    }
}

#[test]
fn files_of_tls_that_cannot_be_used_are_refused() {
    let (_directory, [certificate, key, other]) = pem_files();
    let (_text, text) = file("hello");
    for (parameters, problem) in [
        (
            "sslrootcert=/nonexistent.pem".to_owned(),
            "sslrootcert \"/nonexistent.pem\" can't be read",
        ),
        (
            format!("sslrootcert={text}"),
            "holds no certificate; name a PEM file",
        ),
        (format!("sslrootcert={key}"), "holds no certificate"),
        (
            format!("sslcert={certificate}"),
            "has only one of sslcert and sslkey",
        ),
        (
            format!("sslkey={key}"),
            "has only one of sslcert and sslkey",
        ),
        (format!("sslcert={key}&sslkey={key}"), "sslcert"),
        (
            format!("sslcert={certificate}&sslkey={certificate}"),
            "holds no private key",
        ),
        (
            format!("sslcert={certificate}&sslkey={other}"),
            "is not the key of sslcert",
        ),
        (
            format!("sslcert={certificate}&sslkey=/nonexistent.pem"),
            "sslkey \"/nonexistent.pem\" can't be read",
        ),
    ] {
        let fault = only_fault(&[("REDIS_URL", &format!("rediss://redis?{parameters}"))]);
        assert!(fault.contains(problem), "{parameters}: {fault}");
    }
}

#[test]
fn every_other_url_is_refused_with_a_remedy_and_without_its_secrets() {
    for (url, problem) in [
        // Other schemes.
        ("hunter2", "is not a URL"),
        ("redis:6379", "is not a URL"),
        ("redis:hunter2@redis", "is not a URL"),
        ("://hunter2", "doesn't begin with a scheme of Redis"),
        (
            "http://hunter2@redis",
            "doesn't begin with a scheme of Redis",
        ),
        (
            "redis-sentinel://:hunter2@one,two/0?sentinelMasterId=m",
            "doesn't begin with a scheme",
        ),
        (
            "sentinel://:hunter2@one;sentinel://two",
            "doesn't begin with a scheme",
        ),
        (
            "redis+sentinels://:hunter2@one/m",
            "doesn't begin with a scheme",
        ),
        ("rediss+unix:///run/redis", "doesn't begin with a scheme"),
        ("hunter2://redis", "doesn't begin with a scheme"),
        // Hosts.
        (
            "redis://",
            "host 1 of 1 is not one that can be connected to",
        ),
        ("redis:///0", "host 1 of 1"),
        ("redis://:hunter2@/0", "host 1 of 1"),
        ("redis://:hunter2@redis:", "host 1 of 1"),
        ("redis://:hunter2@redis:0", "host 1 of 1"),
        ("redis://:hunter2@redis:65536", "host 1 of 1"),
        ("redis://:hunter2@redis:redis", "host 1 of 1"),
        ("redis://:hunter2@2001:db8::7", "host 1 of 1"),
        ("redis://:hunter2@[::1]x", "host 1 of 1"),
        ("redis://:hunter2@[::1", "host 1 of 1"),
        ("redis://:hunter2@0.0.0.0", "host 1 of 1"),
        ("redis://:hunter2@[::]:1", "host 1 of 1"),
        ("redis://:hunter2@re dis", "host 1 of 1"),
        ("redis://:hunter2@redis;", "host 1 of 1"),
        ("redis+cluster://:hunter2@one,,three", "host 2 of 3"),
        ("redis+sentinel://:hunter2@one,two:x/m", "host 2 of 2"),
        (
            "redis://:hunter2@one,two",
            "names several hosts; name one, or begin with redis+sentinel",
        ),
        // Passwords whose special characters aren't escaped.
        ("redis://:hunter2/3@redis", "host 1 of 1"),
        ("redis://me:hunter2/3@redis", "host 1 of 1"),
        (
            "redis://me:1/hunter2@redis",
            "database that is no number; write host, host:port or",
        ),
        ("redis://me:1?hunter2@redis", "has a parameter that is none"),
        ("redis://me:1#hunter2@redis", "has an unescaped #"),
        ("redis+sentinel://me:1/hunter2@redis/0", "names no service"),
        (
            "redis://hunter2@redis",
            "names a user without a password; write user:password@",
        ),
        ("redis://hunter2:@redis", "names a user without a password"),
        ("redis://:%ff%fehunter2@redis", "that is not UTF-8"),
        // The path.
        (
            "redis://:hunter2@redis/notanumber",
            "has a database that is no number",
        ),
        (
            "redis://:hunter2@redis/-1",
            "has a database that is no number",
        ),
        (
            "redis://:hunter2@redis/1/2",
            "has a database that is no number",
        ),
        (
            "redis+cluster://:hunter2@one/1",
            "names a database of a cluster; remove it",
        ),
        (
            "redis+cluster://:hunter2@one/mymaster",
            "has a database that is no number",
        ),
        (
            "redis+sentinel://:hunter2@one",
            "names no service of Sentinel's",
        ),
        (
            "redis+sentinel://:hunter2@one/",
            "names no service of Sentinel's",
        ),
        (
            "redis+sentinel://:hunter2@one/0",
            "names no service of Sentinel's",
        ),
        (
            "redis+sentinel://:hunter2@one//0",
            "names no service of Sentinel's",
        ),
        (
            "redis+sentinel://:hunter2@one/my%20master",
            "names no service of Sentinel's",
        ),
        (
            "redis+sentinel://:hunter2@one/m/x",
            "has a database that is no number",
        ),
        (
            "redis+sentinel://:hunter2@one/m/0/1",
            "has a database that is no number",
        ),
        (
            "redis+unix://",
            "doesn't name a socket; write redis+unix:///path",
        ),
        ("redis+unix:///", "doesn't name a socket"),
        ("redis+unix://:hunter2@/run/redis", "doesn't name a socket"),
        ("redis+unix://redis/run/redis", "doesn't name a socket"),
        (
            "redis+unix:///run/redis?db=x&pass=hunter2",
            "has a database that is no number",
        ),
        (
            "redis+unix:///run/redis?user=hunter2",
            "names a user without a password",
        ),
        // Parameters.
        (
            "redis://:hunter2@redis?timeout=1s",
            "the parameter \"timeout\", which would do nothing; remove it",
        ),
        (
            "redis://:hunter2@redis?db=2",
            "\"db\", which would do nothing; write the database behind",
        ),
        (
            "redis://:hunter2@redis?protocol=resp3",
            "\"protocol\", which would do nothing",
        ),
        (
            "redis://:hunter2@redis?sslrootcert=/x",
            "has sslrootcert, which is of use with TLS only; write rediss",
        ),
        (
            "redis://redis?sentinel_password=hunter2",
            "\"sentinel_password\", which would do nothing",
        ),
        (
            "redis+sentinel://one/m?sentinel_username=hunter2",
            "names a user without a password",
        ),
        (
            "redis+sentinel://one/m?sentinel_password=hunter2&sentinel_password=x",
            "has sentinel_password twice",
        ),
        (
            "rediss://:hunter2@redis?ssl_ca_certs=/x",
            "\"ssl_ca_certs\", which would do nothing; write sslrootcert",
        ),
        (
            "rediss://:hunter2@redis?ssl_cert_reqs=none",
            "remove it: the certificate is always checked",
        ),
        (
            "rediss://:hunter2@redis#insecure",
            "asks that the certificate isn't checked; remove #insecure",
        ),
    ] {
        let fault = only_fault(&[("REDIS_URL", url)]);
        assert!(fault.starts_with("REDIS_URL: "), "{fault}");
        assert!(fault.contains(problem), "{url}: {fault}");
        assert!(!fault.contains("hunter2"), "{url}: {fault}");
    }
}

#[test]
fn all_faults_of_a_url_are_told_at_once() {
    let url = "redis+sentinel://me@one,two/x?db=1&sslkey=/k#f";
    let lines = faults(&[("REDIS_URL", url)]);
    let problems = [
        "has an unescaped #",
        "\"db\"",
        "has sslkey",
        "names a user without a password",
    ];
    assert_eq!(lines.len(), problems.len(), "{lines:#?}");
    for (line, problem) in lines.iter().zip(problems) {
        assert!(line.contains(problem), "{line}");
    }
}

#[test]
fn there_is_a_bound_on_the_hosts() {
    let url = |count| format!("redis+cluster://{}", vec!["one"; count].join(","));
    read(&url(32));
    assert!(only_fault(&[("REDIS_URL", &url(33))]).contains("names 33 hosts, more than 32"));
}
