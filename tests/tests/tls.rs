//! Is TLS with PostgreSQL what the settings ask for, and is it said what is wrong when it isn't?

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use holdfast_tests::certificates::{Authority, Identity, Validity};
use holdfast_tests::postgres_tls::Admission;
use holdfast_tests::{Answer, Node, Postgres, Program, eventually, tokens};
use serde_json::{Value, json};
use sqlx::Row;
use tempfile::TempDir;
use tokio::sync::{Semaphore, SemaphorePermit};

const DATABASE: &str = "holdfast";

/// The name that PostgreSQL is reached by.
const HOST: &str = "localhost";

/// Longest wait for something that takes a second on an idle machine.
const SETTLE: Duration = Duration::from_secs(30);

/// A few servers at a time are enough for two cores.
static ROOM: Semaphore = Semaphore::const_new(3);

/// PostgreSQL with TLS, and the files that a node is given.
struct Server {
    postgres: Postgres,
    authority: Authority,
    files: TempDir,
    _room: SemaphorePermit<'static>,
}

impl Server {
    async fn start() -> Result<Self> {
        let room = ROOM.acquire().await?;
        let postgres = Postgres::start().await?;
        let url = postgres.create_database(DATABASE).await?;
        let node = Node::new()?.with("DATABASE_URL", &url);
        node.syncd(&["migrate"]).await?.expect_code(0);
        let server = Server {
            postgres,
            authority: Authority::new("an authority of our own")?,
            files: tempfile::tempdir()?,
            _room: room,
        };
        server.trust(&server.authority)?;
        server.show(&[HOST], Validity::Current).await?;
        Ok(server)
    }

    /// Has PostgreSQL show a certificate for these names.
    async fn show(&self, hosts: &[&str], validity: Validity) -> Result<()> {
        let identity = self.authority.issue("database", hosts, validity)?;
        let clients = self.authority.certificate();
        self.postgres.offer_tls(&identity, clients).await
    }

    fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// Has nodes trust this authority.
    fn trust(&self, authority: &Authority) -> Result<()> {
        Ok(fs::write(self.file("root.crt"), authority.certificate())?)
    }

    /// Gives nodes this certificate to show.
    fn hand_out(&self, identity: &Identity) -> Result<()> {
        fs::write(self.file("client.crt"), &identity.certificate)?;
        Ok(fs::write(self.file("client.key"), &identity.key)?)
    }

    /// A node that connects like this.
    fn node(&self, parameters: &str) -> Result<Node> {
        let port = self.postgres.port();
        let files = self.files.path().display();
        let parameters = parameters.replace("FILES", &files.to_string());
        let url = format!("postgres://holdfast:holdfast@{HOST}:{port}/{DATABASE}?{parameters}");
        let node = Node::new()?.with("DATABASE_URL", &url);
        Ok(node.with("SYNC_INTERVAL_SECONDS", "1"))
    }

    /// Ends all connections, so that new ones have to be made.
    async fn restart(&mut self) -> Result<()> {
        self.postgres.kill9().await?;
        self.postgres.start_again().await
    }

    /// How many of the node's connections have TLS, and how many have not.
    async fn connections(&self) -> Result<(i64, i64)> {
        let query = "SELECT count(*) FILTER (WHERE ssl), count(*) FILTER (WHERE NOT ssl) FROM pg_stat_ssl \
            JOIN pg_stat_activity USING (pid) WHERE usename = 'holdfast'";
        let mut admin = self.postgres.connect_admin(DATABASE).await?;
        let row = sqlx::query(query).fetch_one(&mut admin).await?;
        Ok((row.try_get(0)?, row.try_get(1)?))
    }
}

/// Authenticates PostgreSQL by everything that can be checked.
const FULL: &str = "sslmode=verify-full&sslrootcert=FILES/root.crt";

/// The same, and shows a certificate.
const MUTUAL: &str = "sslmode=verify-full&sslrootcert=FILES/root.crt&sslcert=FILES/client.crt&sslkey=FILES/client.key";

/// What an operator may look at.
struct Running {
    api: Program,
    syncd: Program,
    node: Node,
}

impl Running {
    async fn start(node: Node) -> Result<Self> {
        Ok(Running {
            api: node.start_api().await?,
            syncd: node.start_syncd().await?,
            node,
        })
    }

    async fn create(&self, title: &str) -> Result<Answer> {
        let client = self.api.client(&tokens::valid("somebody"));
        client.create_task(&json!({"title": title})).await
    }

    /// Health, journal, `syncd status` and `syncd migrate` say so.
    async fn say(&self, said: &str) -> Result<()> {
        let says = |health: &Value| {
            let error = health["stores"]["postgres"]["error"].as_str();
            error.is_some_and(|error| error.contains(said))
        };
        self.api.wait_health(SETTLE, said, says).await?;
        for (program, word) in [
            (&self.api, "the store is down"),
            (&self.syncd, "lane stopped"),
        ] {
            let look = async || {
                let log = program.log();
                let is_said = log.contains(word) && log.contains(said);
                if is_said { Ok(()) } else { Err(log) }
            };
            eventually(SETTLE, "the journal to say it", look).await?;
        }
        self.node.wait_told(SETTLE, said).await?;
        let migrate = self.node.syncd(&["migrate"]).await?;
        let words = &migrate.expect_code(78).stderr;
        assert!(words.contains(said), "{words}");
        Ok(())
    }
}

