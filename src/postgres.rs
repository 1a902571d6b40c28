//! The Postgres tier, which is the truth. The only module that uses sqlx.

mod ages;
mod attach;
mod attempts;
mod budget;
mod catalogue;
mod change_rows;
mod changes;
mod checks;
mod columns;
mod connections;
mod copy;
mod epoch;
mod error;
mod hosts;
mod importable;
mod inspect;
mod mapping;
mod observed;
mod pooler;
mod products;
mod prune;
mod quote;
mod relay_state;
mod reported;
mod rows;
mod schema;
mod session;
mod snapshot;
mod statements;
mod url;
mod values;
mod writers;
mod writes;

use std::convert::Infallible;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use sqlx::Connection;
use sqlx::postgres::{PgConnection, PgPool, PgPoolOptions};

use crate::metrics::{Metrics, PostgresShare};
pub(crate) use ages::Ages;
pub use attach::{AttachOptions, AttributeChoice, ColumnChoices, Plan};
use budget::{Budget, Limits};
pub(crate) use budget::{Demand, DemandGuard, DemandGuards};
pub(crate) use change_rows::Changes;
pub use changes::ChangeReader;
pub use checks::CheckOptions;
use connections::{Connections, Prepare};
pub use copy::{BadRow, DuplicateId, Import, ImportColumns, Merged};
pub use error::{Error, Refusal, Refused};
use error::{read_error, write_error};
pub use importable::{ImportField, ImportTable};
pub use inspect::RowState;
pub(crate) use relay_state::{Mark, Retention};
use reported::Reported;
pub use schema::Migrate;
use session::Session;
pub(crate) use snapshot::Snapshot;
use statements::Statements;
use writers::Writers;

/// The server cancels a statement after the statement timeout. If its error has not arrived this much later, the server is frozen
/// or unreachable, and the statement times out here.
const CANCEL_GRACE: Duration = Duration::from_secs(1);
/// Connections for background tasks and commands, besides the one of [`Postgres::load_now`].
const BACKGROUND: u32 = 3;

/// How to reach Postgres, and the load that it may get.
#[derive(Clone, Debug)]
pub struct PostgresOptions {
    /// `postgres://user:password@host:port/database`
    pub url: String,
    /// The catalogue to serve; empty: the only one.
    pub catalogue: String,
    /// Connections for the reads and writes of calls, divided into shares.
    pub connections: u32,
    /// The timeout of waiting for a turn or for a connection.
    pub acquire_timeout: Duration,
    /// The timeout of a statement, which the server enforces. Zero: none.
    pub statement_timeout: Duration,
    /// Cache loads that may run at once: their share of the connections.
    pub loads: usize,
    /// Loads that may wait for a turn.
    pub queued_loads: usize,
}

/// Connections for ExplainProduct.
const OPERATORS: usize = 1;
/// Calls of ExplainProduct that may wait.
const QUEUED_OPERATORS: usize = 16;

impl PostgresOptions {
    /// Connections that [`loads`](Self::loads) must leave to the other shares: one for each.
    pub const OTHER_SHARES: u32 = 3;

    /// The connections of a share. Of those that loads and operators leave, a fifth is for `latest` reads and the rest for
    /// writes, which hold a connection longest. Each share has at least one.
    #[must_use]
    pub fn share(&self, share: PostgresShare) -> usize {
        let rest = (self.connections as usize).saturating_sub(self.loads + OPERATORS);
        let latest = (rest / 5).max(1);
        match share {
            PostgresShare::Loads => self.loads.max(1),
            PostgresShare::Latest => latest,
            PostgresShare::Writes => rest.saturating_sub(latest).max(1),
            PostgresShare::Operators => OPERATORS,
        }
    }
}

/// The connections of one instance, and the budgets of their shares.
#[derive(Debug)]
pub struct Postgres {
    session: Session,
    catalogue: String,
    /// The statements on the attached table; `None` before [`open_catalogue`](Self::open_catalogue).
    attached: Arc<ArcSwapOption<Statements>>,
    /// For calls.
    callers: Arc<Connections>,
    /// For [`Postgres::load_now`].
    background: Arc<Connections>,
    /// For the other statements of background tasks and commands.
    pool: PgPool,
    statement_timeout: Duration,
    /// The timeout of a response; `None`: no limit.
    timeout: Option<Duration>,
    loads: Arc<Budget>,
    latest: Arc<Budget>,
    operators: Arc<Budget>,
    writers: Writers,
    reported: Reported,
    metrics: Arc<Metrics>,
}

