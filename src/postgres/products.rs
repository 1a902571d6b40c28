//! Reading and writing products.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use sqlx::Row as _;
use sqlx::pool::PoolConnection;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Postgres as Db};

use super::rows::{self, expressible, readable, strict};
use super::{Demand, Error, Postgres, given_up, read_error, unreachable, write_error};
use crate::moment::Moment;
use crate::product::{NewProduct, Patch, Price, Product, ProductId, Version};

/// One row for each id, whether there is a product or not; one snapshot for all that it says. Tests recognise it by its
/// beginning.
const LOAD: &str = concat!(
    "SELECT asked.id, product.id IS NOT NULL, gone.version, \
     (SELECT max(version) FROM hotshelf.truncations), ",
    readable!(),
    " FROM unnest($1::bigint[]) AS asked (id) \
     LEFT JOIN public.products AS product ON product.id = asked.id \
     LEFT JOIN hotshelf.deleted AS gone ON gone.product_id = asked.id"
);
/// Where the columns of a product begin in a row of [`LOAD`].
const PRODUCT: usize = 4;
/// Waiting for a row that somebody else has locked ends when the caller's time is up. In the statement itself, before
/// the row is locked: no round trip more, and gone with it. Behind another waiter there are two waits, for the other and for
/// whom the other waits for, and each may take so long. A `statement_timeout` would count both, but has to be set before
/// the statement, and would end one that has its row and is under way.
macro_rules! patient {
    ($parameter:literal) => {
        concat!(
            "WITH patient AS MATERIALIZED (SELECT set_config('lock_timeout', ",
            $parameter,
            ", true)) "
        )
    };
}
const UPDATE: &str = concat!(
    patient!("$7"),
    "UPDATE public.products AS product SET name = coalesce($3, product.name), \
     price = coalesce($4::bigint / 100::numeric, product.price), \
     currency = coalesce($5, product.currency), \
     description = coalesce($6, product.description) FROM patient \
     WHERE product.id = $1 AND ($2::bigint IS NULL OR product.version = $2) AND ",
    expressible!(),
    " RETURNING product.id, ",
    strict!()
);
const CREATE: &str = concat!(
    "INSERT INTO public.products AS product (name, price, currency, description) \
     VALUES ($1, $2::bigint / 100::numeric, $3, $4) RETURNING product.id, ",
    strict!()
);
const DELETE: &str = concat!(
    patient!("$3"),
    "DELETE FROM public.products AS product USING patient \
     WHERE product.id = $1 AND ($2::bigint IS NULL OR product.version = $2) \
     RETURNING product.version::bigint"
);
const ANY: &str = "SELECT EXISTS (SELECT FROM public.products)";

/// What a load found.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// The products that exist and that the API can express.
    pub(crate) products: Vec<Product>,
    /// The products that the API cannot express: the column and the reason.
    pub(crate) broken: Vec<(ProductId, String)>,
    /// The last versions of products that were deleted one by one; some of them may exist again.
    deleted: HashMap<ProductId, Version>,
    /// Every version below this one was deleted by TRUNCATE.
    truncated: Version,
    /// What was found was current at this moment, or later.
    pub(crate) known_at: Moment,
}

impl Loaded {
    pub(super) fn new(rows: &[PgRow], known_at: Moment) -> Result<Self, sqlx::Error> {
        let (products, broken, deleted, truncated) = Default::default();
        let mut loaded = Self { products, broken, deleted, truncated, known_at };
        for row in rows {
            loaded.add(row)?;
        }
        Ok(loaded)
    }

    fn add(&mut self, row: &PgRow) -> Result<(), sqlx::Error> {
        let (id, exists): (i64, bool) = (row.try_get(0)?, row.try_get(1)?);
        let (deleted, truncated): (Option<i64>, Option<i64>) = (row.try_get(2)?, row.try_get(3)?);
        self.truncated = Version(truncated.unwrap_or_default());
        let Some(id) = ProductId::new(id) else { return Ok(()) };
        if let Some(version) = deleted {
            self.deleted.insert(id, Version(version));
        }
        if exists {
            match rows::decode(id, row, PRODUCT) {
                Ok(product) => self.products.push(product),
                Err(why) => self.broken.push((id, why)),
            }
        }
        Ok(())
    }

    /// The version that a product which was not found was last known to have.
    pub(crate) fn last_version(&self, id: ProductId) -> Version {
        self.deleted.get(&id).copied().unwrap_or_default().max(self.truncated)
    }
}

impl Postgres {
    /// Reads products for the caches, within the budget.
    ///
    /// # Errors
    /// [`Error::OverBudget`] and [`Error::Unavailable`].
    pub(crate) async fn load(
        &self,
        ids: &[ProductId],
        demand: &Arc<Demand>,
    ) -> Result<Loaded, Error> {
        let _turn = self.budget.turn(demand).await?;
        self.metrics.postgres_loads.add((), ids.len() as u64);
        let mut connection = self.connection(None).await?;
        let known_at = Moment::now();
        let found = self.in_time(load_on(&mut connection, ids)).await;
        let rows = found.map_err(|error| read_error(&given_up(&mut connection, error)))?;
        Loaded::new(&rows, known_at).map_err(|error| read_error(&error))
    }

