//! The Postgres tier: the truth. The only module that knows sqlx.

mod budget;
mod changes;
mod copy;
mod inspect;
mod products;
mod relay_state;
mod rows;
mod snapshot;

use std::io::ErrorKind;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sqlx::Connection;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};

use crate::metrics::Metrics;
use crate::product::Version;
use budget::Budget;
pub(crate) use budget::{Caller, Demand};
pub use copy::{DuplicateId, Import, Merged};
pub use inspect::RowState;
pub(crate) use changes::{ChangeReader, Changes};
pub(crate) use relay_state::{Mark, Retention};
pub(crate) use snapshot::Snapshot;

/// The server itself ends a statement that takes too long. When it has not even said so this much later, it
/// is frozen or cut off.
const SILENCE: Duration = Duration::from_secs(1);

fn migrations() -> Migrator {
    sqlx::migrate!()
}

/// How to reach Postgres, and how much may be asked of it.
#[derive(Clone, Debug)]
pub struct PostgresOptions {
    /// `postgres://user:password@host:port/database`
    pub url: String,
    /// Connections of this instance, besides the one that watches the outbox.
    pub connections: u32,
    /// How long to wait for one of them.
    pub acquire_timeout: Duration,
    /// How long a statement may take; the server enforces it.
    pub statement_timeout: Duration,
    /// Loads for the caches that may run at once.
    pub loads: usize,
    /// Loads that may wait for their turn.
    pub queued_loads: usize,
}

/// The pool of one instance.
#[derive(Debug)]
pub struct Postgres {
    pool: PgPool,
    /// How long an answer may take; `None`: for ever.
    patience: Option<Duration>,
    budget: Arc<Budget>,
    metrics: Arc<Metrics>,
}

/// What can go wrong, as far as a caller can act on it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Postgres cannot be reached, is overloaded, or took too long. Nothing was changed.
    #[error("PostgreSQL is not available: {0}")]
    Unavailable(String),
    /// The connection broke while a write was under way: it may have been committed.
    #[error("the connection to PostgreSQL broke during a write: {0}")]
    OutcomeUnknown(String),
    /// This instance asks as much of Postgres as it may already.
    #[error("too many loads from PostgreSQL are in flight or waiting")]
    OverBudget,
    /// No such product.
    #[error("no such product")]
    NotFound,
    /// The product has another version than the caller expected.
    #[error("the product is at version {current}")]
    VersionMismatch {
        /// The version it has.
        current: Version,
    },
    /// The product is there, and the API cannot express it: the column and the reason.
    #[error("the product cannot be expressed: {0}")]
    Unreadable(String),
    /// Postgres refused something that it should not.
    #[error("PostgreSQL: {0}")]
    Unexpected(String),
}

impl Postgres {
    /// A pool that connects when it is first used.
    ///
    /// # Errors
    /// When the URL is not one of Postgres, in words for the operator.
    pub fn new(options: &PostgresOptions, metrics: Arc<Metrics>) -> Result<Self, String> {
        let limited = !options.statement_timeout.is_zero();
        let patience = limited.then(|| options.statement_timeout + SILENCE);
        let connect = connect_options(&options.url)?.options([
            ("search_path", "public".to_owned()),
            ("statement_timeout", millis(options.statement_timeout)),
            // A relay that vanished would keep its claim from the others until TCP gives up.
            ("idle_in_transaction_session_timeout", millis(patience.unwrap_or_default())),
        ]);
        let pool = PgPoolOptions::new()
            .max_connections(options.connections)
            .acquire_timeout(options.acquire_timeout)
            .after_release(move |connection, _| Box::pin(is_alive(connection, patience)))
            .connect_lazy_with(connect);
        let budget = Budget::new(options.loads, options.queued_loads, options.acquire_timeout);
        Ok(Self { pool, patience, budget, metrics })
    }

    /// Brings the schema up to date.
    ///
    /// # Errors
    /// When Postgres does not answer ([`Error::Unavailable`]), or its schema is newer than this program or
    /// was changed by hand.
    pub async fn migrate(&self) -> Result<(), Error> {
        migrations().run(&self.pool).await.map_err(|error| match error {
            MigrateError::VersionMissing(version) => Error::Unexpected(format!(
                "the schema has migration {version}, which this hotshelf {} does not know; run a newer hotshelf",
                env!("CARGO_PKG_VERSION")
            )),
            MigrateError::VersionMismatch(version) => Error::Unexpected(format!(
                "migration {version} was applied with other contents than this hotshelf has; restore the schema, or use a database of its own"
            )),
            MigrateError::Dirty(version) => Error::Unexpected(format!(
                "migration {version} was begun and not finished; restore the database, or finish it by hand"
            )),
            MigrateError::Execute(error) => read_error(&error),
            other => Error::Unexpected(other.to_string()),
        })
    }