impl Postgres {
    /// Connections are opened at their first use, or ahead of it by [`maintain`](Self::maintain).
    ///
    /// # Errors
    /// When the URL cannot be used: a message for the operator.
    pub fn new(options: &PostgresOptions, metrics: Arc<Metrics>) -> Result<Self, String> {
        let statement_timeout = options.statement_timeout;
        let timeout = (!statement_timeout.is_zero()).then(|| statement_timeout + CANCEL_GRACE);
        let session = Session::new(&options.url, statement_timeout)?;
        let acquire_timeout = options.acquire_timeout;
        let connections = |limit| Connections::new(session.clone(), limit, acquire_timeout);
        // A statement takes a turn of its share before a connection, so each turn needs one.
        let turns: usize = PostgresShare::all().iter().map(|share| options.share(*share)).sum();
        let reads = |share, queued, is_steady| {
            let (running, timeout) = (options.share(share), Some(acquire_timeout));
            Budget::new(Limits { running, of_one: running, queued, timeout, is_steady })
        };
        Ok(Self {
            callers: connections(u32::try_from(turns).unwrap_or(u32::MAX)),
            background: connections(1),
            pool: pool(&session, acquire_timeout, timeout),
            session,
            catalogue: options.catalogue.clone(),
            attached: Arc::default(),
            statement_timeout,
            timeout,
            loads: reads(PostgresShare::Loads, options.queued_loads, true),
            latest: reads(PostgresShare::Latest, options.queued_loads, true),
            operators: reads(PostgresShare::Operators, QUEUED_OPERATORS, false),
            writers: Writers::new(options.share(PostgresShare::Writes), acquire_timeout),
            reported: Reported::default(),
            metrics,
        })
    }

    /// Opens all connections, in at most `limit`, so that the first reads need not wait for them.
    pub async fn warm(&self, limit: Duration) {
        let (all, loads) = self.prepare();
        let callers = self.callers.warm(&all, limit);
        let background = self.background.warm(&loads, limit);
        tokio::join!(callers, background);
    }

    /// Keeps connections open and alive, detects when Postgres is down or up again, and follows changes of the attached table. Never
    /// returns.
    pub async fn maintain(self: Arc<Self>) -> Result<Infallible, Infallible> {
        let (all, loads) = self.prepare();
        let callers = Arc::clone(&self.callers).maintain(all);
        let background = Arc::clone(&self.background).maintain(loads);
        let (table, primary) = (self.follow_table(), self.follow_primary());
        let ((Ok(never), ..) | (Err(never), ..)) =
            tokio::join!(callers, background, table, primary);
        match never {}
    }

    /// Sends the pool of background tasks to the host that is the primary.
    async fn follow_primary(&self) {
        let mut primary = self.session.hosts.watch();
        loop {
            self.use_primary();
            // Never fails: the session owns the sender.
            let _ = primary.changed().await;
        }
    }

    fn use_primary(&self) {
        self.pool.set_connect_options(self.session.hosts.primary().clone());
    }

    /// Statements of calls, which are prepared on each connection that is opened ahead of its use.
    fn prepare(&self) -> (Prepare, Prepare) {
        let statements = |all: bool| {
            let attached = Arc::clone(&self.attached);
            let statements = move || match attached.load_full() {
                None => Vec::new(),
                Some(statements) => statements.of_calls(all),
            };
            Box::new(statements) as Prepare
        };
        (statements(true), statements(false))
    }

    async fn in_time<T>(
        &self,
        answer: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        within(self.timeout, answer).await
    }

    /// Closes the connections, in at most 1 s: the drain is over, so a statement that still runs is cut off.
    pub async fn close(&self) {
        let close = async {
            tokio::join!(self.callers.close(), self.background.close(), self.pool.close());
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), close).await;
    }

    /// For the operator: the address, the reason, and what to check.
    #[must_use]
    pub fn unreachable_message(&self, why: &str) -> String {
        let addresses = self.session.hosts.addresses();
        format!(
            "PostgreSQL at {addresses} cannot be reached ({why}); check DATABASE_URL, and that the server runs"
        )
    }
}

fn pool(session: &Session, acquire_timeout: Duration, timeout: Option<Duration>) -> PgPool {
    let (connect, session) = (session.hosts.primary().clone(), session.clone());
    PgPoolOptions::new()
        .max_connections(BACKGROUND)
        .acquire_timeout(acquire_timeout)
        .after_connect(move |connection, _| {
            let session = session.clone();
            Box::pin(async move { session.set(connection).await })
        })
        .after_release(move |connection, _| Box::pin(is_alive(connection, timeout)))
        .connect_lazy_with(connect)
}

async fn within<T>(
    limit: Option<Duration>,
    answer: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    let Some(limit) = limit else { return answer.await };
    let in_time = tokio::time::timeout(limit, answer).await;
    in_time.unwrap_or_else(|_| Err(sqlx::Error::Io(ErrorKind::TimedOut.into())))
}

/// sqlx pings a connection that returns to the pool, without a timeout. A connection that was cut off without a FIN or RST would
/// occupy its place in the pool until TCP gives up, a quarter of an hour later.
async fn is_alive(
    connection: &mut PgConnection,
    limit: Option<Duration>,
) -> Result<bool, sqlx::Error> {
    within(limit, connection.ping()).await.map(|()| true)
}
