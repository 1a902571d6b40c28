//! Writes of products: one statement and one round trip each.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::{Row as _, SqlStr};

use super::attempts::{Attempts, Kind};
use super::connections::Connection;
use super::products::{PRODUCT, select};
use super::rows;
use super::statements::Statements;
use super::values::Values;
use super::writers::WriteTurn;
use super::{Error, Postgres};
use crate::caller::CallContext;
use crate::metrics::PostgresOperation;
use crate::product::{NewProduct, Patch, Product, ProductId, Version};

/// The most of the statement timeout that one wait for a lock may take. Less than half, because behind another waiter one
/// statement waits twice (for its place, then for the row), and neither wait may exceed the statement timeout.
const MAX_SLICE: f64 = 0.4;
/// A write waits for a locked row for this long, then gives its turn to other writes, if any wait. Too high: locked rows delay
/// writes of other products by that much. Too low: more statements that only find the row locked.
const LOCK_SLICE: Duration = Duration::from_millis(100);
/// The part of the caller's time, and its maximum, that is reserved for the reply that the row is locked.
const REPLY_RESERVE: (f64, Duration) = (0.1, Duration::from_millis(100));
/// Tries of a write whose row other transactions create or change between the statement and the search for the reason.
const MOST_MISSES: usize = 10;
/// Attempts of CreateProduct to find a free id.
const ID_ATTEMPTS: usize = 10;

impl Postgres {
    /// Changes a product, if it has the expected version.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::VersionMismatch`], [`Error::ProductBusy`], [`Error::Locked`], [`Error::Unreadable`],
    /// [`Error::Invalid`], [`Error::Refused`], [`Error::OverBudget`], [`Error::Unavailable`] and [`Error::OutcomeUnknown`].
    pub(crate) async fn update(
        &self,
        id: ProductId,
        patch: &Patch,
        expected: Option<Version>,
        call: CallContext,
    ) -> Result<Product, Error> {
        let statements = self.statements()?;
        let values = Values::of_patch(&statements, patch)?;
        let mut write =
            self.begin_write(PostgresOperation::Update, Some(id), call, statements).await?;
        let statement = |lock_timeout| {
            values
                .query(&values.update)
                .bind(id.get())
                .bind(expected.map(|version| version.0))
                .bind(&values.json)
                .bind(lock_timeout)
        };
        match write.run_on(id, expected, statement).await {
            Ok(row) => written(&row),
            Err(error) => Err(write.explain(error, &values).await),
        }
    }

    /// Creates a product; Postgres assigns its id.
    ///
    /// # Errors
    /// [`Error::Locked`], [`Error::Refused`], [`Error::OverBudget`], [`Error::Unavailable`] and [`Error::OutcomeUnknown`].
    pub(crate) async fn create(
        &self,
        product: &NewProduct,
        call: CallContext,
    ) -> Result<Product, Error> {
        let statements = self.statements()?;
        let values = Values::of_new(&statements, product)?;
        let mut write = self.begin_write(PostgresOperation::Create, None, call, statements).await?;
        for _ in 0..ID_ATTEMPTS {
            let inserted = write
                .run(|lock_timeout| {
                    values.query(&values.create).bind(&values.json).bind(lock_timeout)
                })
                .await;
            match inserted {
                Ok(Some(row)) => return written(&row),
                Ok(None) => write.skip_taken_ids(None).await?,
                // The sequence is at its end; free ids are below.
                Err(Error::NoMoreIds) => write.skip_taken_ids(Some(0)).await?,
                Err(error) => return Err(write.explain(error, &values).await),
            }
        }
        Err(Error::Unavailable("no id was free".to_owned()))
    }

    /// Deletes a product, if it has the expected version. Returns the deleted version.
    ///
    /// # Errors
    /// The same as [`update`](Self::update).
    pub(crate) async fn delete(
        &self,
        id: ProductId,
        expected: Option<Version>,
        call: CallContext,
    ) -> Result<Version, Error> {
        let statements = self.statements()?;
        let delete = statements.delete.clone();
        let mut write =
            self.begin_write(PostgresOperation::Delete, Some(id), call, statements).await?;
        let statement = |lock_timeout| {
            sqlx::query(delete.clone())
                .bind(id.get())
                .bind(expected.map(|version| version.0))
                .bind(lock_timeout)
        };
        let deleted = write.run_on(id, expected, statement).await?;
        Ok(Version(deleted.try_get(0).unwrap_or_default()))
    }

    async fn begin_write(
        &self,
        operation: PostgresOperation,
        id: Option<ProductId>,
        call: CallContext,
        statements: Arc<Statements>,
    ) -> Result<Write<'_>, Error> {
        let CallContext { caller, deadline, span } = call;
        self.callers.check()?;
        let began = Instant::now();
        let locked_at = deadline.map(|deadline| {
            let (share, most) = REPLY_RESERVE;
            let left = deadline.saturating_duration_since(began);
            deadline - left.mul_f64(share).min(most)
        });
        let call = CallContext { caller, deadline: locked_at, span };
        let turn = self.writers.turn(id, call).await?;
        if span.is_some() {
            let call = self.metrics.traces.call(span);
            call.set("hotshelf.queue_wait_ms", began.elapsed().as_secs_f64() * 1e3);
        }
        Ok(Write { postgres: self, operation, statements, connection: None, deadline, call, turn })
    }

    fn lock_slice(&self) -> Duration {
        match self.statement_timeout.is_zero() {
            true => LOCK_SLICE,
            false => LOCK_SLICE.min(self.statement_timeout.mul_f64(MAX_SLICE)),
        }
    }
}

