//! A primary and its standby.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sqlx::{Executor, Row};

use crate::postgres::Postgres;
use crate::wait::eventually;

/// A standby connects and catches up within a second on an idle machine.
const REPLICATION_DEADLINE: Duration = Duration::from_secs(30);

impl Postgres {
    /// Starts a standby of this server, which follows it and answers reads.
    ///
    /// # Errors
    /// When it can't be copied, or the copy doesn't come up; with its log.
    pub async fn start_standby(&self) -> Result<Postgres> {
        let port = self.port().to_string();
        Self::start_with(|target, installation, account| {
            let mut backup = Command::new(installation.program("pg_basebackup"));
            backup
                .env_clear()
                .current_dir("/")
                .args(["--host=127.0.0.1", "--username=postgres", "--port", &port])
                .args(["--checkpoint=fast", "--write-recovery-conf", "--no-sync"])
                .arg("--pgdata")
                .arg(target);
            account.assign(&mut backup);
            let output = backup.output().context("cannot start pg_basebackup")?;
            let words = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "pg_basebackup failed: {words}");
            Ok(())
        })
        .await
    }

    /// Makes every commit wait from now on until a standby has it too.
    ///
    /// # Errors
    /// When no standby follows.
    pub async fn commit_with_standby(&self) -> Result<()> {
        self.configure("synchronous_standby_names", "*").await?;
        let what = "a standby that commits are held for";
        eventually(REPLICATION_DEADLINE, what, async || {
            match self
                .number("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'")
                .await
            {
                Ok(0) => Err(String::from("none yet")),
                Ok(_) => Ok(()),
                Err(error) => Err(format!("{error:#}")),
            }
        })
        .await
    }

    /// Makes a standby the primary, and returns when it is.
    ///
    /// # Errors
    /// When it is none, or won't be promoted within a minute.
    pub async fn promote(&self) -> Result<()> {
        let mut admin = self.connect_admin("postgres").await?;
        let promoted = admin.fetch_one("SELECT pg_promote()").await?;
        ensure!(
            promoted.try_get::<bool, _>(0)?,
            "it was not promoted in time"
        );
        Ok(())
    }

    async fn number(&self, query: &'static str) -> Result<i64> {
        let mut admin = self.connect_admin("postgres").await?;
        Ok(admin.fetch_one(query).await?.try_get(0)?)
    }
}