    /// Waits for the answer to a statement, but not for ever.
    async fn in_time<T>(
        &self,
        answer: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        within(self.patience, answer).await
    }

    /// Connections that are open.
    #[must_use]
    pub fn connections(&self) -> u64 {
        u64::from(self.pool.size())
    }

    /// Connections that are open and not in use.
    #[must_use]
    pub fn idle_connections(&self) -> u64 {
        self.pool.num_idle() as u64
    }

    /// Loads that run or wait.
    #[must_use]
    pub fn loads_in_flight(&self) -> u64 {
        self.budget.in_use()
    }

    /// Closes the connections. One whose statement still runs is not waited for: the end of a drain is a limit.
    pub async fn close(&self) {
        let _ = tokio::time::timeout(Duration::from_secs(1), self.pool.close()).await;
    }

    /// For the operator: what cannot be reached, why, and what to do.
    #[must_use]
    pub fn out_of_reach(&self, why: &str) -> String {
        let options = self.pool.connect_options();
        format!(
            "PostgreSQL at {}:{} cannot be reached ({why}); check DATABASE_URL, and that the server runs",
            options.get_host(),
            options.get_port()
        )
    }
}

fn millis(duration: Duration) -> String {
    duration.as_millis().to_string()
}

async fn within<T>(
    patience: Option<Duration>,
    answer: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    let Some(patience) = patience else { return answer.await };
    let in_time = tokio::time::timeout(patience, answer).await;
    in_time.unwrap_or_else(|_| Err(sqlx::Error::Io(ErrorKind::TimedOut.into())))
}

/// sqlx asks a connection that is given back for a sign of life, and waits for it without a limit: one that was
/// cut off without a word would hold its place in the pool until TCP gives up, a quarter of an hour later.
async fn is_alive(
    connection: &mut PgConnection,
    patience: Option<Duration>,
) -> Result<bool, sqlx::Error> {
    within(patience, connection.ping()).await.map(|()| true)
}

fn connect_options(url: &str) -> Result<PgConnectOptions, String> {
    let scheme = url.split_once("://").map(|(scheme, _)| scheme).unwrap_or_default();
    if !["postgres", "postgresql"].contains(&scheme) {
        return Err(format!(
            "DATABASE_URL has the scheme \"{scheme}\"; use postgres://USER:PASSWORD@HOST:PORT/DATABASE"
        ));
    }
    PgConnectOptions::from_str(url).map_err(|error| format!("DATABASE_URL cannot be read: {error}"))
}

/// A connection that broke, or on which no answer came in time, is not used again.
fn given_up(connection: &mut PoolConnection<sqlx::Postgres>, error: sqlx::Error) -> sqlx::Error {
    if matches!(error, sqlx::Error::Io(_)) {
        connection.close_on_drop();
    }
    error
}

/// The error of a statement that changes nothing, or of one that was surely not executed.
fn read_error(error: &sqlx::Error) -> Error {
    match error {
        sqlx::Error::Database(database) if is_passing(database.code().as_deref()) => {
            Error::Unavailable(database.message().to_owned())
        }
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => Error::Unavailable(error.to_string()),
        _ => Error::Unexpected(error.to_string()),
    }
}

/// The error of a connection that could not be had: whatever the server has against it, nothing was asked yet.
fn unreachable(error: &sqlx::Error) -> Error {
    match error {
        sqlx::Error::Database(database) => Error::Unavailable(database.message().to_owned()),
        error => read_error(error),
    }
}

/// The error of a statement that may have been committed when the connection broke.
fn write_error(error: &sqlx::Error) -> Error {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) => {
            Error::OutcomeUnknown(error.to_string())
        }
        sqlx::Error::Database(database) if ends_connection(database.code().as_deref()) => {
            Error::OutcomeUnknown(database.message().to_owned())
        }
        _ => read_error(error),
    }
}

/// With these the server ends the connection, at any point of a commit: shutdown and crash (57P01, 57P02), and
/// what a proxy in front of it says of its own connection (class 08).
fn ends_connection(code: Option<&str>) -> bool {
    code.is_some_and(|code| matches!(code, "57P01" | "57P02") || code.starts_with("08"))
}

/// Errors of the server that pass by themselves (PostgreSQL, appendix A).
fn is_passing(code: Option<&str>) -> bool {
    let Some(code) = code else { return false };
    // 08 connection, 53 out of resources, 57 operator intervention (shutdown, starting up, statement
    // timeout), 40 serialization and deadlock, 55P03 lock timeout, 25006 read-only during a failover.
    matches!(&code[..2], "08" | "53" | "57" | "40") || matches!(code, "55P03" | "25006")
}