pub(super) type Statement<'q> = sqlx::query::Query<'q, sqlx::Postgres, PgArguments>;

/// A write in flight.
pub(super) struct Write<'a> {
    pub(super) postgres: &'a Postgres,
    operation: PostgresOperation,
    pub(super) statements: Arc<Statements>,
    connection: Option<Connection>,
    deadline: Option<Instant>,
    /// Its deadline is earlier than `deadline` by [`REPLY_RESERVE`]: after it the write stops waiting for turns and rows.
    call: CallContext,
    turn: WriteTurn,
}

impl Write<'_> {
    /// The connection, which is kept until the turn is released.
    pub(super) async fn connection(&mut self) -> Result<&mut Connection, Error> {
        match &mut self.connection {
            Some(connection) => Ok(connection),
            none => Ok(none.insert(self.postgres.callers.acquire_alive(self.deadline).await?)),
        }
    }

    pub(super) fn attempts(&self, kind: Kind) -> Attempts {
        self.postgres.attempts(self.operation, kind, self.deadline)
    }

    /// Releases the turn and the connection if another write waits, and waits for a new turn.
    async fn yield_turn(&mut self) -> Result<(), Error> {
        let writers = &self.postgres.writers;
        if writers.has_waiting() {
            self.connection = None;
            writers.renew(&mut self.turn, self.call).await?;
        }
        Ok(())
    }

    /// Runs a statement, and repeats it while the row is locked, until the deadline.
    async fn run<'q>(
        &mut self,
        statement: impl Fn(String) -> Statement<'q>,
    ) -> Result<Option<PgRow>, Error> {
        let (mut attempts, slice) = (self.attempts(Kind::Write), self.postgres.lock_slice());
        let mut has_waited = self.turn.has_waited;
        loop {
            let lock_timeout = match lock_timeout(self.call.deadline, slice) {
                Some(lock_timeout) => lock_timeout,
                None if has_waited => return Err(Error::Locked),
                None => return Err(too_late()),
            };
            let connection = self.connection().await?;
            let answer = statement(lock_timeout).fetch_optional(&mut **connection);
            let outcome = attempts.in_time(answer).await;
            match attempts.answer_or_retry(connection, outcome).await {
                Ok(Some(answer)) => return Ok(answer),
                Ok(None) => {}
                // Without a deadline, one slice is the limit.
                Err(Error::Locked) if self.deadline.is_some() => {
                    has_waited = true;
                    self.yield_turn().await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Runs a statement on the row of `id`, and returns what it returned. Again, if it found no such row and there is one
    /// afterwards: another transaction has created the product, or given it the expected version, in between.
    async fn run_on<'q>(
        &mut self,
        id: ProductId,
        expected: Option<Version>,
        statement: impl Fn(String) -> Statement<'q>,
    ) -> Result<PgRow, Error> {
        for _ in 0..MOST_MISSES {
            if let Some(row) = self.run(&statement).await? {
                return Ok(row);
            }
            if let Some(why) = self.why_no_row(id, expected).await? {
                return Err(why);
            }
        }
        Err(Error::ProductBusy)
    }

    /// Why a write touched no row; `None` when it would now.
    async fn why_no_row(
        &mut self,
        id: ProductId,
        expected: Option<Version>,
    ) -> Result<Option<Error>, Error> {
        let mut attempts = self.attempts(Kind::Read);
        let statements = Arc::clone(&self.statements);
        let rows = loop {
            let connection = self.connection().await?;
            let outcome = attempts.in_time(select(connection, &[id], &statements)).await;
            if let Some(rows) = attempts.answer_or_retry(connection, outcome).await? {
                break rows;
            }
        };
        let Some(row) = rows.first().filter(|row| row.try_get(1).unwrap_or(false)) else {
            return Ok(Some(Error::NotFound));
        };
        let current = rows::version(row, PRODUCT);
        Ok(match rows::decode(id, row, PRODUCT) {
            _ if expected.is_some_and(|expected| expected != current) => {
                Some(Error::VersionMismatch { current })
            }
            Err(why) => Some(Error::Unreadable(why)),
            Ok(_) => None,
        })
    }

    /// Runs [`Statements::next_free_id`].
    async fn skip_taken_ids(&mut self, from: Option<i64>) -> Result<(), Error> {
        let mut attempts = self.attempts(Kind::Write);
        let next: SqlStr = self.statements.next_free_id.clone();
        loop {
            let connection = self.connection().await?;
            let skip = sqlx::query(next.clone()).bind(from).fetch_optional(&mut **connection);
            let outcome = attempts.in_time(skip).await;
            if attempts.answer_or_retry(connection, outcome).await?.is_some() {
                return Ok(());
            }
        }
    }
}

/// The lock timeout of the next statement, in milliseconds. `None` when no time is left: then the statement must not be sent.
fn lock_timeout(deadline: Option<Instant>, slice: Duration) -> Option<String> {
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    let millis = left.map_or(slice, |left| left.min(slice)).as_millis();
    (millis > 0).then(|| millis.to_string())
}

fn too_late() -> Error {
    Error::Unavailable("the caller's deadline passed before the write began".to_owned())
}

/// Decodes the row that a write returned.
fn written(row: &PgRow) -> Result<Product, Error> {
    let id = row.try_get(0).ok().and_then(ProductId::new);
    let id = id.ok_or_else(|| Error::Unreadable("id: is not 1 or more".to_owned()))?;
    rows::decode(id, row, 1).map_err(Error::Unreadable)
}
