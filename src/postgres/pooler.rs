//! Detects a pooler that gives each transaction another session, such as pgbouncer in transaction mode.

use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Executor, Row as _, raw_sql};

use super::error::read_error;
use super::session::CONNECT;
use super::{Error, Postgres, within};

pub(super) const POOLED: &str = "a pooler in transaction mode is in front of the server, under which settings and prepared statements \
    of a session are lost or become those of other clients; set pool_mode = session for this database in pgbouncer, or connect to PostgreSQL itself";

impl Postgres {
    /// Checks that a connection keeps its session.
    ///
    /// # Errors
    /// [`Error::Unexpected`] when it does not, and [`Error::Unavailable`].
    pub async fn check_sessions(&self) -> Result<(), Error> {
        let opened = self.session.open(CONNECT).await;
        let mut connection = opened.map_err(|error| read_error(&error))?;
        let is_pooled = self.is_pooled(&mut connection).await;
        let _ = within(Some(CONNECT), connection.close()).await;
        match is_pooled {
            Some(true) => Err(Error::Unexpected(POOLED.to_owned())),
            // A server that has no room for another connection, or does not answer, fails what follows.
            Some(false) | None => Ok(()),
        }
    }

    /// Whether two connections share a backend process, or one of them changes it. `None` when that cannot be found out.
    pub(super) async fn is_pooled(&self, connection: &mut PgConnection) -> Option<bool> {
        let compare = async {
            let one = backend(connection).await?;
            let mut other = self.session.open(CONNECT).await?;
            // A pooler in statement mode refuses this.
            if let Err(sqlx::Error::Database(_)) = other.execute(raw_sql("BEGIN")).await {
                return Ok(true);
            }
            // While a transaction is open, its backend is not given to the first connection again.
            let (two, again) = (backend(&mut other).await?, backend(connection).await?);
            let _ = other.close().await;
            Ok(one == two || one != again)
        };
        within(Some(CONNECT), compare).await.ok()
    }
}

/// The process that answers. By the simple protocol, because a pooler may lose prepared statements.
async fn backend(connection: &mut PgConnection) -> Result<i32, sqlx::Error> {
    connection.fetch_one(raw_sql("SELECT pg_backend_pid()")).await?.try_get(0)
}