/// Breaks something under a running node, looks at what is said and that writes are kept, mends it, and expects all to
/// be there without anybody doing more.
async fn is_said_and_heals(
    parameters: &str,
    breaks: impl AsyncFnOnce(&Server) -> Result<()>,
    said: &str,
    mends: impl AsyncFnOnce(&Server) -> Result<()>,
) -> Result<()> {
    let mut server = Server::start().await?;
    server.hand_out(&server.authority.issue("holdfast", &[], Validity::Current)?)?;
    let running = Running::start(server.node(parameters)?).await?;
    running.api.wait_status(SETTLE, "online").await?;
    running.create("before").await?.expect(201);
    assert!(server.connections().await?.0 > 0, "nothing is encrypted");

    breaks(&server).await?;
    server.restart().await?;
    running.say(said).await?;
    running.create("meanwhile").await?.expect(202);

    mends(&server).await?;
    running.api.wait_status(SETTLE, "online").await?;
    let mut admin = server.postgres.connect_admin(DATABASE).await?;
    let titles = sqlx::query("SELECT title FROM tasks ORDER BY title")
        .fetch_all(&mut admin)
        .await?;
    let titles: Result<Vec<String>, _> = titles.iter().map(|row| row.try_get(0)).collect();
    assert_eq!(titles?, ["before", "meanwhile"]);
    assert_eq!(
        server.connections().await?.1,
        0,
        "something isn't encrypted"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_authority_is_named_until_it_is_trusted() -> Result<()> {
    is_said_and_heals(
        FULL,
        async |server| server.trust(&Authority::new("another authority")?),
        "the authority that signed postgres' certificate isn't trusted",
        async |server| server.trust(&server.authority),
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_for_another_host_is_named_until_it_is_replaced() -> Result<()> {
    is_said_and_heals(
        FULL,
        async |server| {
            server
                .show(&["elsewhere.example", "127.0.0.1"], Validity::Current)
                .await
        },
        "postgres' certificate is for another host",
        async |server| server.show(&[HOST], Validity::Current).await,
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_is_named_until_it_is_renewed() -> Result<()> {
    is_said_and_heals(
        FULL,
        async |server| server.show(&[HOST], Validity::Expired).await,
        "postgres' certificate has expired",
        async |server| server.show(&[HOST], Validity::Current).await,
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authoritys_own_certificate_is_named_until_it_is_replaced() -> Result<()> {
    is_said_and_heals(
        FULL,
        async |server| {
            let authority = &server.authority;
            let itself = authority.itself();
            server
                .postgres
                .offer_tls(&itself, authority.certificate())
                .await
        },
        "postgres' certificate can't be used",
        async |server| server.show(&[HOST], Validity::Current).await,
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_tls_is_named_until_it_has_it() -> Result<()> {
    is_said_and_heals(
        "sslmode=require",
        async |server| server.postgres.offer_no_tls().await,
        "doesn't offer TLS",
        async |server| server.show(&[HOST], Validity::Current).await,
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_certificate_file_is_named_until_it_is_back() -> Result<()> {
    let missing = "a file that sslrootcert, sslcert or sslkey names is not there any more";
    let mut server = Server::start().await?;
    let running = Running::start(server.node(FULL)?).await?;
    running.api.wait_status(SETTLE, "online").await?;
    fs::remove_file(server.file("root.crt"))?;
    server.restart().await?;
    let says = |health: &Value| health["stores"]["postgres"]["error"] == missing;
    running.api.wait_health(SETTLE, missing, says).await?;
    // A new start finds it too, and names the file.
    let check = running.node.syncd(&["config", "check"]).await?;
    let words = &check.expect_code(78).stderr;
    assert!(words.contains("root.crt\" can't be read"), "{words}");
    server.trust(&server.authority)?;
    running.api.wait_status(SETTLE, "online").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_is_shown_and_a_refused_one_is_named() -> Result<()> {
    is_said_and_heals(
        MUTUAL,
        async |server| {
            server.postgres.admit(Admission::Certified).await?;
            let stranger = Authority::new("another authority")?;
            server.hand_out(&stranger.issue("holdfast", &[], Validity::Current)?)
        },
        "postgres refuses this client's certificate",
        async |server| {
            server.hand_out(&server.authority.issue("holdfast", &[], Validity::Current)?)
        },
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_that_is_missing_is_told_from_an_outage() -> Result<()> {
    let server = Server::start().await?;
    server.postgres.admit(Admission::Certified).await?;
    for (parameters, said) in [
        (FULL, "a certificate may be missing"),
        ("sslmode=disable", "or this way to come in"),
    ] {
        let running = Running::start(server.node(parameters)?).await?;
        running.create("kept").await?.expect(202);
        running.say(said).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_sslmode_asks_for_what_it_says() -> Result<()> {
    let server = Server::start().await?;
    server
        .show(&["elsewhere.example"], Validity::Current)
        .await?;
    for (parameters, is_encrypted) in [
        ("sslmode=disable", false),
        ("sslmode=prefer", true),
        ("sslmode=require", true),
        ("sslmode=verify-ca&sslrootcert=FILES/root.crt", true),
    ] {
        let api = server.node(parameters)?.start_api().await?;
        api.wait_status(SETTLE, "online").await?;
        let (encrypted, plain) = server.connections().await?;
        assert_eq!(
            (encrypted > 0, plain > 0),
            (is_encrypted, !is_encrypted),
            "{parameters}"
        );
        drop(api);
        let gone = async || match server.connections().await {
            Ok((0, 0)) => Ok(()),
            other => Err(format!("{other:?}")),
        };
        eventually(SETTLE, "the node's connections to end", gone).await?;
    }
    Ok(())
}
