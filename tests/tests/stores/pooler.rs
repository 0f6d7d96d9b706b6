//! The store's sessions behind a pooler: what they are told holds for them, and for nobody else.

use std::time::Duration;

use anyhow::Result;
use holdfast_shared::config::PostgresConfig;
use holdfast_shared::domain::{Outcome, TaskId};
use holdfast_shared::health::Probe as _;
use holdfast_shared::store::FailureClass;
use holdfast_shared::store::postgres::{Postgres, Timeouts};
use holdfast_tests::{FaultProxy, Flow, PgBouncer, Statements, eventually};
use sqlx::postgres::PgConnection;
use sqlx::{ConnectOptions, Connection, Executor, Row};

use crate::failures::{assert_failed, hold_row};
use crate::operations::{buffered, create, keyed, retitle};
use crate::support::{
    DATABASE, Fixture, PATIENCE, apply_one, hasty, is_alone, patient, put_off, some_user,
};

/// All clients meet on one connection of the server's.
const ONE_CONNECTION: [(&str, &str); 1] = [("default_pool_size", "1")];

/// A pooler, and how a store is set up for it.
#[derive(Debug, Clone, Copy)]
struct Way {
    statements: Statements,
    statement_cache: usize,
}

const WAYS: [Way; 3] = [
    Way {
        statements: Statements::Lost,
        statement_cache: 0,
    },
    Way {
        statements: Statements::Kept,
        statement_cache: 0,
    },
    Way {
        statements: Statements::Kept,
        statement_cache: 100,
    },
];

struct Poolers {
    pooler: PgBouncer,
    fixture: Fixture,
    statement_cache: usize,
}

impl Poolers {
    async fn start(way: Way, settings: &[(&str, &str)]) -> Result<Self> {
        let fixture = Fixture::start().await?;
        let port = fixture.server.port();
        Ok(Poolers {
            pooler: PgBouncer::start(port, way.statements, settings).await?,
            fixture,
            statement_cache: way.statement_cache,
        })
    }

    fn config(&self) -> PostgresConfig {
        PostgresConfig {
            options: self
                .pooler
                .options(DATABASE)
                .statement_cache_capacity(self.statement_cache),
            max_connections: 4,
            statement_cache: self.statement_cache,
        }
    }

    fn store(&self, timeouts: Timeouts) -> Postgres {
        Postgres::new(&self.config(), timeouts)
    }

    /// Another client of the pooler's.
    async fn guest(&self) -> Result<PgConnection> {
        Ok(self.pooler.options(DATABASE).connect().await?)
    }
}

/// One text, asked for without preparing anything.
async fn text(connection: &mut PgConnection, query: &'static str) -> Result<String> {
    let row = connection.fetch_one(sqlx::raw_sql(query)).await?;
    Ok(row.try_get_unchecked(0)?)
}

