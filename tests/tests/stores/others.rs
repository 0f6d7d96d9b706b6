//! Whom the daemon's store sees beside itself.

use std::time::Duration;

use anyhow::Result;
use holdfast_shared::domain::TaskId;
use holdfast_shared::health::Probe as _;
use holdfast_shared::store::postgres::Postgres;

use crate::operations::create;
use crate::support::{self, DATABASE, Fixture, apply_one, is_alone, some_user};

const LONG: Duration = Duration::from_hours(1);

#[tokio::test]
async fn neither_daemons_nor_probes_are_others_and_requests_are() -> Result<()> {
    let fixture = Fixture::start().await?;
    for name in [None, Some("x".repeat(63))] {
        let mut config = support::config(&fixture.server.url(DATABASE));
        if let Some(name) = name {
            config.options = config.options.application_name(&name);
        }
        let (daemon, second) = (Postgres::for_daemon(&config), Postgres::for_daemon(&config));
        let server = Postgres::new(&config, support::patient());
        let id = TaskId::generate();
        apply_one(&daemon, &create(&some_user(), id, 1)).await?;
        second.find_task(id).await?;
        second.probe().await?;
        server.probe().await?;
        is_alone(&daemon, LONG).await?;
        server.find_task(id).await?;
        assert!(daemon.serves_others(LONG).await?, "it was asked for a task");
        // One that isn't told by its name knows nothing.
        assert!(!server.serves_others(LONG).await?);
        is_alone(&daemon, Duration::from_millis(10)).await?;
    }
    Ok(())
}
