//! Attaching a table to hotshelf, and detaching it: the plan, and its execution under short locks.

mod guess;
mod plan;
mod table;

use std::time::{Duration, Instant};

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor};

use super::error::{code, message, unreachable};
use super::schema::without_rights;
use super::session::CONNECT;
use super::{Error, Postgres, within};
pub use guess::{AttributeChoice, ColumnChoices};
pub use plan::Plan;
use table::Table;

/// The longest wait for a lock. Everything that wants the table afterwards waits behind it. Too low: a busy table is never locked.
const LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '200ms'";
/// The longest wait for all locks, which are several on a partitioned table.
const LOCKS_TIMEOUT: &str = "SET LOCAL statement_timeout = '400ms'";
/// The timeout of each statement after the table is locked.
const CHANGE_TIMEOUT: &str = "SET LOCAL statement_timeout = '5s'";
/// The pause between two tries, in which what waited behind the first one proceeds.
const PAUSE: Duration = Duration::from_millis(400);
/// The transaction that has held a lock on the table for longest.
const HOLDER: &str = "SELECT format('process %s (%s, %s for %s s): %s', a.pid, a.usename, a.state, \
        extract(epoch FROM clock_timestamp() - a.xact_start)::int, left(a.query, 80)) \
    FROM pg_stat_activity AS a WHERE a.pid <> pg_backend_pid() AND a.pid IN ( \
        SELECT pid FROM pg_locks WHERE granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
            AND relation IN (SELECT $1::bigint::oid UNION SELECT relid FROM pg_partition_tree($1::bigint::oid::regclass))) \
    ORDER BY a.xact_start LIMIT 1";

/// What the operator chose. What is `None` is guessed.
#[derive(Clone, Debug, Default)]
pub struct AttachOptions {
    pub table: String,
    pub catalogue: Option<String>,
    pub columns: ColumnChoices,
    pub price_decimals: Option<u32>,
    pub currency: Option<String>,
    pub attributes: Option<AttributeChoice>,
    /// Replace the mapping of an attached table.
    pub again: bool,
    /// Plan nothing for an attached table.
    pub if_needed: bool,
}

impl Postgres {
    /// Plans to attach a table, and changes nothing.
    ///
    /// # Errors
    /// [`Error::Unexpected`] with one sentence when the table cannot be attached, and [`Error::Unavailable`].
    pub async fn plan_attach(&self, options: &AttachOptions) -> Result<Plan, Error> {
        let mut connection = self.session.open_for_catalogue().await?;
        let table = Table::find(&mut connection, &options.table).await?;
        let plan = Plan::attach(&mut connection, &table, options).await;
        let _ = within(Some(CONNECT), connection.close()).await;
        plan
    }

    /// Plans to detach a table, which is given by its name or by that of its catalogue.
    ///
    /// # Errors
    /// The same as [`plan_attach`](Self::plan_attach).
    pub async fn plan_detach(&self, name: &str) -> Result<Plan, Error> {
        let mut connection = self.session.open_for_catalogue().await?;
        let plan = Plan::detach(&mut connection, name).await;
        let _ = within(Some(CONNECT), connection.close()).await;
        plan
    }

    /// Executes a plan in one transaction. While other transactions have the table locked it tries again, for at most `wait`.
    ///
    /// # Errors
    /// [`Error::Unexpected`] with one sentence, and [`Error::Unavailable`]. Nothing was changed.
    pub async fn execute(&self, plan: &Plan, wait: Duration) -> Result<(), Error> {
        if let Some(forbidden) = &plan.forbidden {
            return Err(Error::Unexpected(forbidden.clone()));
        }
        let opened = self.session.open(CONNECT).await;
        let mut connection = opened.map_err(|error| unreachable(&error))?;
        let (began, mut is_reported) = (Instant::now(), false);
        loop {
            let Err(error) = try_once(&mut connection, plan).await else { break };
            // Lock timeout, statement timeout, deadlock.
            if !matches!(code(&error).as_deref(), Some("55P03" | "57014" | "40P01")) {
                return Err(refused(&error));
            }
            let holder = holder(&mut connection, plan.relation).await;
            if began.elapsed() >= wait {
                return Err(Error::Unexpected(format!(
                    "the table could not be locked within {}; nothing was changed{holder}",
                    humantime::format_duration(wait)
                )));
            }
            if !std::mem::replace(&mut is_reported, true) {
                tracing::warn!("the table is in use; trying again{holder}");
            }
            tokio::time::sleep(PAUSE.mul_f64(rand::random_range(0.5..1.5))).await;
        }
        let _ = within(Some(CONNECT), connection.close()).await;
        Ok(())
    }
}

async fn try_once(connection: &mut PgConnection, plan: &Plan) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    // Without notices of the objects that go with the schema.
    transaction.execute("SET LOCAL client_min_messages = warning").await?;
    for statement in plan.statements() {
        transaction.execute(AssertSqlSafe(statement)).await?;
    }
    transaction.commit().await
}

fn refused(error: &sqlx::Error) -> Error {
    match code(error).as_deref() {
        // What depends on the column, such as a view.
        Some("2BP01") => Error::Unexpected(format!(
            "{}; drop what depends on it first, or run the statements of --print-sql with CASCADE",
            message(error)
        )),
        _ => without_rights(error),
    }
}

/// The transaction that holds the table, as the end of a message; empty when there is none.
async fn holder(connection: &mut PgConnection, relation: i64) -> String {
    let holder = sqlx::query_scalar(HOLDER).bind(relation).fetch_optional(connection).await;
    let holder: Option<String> = holder.ok().flatten();
    holder.map(|holder| format!("; it is held by {holder}")).unwrap_or_default()
}
