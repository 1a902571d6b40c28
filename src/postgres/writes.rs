//! Writing products: one statement each, and one round trip.

use std::time::{Duration, Instant};

use sqlx::Row as _;
use sqlx::postgres::{PgArguments, PgRow};

use super::attempts::{Attempts, Kind};
use super::connections::Connection;
use super::products::{PRODUCT, select};
use super::rows::{self, expressible, strict};
use super::writers::WriteTurn;
use super::{Error, Postgres};
use crate::caller::CallContext;
use crate::product::{NewProduct, Patch, Price, Product, ProductId, Version};

/// Waiting for a row that another transaction has locked ends after a slice of the caller's time. In the statement itself, before
/// the row is locked: no round trip more, and gone with it.
macro_rules! patient {
    ($parameter:literal) => {
        concat!(
            "WITH patient AS MATERIALIZED (SELECT set_config('lock_timeout', ",
            $parameter,
            "::text, true)) "
        )
    };
}
pub(super) const UPDATE: &str = concat!(
    patient!("$7"),
    "UPDATE public.products AS product SET name = coalesce($3::text, product.name), \
     price = coalesce($4::bigint / 100::numeric, product.price), \
     currency = coalesce($5::text, product.currency), \
     description = coalesce($6::text, product.description) FROM patient \
     WHERE product.id = $1::bigint AND ($2::bigint IS NULL OR product.version = $2) AND ",
    expressible!(),
    " RETURNING product.id, ",
    strict!()
);
pub(super) const CREATE: &str = concat!(
    patient!("$5"),
    "INSERT INTO public.products AS product (name, price, currency, description) \
     SELECT $1::text, $2::bigint / 100::numeric, $3::text, $4::text FROM patient \
     ON CONFLICT (id) DO NOTHING RETURNING product.id, ",
    strict!()
);
pub(super) const DELETE: &str = concat!(
    patient!("$3"),
    "DELETE FROM public.products AS product USING patient \
     WHERE product.id = $1::bigint AND ($2::bigint IS NULL OR product.version = $2) \
     RETURNING product.version::bigint"
);
/// Moves the sequence of the ids behind those that are taken, from its last value on, or from `$1`: SQL may insert products with ids of
/// its own choice. Where many are taken it leaps; short ways are walked, because `setval` would take the sequence back behind a
/// `nextval` that runs at the same time.
const NEXT_FREE_ID: &str = "WITH ids AS ( \
        SELECT name, coalesce($1::bigint, pg_sequence_last_value(name), 0) AS last \
        FROM (SELECT pg_get_serial_sequence('public.products', 'id')::regclass AS name) AS owned), \
    free AS (SELECT name, last, ( \
            SELECT taken.id FROM (SELECT last AS id UNION ALL \
                (SELECT id FROM public.products WHERE id > last ORDER BY id)) AS taken \
            WHERE taken.id < 9223372036854775807 AND NOT EXISTS ( \
                SELECT FROM public.products AS next WHERE next.id = taken.id + 1) \
            ORDER BY taken.id LIMIT 1) AS before \
        FROM ids) \
    SELECT CASE WHEN $1 IS NOT NULL OR before - last > 10000 THEN setval(name, greatest(before, 1), before > 0) \
        ELSE coalesce((SELECT max(id) FROM ( \
            SELECT nextval(name) AS id FROM generate_series(last + 1, before)) AS walked), before) END \
    FROM free";

/// A statement that waits longer for a lock is sent again. The server's limit for statements is not for waiting, and behind
/// another waiter there are two waits in one statement.
const SLICES_OF_STATEMENT: f64 = 0.4;
/// A write that waits for a row does so for this long, then lets the writes go first that wait for a connection. Too high: rows that
/// other transactions have locked cost the writes of other products that time. Too low: statements that only find a row locked.
const LOCK_SLICE: Duration = Duration::from_millis(100);
/// What is left of the caller's time when it is told that the row is locked.
const TO_TELL: (f64, Duration) = (0.1, Duration::from_millis(100));
/// Tries of a write whose row other transactions create or change between the statement and the search for the reason.
const MOST_MISSES: usize = 10;
/// How often CreateProduct looks for an id that is free.
const MOST_IDS: usize = 10;

impl Postgres {
    /// Changes a product, if it has the expected version.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::VersionMismatch`], [`Error::ProductBusy`], [`Error::Locked`], [`Error::Unreadable`],
    /// [`Error::Refused`], [`Error::OverBudget`], [`Error::Unavailable`] and [`Error::OutcomeUnknown`].
    pub(crate) async fn update(
        &self,
        id: ProductId,
        patch: &Patch,
        expected: Option<Version>,
        call: CallContext,
    ) -> Result<Product, Error> {
        let mut write = self.begin_write(Some(id), call).await?;
        let statement = |lock_timeout| {
            sqlx::query(UPDATE)
                .bind(id.get())
                .bind(expected.map(|version| version.0))
                .bind(patch.name.as_ref().map(|name| name.as_str()))
                .bind(patch.price.map(Price::hundredths))
                .bind(patch.price.map(|price| price.currency().code().to_owned()))
                .bind(patch.description.as_ref().map(|text| text.as_str()))
                .bind(lock_timeout)
        };
        written(&write.run_on(id, expected, statement).await?)
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
        let mut write = self.begin_write(None, call).await?;
        for _ in 0..MOST_IDS {
            let inserted = write
                .run(|lock_timeout| {
                    sqlx::query(CREATE)
                        .bind(product.name.as_str())
                        .bind(product.price.hundredths())
                        .bind(product.price.currency().code().to_owned())
                        .bind(product.description.as_str())
                        .bind(lock_timeout)
                })
                .await;
            match inserted {
                Ok(Some(row)) => return written(&row),
                Ok(None) => write.skip_taken_ids(None).await?,
                // The sequence is at its end: the ids that are free are below.
                Err(Error::NoMoreIds) => write.skip_taken_ids(Some(0)).await?,
                Err(error) => return Err(error),
            }
        }
        Err(Error::Unavailable("no id was free".to_owned()))
    }

