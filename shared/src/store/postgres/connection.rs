//! A connection as statements see it, who needn't know whether they may be prepared under a name.
//!
//! Behind a pooler that doesn't keep its clients' names apart, a name stands for whatever the last client has prepared
//! under it. The driver names every statement that isn't told otherwise, also when it caches none; here all are told.

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use sqlx::postgres::{PgConnection, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{Connection as _, Describe, Either, Execute, Executor, Postgres, SqlStr};

/// Under what statements are prepared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Naming {
    /// Names, and kept: asked again, they need not be prepared again.
    Named,
    /// Nothing: each is gone with the next.
    Unnamed,
}

/// A connection that statements can be run on.
#[derive(Debug)]
pub(super) struct Connection<'c> {
    inner: &'c mut PgConnection,
    naming: Naming,
}

/// A transaction, or within one a savepoint. Rolled back unless it is committed.
pub(super) struct Transaction<'t> {
    inner: sqlx::Transaction<'t, Postgres>,
    naming: Naming,
}

impl<'c> Connection<'c> {
    pub(super) fn new(inner: &'c mut PgConnection, naming: Naming) -> Self {
        Connection { inner, naming }
    }

    pub(super) async fn begin(&mut self) -> Result<Transaction<'_>, sqlx::Error> {
        Ok(Transaction::new(self.inner.begin().await?, self.naming))
    }
}

impl<'t> Transaction<'t> {
    pub(super) fn new(inner: sqlx::Transaction<'t, Postgres>, naming: Naming) -> Self {
        Transaction { inner, naming }
    }

    pub(super) fn connection(&mut self) -> Connection<'_> {
        Connection::new(&mut self.inner, self.naming)
    }

    pub(super) async fn commit(self) -> Result<(), sqlx::Error> {
        self.inner.commit().await
    }

    pub(super) async fn rollback(self) -> Result<(), sqlx::Error> {
        self.inner.rollback().await
    }
}

/// A statement, and under what it may be prepared.
struct Told<E> {
    statement: E,
    naming: Naming,
}

impl<'q, E: Execute<'q, Postgres>> Execute<'q, Postgres> for Told<E> {
    fn sql(self) -> SqlStr {
        self.statement.sql()
    }

    fn statement(&self) -> Option<&PgStatement> {
        self.statement.statement()
    }

    fn take_arguments(
        &mut self,
    ) -> Result<Option<sqlx::postgres::PgArguments>, sqlx::error::BoxDynError> {
        self.statement.take_arguments()
    }

    fn persistent(&self) -> bool {
        self.naming == Naming::Named && self.statement.persistent()
    }
}

impl<'c> Executor<'c> for &'c mut Connection<'_> {
    type Database = Postgres;

    fn fetch_many<'e, 'q, E>(
        self,
        statement: E,
    ) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>
    where
        'c: 'e,
        'q: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let naming = self.naming;
        self.inner.fetch_many(Told { statement, naming })
    }

    fn fetch_optional<'e, 'q, E>(
        self,
        statement: E,
    ) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'c: 'e,
        'q: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let naming = self.naming;
        self.inner.fetch_optional(Told { statement, naming })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
    where
        'c: 'e,
    {
        self.inner.prepare_with(sql, parameters)
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, sqlx::Error>>
    where
        'c: 'e,
    {
        self.inner.describe(sql)
    }
}