    /// Reads products outside the budget of the callers' loads.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub(crate) async fn load_now(&self, ids: &[ProductId]) -> Result<Loaded, Error> {
        let load = async {
            let mut connection = self.pool.acquire().await?;
            let known_at = Moment::now();
            Loaded::new(&load_on(&mut connection, ids).await?, known_at)
        };
        self.in_time(load).await.map_err(|error| read_error(&error))
    }

    /// Whether there are any products.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn has_products(&self) -> Result<bool, Error> {
        let found: Result<(bool,), _> =
            self.in_time(sqlx::query_as(ANY).fetch_one(&self.pool)).await;
        found.map(|(any,)| any).map_err(|error| read_error(&error))
    }

    /// Changes a product, if it has the expected version.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::VersionMismatch`], [`Error::Unavailable`] and
    /// [`Error::OutcomeUnknown`].
    pub(crate) async fn update(
        &self,
        id: ProductId,
        patch: &Patch,
        expected: Option<Version>,
        deadline: Option<Instant>,
    ) -> Result<Product, Error> {
        let mut connection = self.connection(deadline).await?;
        let query = sqlx::query(UPDATE)
            .bind(id.get())
            .bind(expected.map(|version| version.0))
            .bind(patch.name.as_ref().map(|name| name.as_str()))
            .bind(patch.price.map(Price::hundredths))
            .bind(patch.price.map(|price| price.currency().code().to_owned()))
            .bind(patch.description.as_ref().map(|text| text.as_str()))
            .bind(lock_timeout(deadline)?);
        let row = self.in_time(query.fetch_optional(&mut *connection)).await;
        match row.map_err(|error| write_error(&given_up(&mut connection, error)))? {
            Some(row) => written(&row),
            None => Err(self.why_untouched(&mut connection, id, expected).await),
        }
    }

    /// Creates a product; Postgres assigns its id.
    ///
    /// # Errors
    /// [`Error::Unavailable`] and [`Error::OutcomeUnknown`].
    pub(crate) async fn create(
        &self,
        product: &NewProduct,
        deadline: Option<Instant>,
    ) -> Result<Product, Error> {
        let mut connection = self.connection(deadline).await?;
        let query = sqlx::query(CREATE)
            .bind(product.name.as_str())
            .bind(product.price.hundredths())
            .bind(product.price.currency().code().to_owned())
            .bind(product.description.as_str())
            .fetch_one(&mut *connection);
        let row = self.in_time(query).await;
        written(&row.map_err(|error| write_error(&given_up(&mut connection, error)))?)
    }

    /// Deletes a product, if it has the expected version. Returns the version that it had.
    ///
    /// # Errors
    /// As those of [`update`](Self::update).
    pub(crate) async fn delete(
        &self,
        id: ProductId,
        expected: Option<Version>,
        deadline: Option<Instant>,
    ) -> Result<Version, Error> {
        let mut connection = self.connection(deadline).await?;
        let query = sqlx::query_as::<Db, (i64,)>(DELETE)
            .bind(id.get())
            .bind(expected.map(|version| version.0))
            .bind(lock_timeout(deadline)?)
            .fetch_optional(&mut *connection);
        let deleted = self.in_time(query).await;
        match deleted.map_err(|error| write_error(&given_up(&mut connection, error)))? {
            Some((version,)) => Ok(Version(version)),
            None => Err(self.why_untouched(&mut connection, id, expected).await),
        }
    }

    /// A connection, for a caller who waits until `deadline`.
    async fn connection(&self, deadline: Option<Instant>) -> Result<PoolConnection<Db>, Error> {
        let acquire = self.pool.acquire();
        let acquired = match deadline {
            Some(deadline) => tokio::time::timeout_at(deadline.into(), acquire).await,
            None => Ok(acquire.await),
        };
        acquired.map_err(|_| too_late())?.map_err(|error| unreachable(&error))
    }

    /// A write that touched no row changed nothing; this only finds the reason.
    async fn why_untouched(
        &self,
        connection: &mut PoolConnection<Db>,
        id: ProductId,
        expected: Option<Version>,
    ) -> Error {
        let found = self.in_time(load_on(connection, &[id])).await;
        let rows = match found {
            Ok(rows) => rows,
            Err(error) => return read_error(&given_up(connection, error)),
        };
        let Some(row) = rows.first().filter(|row| row.try_get(1).unwrap_or(false)) else {
            return Error::NotFound;
        };
        let current = rows::version(row, PRODUCT);
        match rows::decode(id, row, PRODUCT) {
            _ if expected.is_some_and(|expected| expected != current) => {
                Error::VersionMismatch { current }
            }
            Err(why) => Error::Unreadable(why),
            // It was created, or mended, just now.
            Ok(_) => Error::NotFound,
        }
    }
}

/// What is left until `deadline`, for Postgres to keep; it takes 0 for ever.
///
/// # Errors
/// When nothing is left: then nothing is begun.
fn lock_timeout(deadline: Option<Instant>) -> Result<String, Error> {
    let Some(deadline) = deadline else { return Ok("0".to_owned()) };
    let left = deadline.saturating_duration_since(Instant::now()).as_millis();
    // Postgres counts to 2^31 ms.
    let left = i32::try_from(left).unwrap_or(i32::MAX);
    if left == 0 { Err(too_late()) } else { Ok(left.to_string()) }
}

fn too_late() -> Error {
    Error::Unavailable("the caller's deadline has passed, and nothing was begun".to_owned())
}

/// One row for each of `ids`.
pub(super) async fn load_on(
    connection: &mut PgConnection,
    ids: &[ProductId],
) -> Result<Vec<PgRow>, sqlx::Error> {
    let ids: Vec<i64> = ids.iter().map(|id| id.get()).collect();
    sqlx::query(LOAD).bind(ids).fetch_all(connection).await
}

/// The product that a write made.
fn written(row: &PgRow) -> Result<Product, Error> {
    let id = row.try_get(0).ok().and_then(ProductId::new);
    let id = id.ok_or_else(|| Error::Unreadable("id: is not 1 or more".to_owned()))?;
    rows::decode(id, row, 1).map_err(Error::Unreadable)
}