/// Uses the store in every way that the programs do, failures included.
async fn use_fully(poolers: &Poolers, store: &Postgres) -> Result<()> {
    let (user, id) = (some_user(), TaskId::generate());
    store.probe().await?;
    apply_one(store, &create(&user, id, 1)).await?;
    apply_one(store, &keyed(create(&user, TaskId::generate(), 1), "k", 1)).await?;
    apply_one(store, &buffered(retitle(&user, id, 2, "x"))).await?;
    store
        .find_locked(&[retitle(&user, id, 2, "x").resource()])
        .await?;
    assert!(store.find_task(id).await?.is_some());
    let _holder = hold_row(&poolers.fixture, id).await?;
    for blocked in [
        retitle(&user, id, 3, "y"),
        buffered(retitle(&user, id, 4, "z")),
    ] {
        assert_failed(
            store.apply(&[blocked]).await,
            FailureClass::Contended,
            Some("55P03"),
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn others_on_the_same_connection_notice_nothing() -> Result<()> {
    for way in WAYS {
        let poolers = Poolers::start(way, &ONE_CONNECTION).await?;
        let mut guest = poolers.guest().await?;
        if way.statements == Statements::Kept {
            let kept: i32 = sqlx::query_scalar("SELECT 7").fetch_one(&mut guest).await?;
            assert_eq!(kept, 7);
        }
        use_fully(&poolers, &poolers.store(put_off())).await?;
        for (query, untouched) in [
            ("SHOW statement_timeout", "0"),
            ("SHOW lock_timeout", "0"),
            ("SHOW idle_in_transaction_session_timeout", "0"),
            ("SHOW enable_seqscan", "on"),
            ("SHOW enable_hashjoin", "on"),
            (
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'",
                "0",
            ),
            (
                "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%' AND application_name <> ''",
                "0",
            ),
            (
                "SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'sqlx%'",
                "0",
            ),
        ] {
            assert_eq!(
                text(&mut guest, query).await?,
                untouched,
                "{way:?}: {query}"
            );
        }
        if way.statements == Statements::Kept {
            let theirs = "SELECT count(*) FROM pg_prepared_statements WHERE statement = 'SELECT 7'";
            assert_eq!(
                text(&mut guest, theirs).await?,
                "1",
                "{way:?}: another's statement is gone"
            );
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_own_deadlines_hold_behind_a_pooler() -> Result<()> {
    for way in WAYS {
        let poolers = Poolers::start(way, &[]).await?;
        let (user, id) = (some_user(), TaskId::generate());
        let store = poolers.store(patient());
        apply_one(&store, &create(&user, id, 1)).await?;
        let _holder = hold_row(&poolers.fixture, id).await?;
        let impatient = |statement, lock| {
            let timeouts = Timeouts {
                statement,
                lock,
                ..patient()
            };
            let store = poolers.store(timeouts);
            let operation = retitle(&user, id, 2, "x");
            async move { store.apply(&[operation]).await }
        };
        let short = Duration::from_millis(100);
        assert_failed(
            impatient(PATIENCE, short).await,
            FailureClass::Contended,
            Some("55P03"),
        );
        assert_failed(
            impatient(short, PATIENCE).await,
            FailureClass::Contended,
            Some("57014"),
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_that_keeps_statements_is_used_without_setting_anything() -> Result<()> {
    let way = Way {
        statements: Statements::Kept,
        statement_cache: 100,
    };
    for settings in [&[][..], &[("ignore_startup_parameters", "options")]] {
        let poolers = Poolers::start(way, settings).await?;
        use_fully(&poolers, &poolers.store(put_off())).await?;
        let mut guest = poolers.guest().await?;
        let kept = "SELECT count(*) > 0 FROM pg_prepared_statements WHERE statement LIKE '%INSERT INTO tasks%'";
        assert_eq!(text(&mut guest, kept).await?, "t", "nothing is kept");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_that_loses_statements_is_refused_before_any_is_used() -> Result<()> {
    let way = Way {
        statements: Statements::Lost,
        statement_cache: 100,
    };
    for settings in [&[][..], &[("ignore_startup_parameters", "options")]] {
        let poolers = Poolers::start(way, settings).await?;
        let store = poolers.store(hasty());
        let refused = [
            store.probe().await.map(drop),
            store.find_task(TaskId::generate()).await.map(drop),
            store
                .apply(&[create(&some_user(), TaskId::generate(), 1)])
                .await
                .map(drop),
        ];
        for refused in refused {
            let error = assert_failed(refused, FailureClass::Systemic, None);
            assert!(
                error.to_string().contains("set DB_STATEMENT_CACHE=0"),
                "{error}"
            );
            assert!(!error.outcome_unknown());
        }
        assert_eq!(poolers.fixture.store.count_applied_operations().await?, 0);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_daemons_nor_probes_are_others_behind_a_pooler() -> Result<()> {
    let long = Duration::from_hours(1);
    for way in WAYS {
        // With a host in its name every session has another one.
        let poolers = Poolers::start(way, &[("application_name_add_host", "1")]).await?;
        let (config, daemon) = (poolers.config(), Postgres::for_daemon(&poolers.config()));
        let second = Postgres::for_daemon(&config);
        let server = Postgres::new(&config, patient());
        let (user, id) = (some_user(), TaskId::generate());
        apply_one(&daemon, &create(&user, id, 1)).await?;
        second.find_task(id).await?;
        second.probe().await?;
        server.probe().await?;
        is_alone(&daemon, long).await?;
        // A connection shows what was asked on it last, so this one must not be the daemon's next.
        let holder = hold_row(&poolers.fixture, id).await?;
        let waiting = [retitle(&user, id, 2, "x")];
        let waiting = tokio::spawn(async move { server.apply(&waiting).await });
        eventually(PATIENCE, "a request to be seen", async || {
            match daemon.serves_others(long).await {
                Ok(true) => Ok(()),
                other => Err(format!("{way:?}: {other:?}")),
            }
        })
        .await?;
        holder.close().await?;
        waiting.await??;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_changed_under_a_poolers_statement_is_no_lasting_trouble() -> Result<()> {
    let poolers = Poolers::start(WAYS[2], &ONE_CONNECTION).await?;
    let store = poolers.store(patient());
    let (user, id) = (some_user(), TaskId::generate());
    apply_one(&store, &create(&user, id, 1)).await?;
    store.find_task(id).await?;
    poolers
        .fixture
        .connect()
        .await?
        .execute("ALTER TABLE tasks ALTER COLUMN title TYPE varchar(500)")
        .await?;
    assert_failed(
        store.find_task(id).await,
        FailureClass::Contended,
        Some("0A000"),
    );
    for number in 2..5 {
        assert!(store.find_task(id).await?.is_some());
        let applied = apply_one(&store, &retitle(&user, id, number, "x")).await?;
        assert_eq!(applied.outcome, Outcome::Applied);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_behind_a_pooler_answers_nothing() -> Result<()> {
    for way in WAYS {
        let fixture = Fixture::start().await?;
        let standby = fixture.server.start_standby().await?;
        let mut proxy = FaultProxy::start(fixture.server.port()).await?;
        let poolers = Poolers {
            pooler: PgBouncer::start(proxy.port(), way.statements, &[]).await?,
            fixture,
            statement_cache: way.statement_cache,
        };
        let store = poolers.store(patient());
        let (user, id) = (some_user(), TaskId::generate());
        apply_one(&store, &create(&user, id, 1)).await?;
        store.probe().await?;
        assert!(store.find_task(id).await?.is_some());
        proxy.set(Flow::Cut).await?;
        proxy.lead_to(standby.port());
        proxy.set(Flow::Pass).await?;
        eventually(PATIENCE, "the standby to answer", async || {
            match store.find_task(id).await {
                Err(error) if error.sqlstate() == Some("25006") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await?;
        assert_failed(
            store.probe().await,
            FailureClass::Unavailable,
            Some("25006"),
        );
        let write = store.apply(&[retitle(&user, id, 2, "x")]).await;
        assert_failed(write, FailureClass::Unavailable, Some("25006"));
    }
    Ok(())
}
