//! Redis over TLS, by an authority that only this test knows.

use std::fs;
use std::sync::Arc;

use anyhow::Result;
use holdfast_shared::health::Probe;
use holdfast_shared::store::FailureClass;
use holdfast_tests::redis::Setup;
use holdfast_tests::redis_service::{Access, RedisService};
use holdfast_tests::{Authority, Node, Redis, RedisCluster, tokens};

use crate::site::{SETTLE, Site, log_out};
use crate::stores::{HASTE, does_its_work, failed, store, store_within};

struct Certified {
    redis: Redis,
    authority: Arc<Authority>,
}

impl Certified {
    async fn start() -> Result<Self> {
        let authority = Arc::new(Authority::new("an authority of the tests")?);
        let setup = Setup::default().certified_by(&authority);
        Ok(Certified {
            redis: Redis::start_as(setup).await?,
            authority,
        })
    }

    fn url(&self, host: &str, parameters: &str) -> String {
        let port = self.redis.port_of("--tls-port");
        format!("rediss://{host}:{port}?{parameters}")
    }
}

/// What is said of a URL that will not do until somebody mends something.
async fn said_of(url: &str) -> Result<String> {
    Ok(failed(store(url)?.probe().await, FailureClass::Systemic))
}

#[tokio::test]
async fn a_server_is_trusted_by_its_authority_and_trusts_our_certificate() -> Result<()> {
    let certified = Certified::start().await?;
    let parameters = certified.authority.url_parameters()?;
    does_its_work(&store(&certified.url("127.0.0.1", &parameters))?).await
}

#[tokio::test]
async fn a_certificate_that_will_not_do_is_no_outage() -> Result<()> {
    let certified = Certified::start().await?;
    let parameters = certified.authority.url_parameters()?;
    let untrusted = "the certificate of redis is not trusted: \
        name its authority's in sslrootcert of REDIS_URL";
    let stranger = Authority::new("another authority")?;
    let wrong = parameters.replace(
        &certified.authority.certificate_file().display().to_string(),
        &stranger.certificate_file().display().to_string(),
    );
    for parameters in ["", &wrong] {
        let url = certified.url("127.0.0.1", parameters);
        assert_eq!(said_of(&url).await?, untrusted);
    }
    let url = certified.url("localhost", &parameters);
    assert_eq!(
        said_of(&url).await?,
        "the certificate of redis is for another host than REDIS_URL names"
    );
    let ours = "redis does not accept our certificate: see sslcert and sslkey of REDIS_URL";
    let root = format!(
        "sslrootcert={}",
        certified.authority.certificate_file().display()
    );
    let foreign = stranger.url_parameters()?;
    let (_, foreign) = foreign.split_once('&').expect("three parameters");
    for parameters in [&root, &format!("{root}&{foreign}")] {
        let url = certified.url("127.0.0.1", parameters);
        assert_eq!(said_of(&url).await?, ours);
    }
    Ok(())
}

#[tokio::test]
async fn with_and_without_tls_mistaken_for_each_other_is_hinted_at() -> Result<()> {
    let certified = Certified::start().await?;
    let said_of = async |url: &str| -> Result<String> {
        let store = store_within(url, HASTE)?;
        Ok(failed(store.probe().await, FailureClass::Unavailable))
    };
    let plain = certified.redis.port();
    let said = said_of(&format!("rediss://127.0.0.1:{plain}")).await?;
    assert_eq!(said, "redis did not accept a connection in TLS in time");
    let certified = certified.redis.port_of("--tls-port");
    let said = said_of(&format!("redis://127.0.0.1:{certified}")).await?;
    assert!(said.contains("does it want TLS"), "{said}");
    Ok(())
}

#[tokio::test]
async fn renewed_files_are_used_without_a_restart() -> Result<()> {
    let certified = Certified::start().await?;
    let directory = tempfile::tempdir()?;
    let root = directory.path().join("root.pem");
    fs::copy(
        Authority::new("another authority")?.certificate_file(),
        &root,
    )?;
    let parameters = certified.authority.url_parameters()?;
    let (_, ours) = parameters.split_once('&').expect("three parameters");
    let url = certified.url(
        "127.0.0.1",
        &format!("sslrootcert={}&{ours}", root.display()),
    );
    let store = store(&url)?;
    failed(store.probe().await, FailureClass::Systemic);
    fs::copy(certified.authority.certificate_file(), &root)?;
    store.probe().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_authority_is_told_by_health_and_by_the_command_line() -> Result<()> {
    let certified = Certified::start().await?;
    let stranger = Authority::new("another authority")?;
    let root = format!("sslrootcert={}", stranger.certificate_file().display());
    let node = Node::new()?.with("REDIS_URL", &certified.url("127.0.0.1", &root));
    let api = node.start_api().await?;
    let told = |health: &serde_json::Value| {
        let error = health["stores"]["redis"]["error"].as_str();
        error.is_some_and(|error| error.contains("name its authority's in sslrootcert"))
    };
    api.wait_health(SETTLE, "the reason", told).await?;
    node.wait_told(SETTLE, "is not trusted").await
}

#[tokio::test]
async fn a_cluster_speaks_tls() -> Result<()> {
    let authority = Arc::new(Authority::new("an authority of the tests")?);
    let cluster = RedisCluster::start_certified(&authority).await?;
    does_its_work(&store(&cluster.url()?)?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_and_its_sentinels_speak_tls() -> Result<()> {
    let access = Access {
        password: Some("secret".to_owned()),
        sentinel_password: None,
        authority: Some(Arc::new(Authority::new("an authority of the tests")?)),
    };
    let mut service = RedisService::start(access).await?;
    let site = Site::start(&service.url()?).await?;
    let [before, after] = ["before", "after"].map(tokens::valid);
    site.admits(&before).await?;
    site.admits(&after).await?;
    log_out(&site.one.api, &before).await?;
    let master = service.master_by(0).await?;
    service.be_watchful().await?;
    service.server(master).kill9().await?;
    service.wait_failover(master).await?;
    log_out(&site.other.api, &after).await?;
    site.wait_online().await?;
    site.refuses(&before).await?;
    site.refuses(&after).await
}