    /// Deletes a product, if it has the expected version. Returns the version that it had.
    ///
    /// # Errors
    /// As those of [`update`](Self::update).
    pub(crate) async fn delete(
        &self,
        id: ProductId,
        expected: Option<Version>,
        call: CallContext,
    ) -> Result<Version, Error> {
        let mut write = self.begin_write(Some(id), call).await?;
        let statement = |lock_timeout| {
            sqlx::query(DELETE)
                .bind(id.get())
                .bind(expected.map(|version| version.0))
                .bind(lock_timeout)
        };
        let deleted = write.run_on(id, expected, statement).await?;
        Ok(Version(deleted.try_get(0).unwrap_or_default()))
    }

    async fn begin_write(
        &self,
        id: Option<ProductId>,
        call: CallContext,
    ) -> Result<Write<'_>, Error> {
        let CallContext { caller, deadline } = call;
        self.callers.check()?;
        let began = Instant::now();
        let locked_at = deadline.map(|deadline| {
            let (share, most) = TO_TELL;
            let left = deadline.saturating_duration_since(began);
            deadline - left.mul_f64(share).min(most)
        });
        let call = CallContext { caller, deadline: locked_at };
        let turn = self.writers.turn(id, call).await?;
        Ok(Write { postgres: self, connection: None, deadline, call, turn })
    }

    fn lock_slice(&self) -> Duration {
        match self.statement_timeout.is_zero() {
            true => LOCK_SLICE,
            false => LOCK_SLICE.min(self.statement_timeout.mul_f64(SLICES_OF_STATEMENT)),
        }
    }
}

type Statement<'q> = sqlx::query::Query<'q, sqlx::Postgres, PgArguments>;

/// A write on its way.
struct Write<'a> {
    postgres: &'a Postgres,
    connection: Option<Connection>,
    deadline: Option<Instant>,
    /// With the moment from which on it waits for a row no longer.
    call: CallContext,
    turn: WriteTurn,
}

impl Write<'_> {
    /// The connection, for as long as the turn lasts.
    async fn connection(&mut self) -> Result<&mut Connection, Error> {
        match &mut self.connection {
            Some(connection) => Ok(connection),
            none => Ok(none.insert(self.postgres.callers.acquire_alive(self.deadline).await?)),
        }
    }

    fn attempts(&self, kind: Kind) -> Attempts {
        Attempts::new(kind, self.deadline, self.postgres.timeout)
    }

    /// Gives the turn to another write, if any waits for one.
    async fn let_others_go_first(&mut self) -> Result<(), Error> {
        let writers = &self.postgres.writers;
        if writers.is_wanted() {
            self.connection = None;
            writers.renew(&mut self.turn, self.call).await?;
        }
        Ok(())
    }

    /// Runs a statement, again for as long as it waits for a row within the caller's time.
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
            match attempts.settle(connection, outcome).await {
                Ok(Some(answer)) => return Ok(answer),
                Ok(None) => {}
                // Without a deadline, a slice is all.
                Err(Error::Locked) if self.deadline.is_some() => {
                    has_waited = true;
                    self.let_others_go_first().await?;
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
            if let Some(why) = self.why_untouched(id, expected).await? {
                return Err(why);
            }
        }
        Err(Error::ProductBusy)
    }

    /// Why a write touched no row; `None` when it would now.
    async fn why_untouched(
        &mut self,
        id: ProductId,
        expected: Option<Version>,
    ) -> Result<Option<Error>, Error> {
        let mut attempts = self.attempts(Kind::Read);
        let rows = loop {
            let connection = self.connection().await?;
            let outcome = attempts.in_time(select(connection, &[id])).await;
            if let Some(rows) = attempts.settle(connection, outcome).await? {
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

    /// Moves the sequence of the ids to one that is free.
    async fn skip_taken_ids(&mut self, from: Option<i64>) -> Result<(), Error> {
        let mut attempts = self.attempts(Kind::Write);
        loop {
            let connection = self.connection().await?;
            let skip = sqlx::query(NEXT_FREE_ID).bind(from).fetch_optional(&mut **connection);
            let outcome = attempts.in_time(skip).await;
            if attempts.settle(connection, outcome).await?.is_some() {
                return Ok(());
            }
        }
    }
}

/// How long a statement may wait for a lock, in milliseconds. `None` when nothing is left until `deadline`; then nothing is begun.
fn lock_timeout(deadline: Option<Instant>, slice: Duration) -> Option<String> {
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    let millis = left.map_or(slice, |left| left.min(slice)).as_millis();
    (millis > 0).then(|| millis.to_string())
}

fn too_late() -> Error {
    Error::Unavailable("the caller's deadline has passed, and nothing was begun".to_owned())
}

/// The product that a write made.
fn written(row: &PgRow) -> Result<Product, Error> {
    let id = row.try_get(0).ok().and_then(ProductId::new);
    let id = id.ok_or_else(|| Error::Unreadable("id: is not 1 or more".to_owned()))?;
    rows::decode(id, row, 1).map_err(Error::Unreadable)
}
