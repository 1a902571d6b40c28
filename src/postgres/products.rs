//! Reading and writing products.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sqlx::pool::PoolConnection;
use sqlx::{FromRow, Postgres as Db};

use super::{Demand, Error, Postgres, given_up, read_error, unreachable, write_error};
use crate::moment::Moment;
use crate::product::{Currency, NewProduct, Patch, Price, Product, ProductId, Version};

/// Times as microseconds and prices as hundredths: exact, and no crates for dates and decimals.
macro_rules! columns {
    () => {
        "id, name, (price * 100)::bigint AS hundredths, currency, description, version, \
         (extract(epoch FROM create_time) * 1000000)::bigint AS create_micros, \
         (extract(epoch FROM update_time) * 1000000)::bigint AS update_micros"
    };
}

const LOAD: &str = concat!("SELECT ", columns!(), " FROM public.products WHERE id = ANY($1)");
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
    "UPDATE public.products SET name = coalesce($3, name), \
     price = coalesce($4::bigint / 100::numeric, price), currency = coalesce($5, currency), \
     description = coalesce($6, description) FROM patient \
     WHERE id = $1 AND ($2::bigint IS NULL OR version = $2) RETURNING ",
    columns!()
);
const CREATE: &str = concat!(
    "INSERT INTO public.products (name, price, currency, description) \
     VALUES ($1, $2::bigint / 100::numeric, $3, $4) RETURNING ",
    columns!()
);
const DELETE: &str = concat!(
    patient!("$3"),
    "DELETE FROM public.products USING patient \
     WHERE id = $1 AND ($2::bigint IS NULL OR version = $2) RETURNING version"
);
const GONE: &str = "SELECT product_id, version FROM hotshelf.deleted WHERE product_id = ANY($1)";
const ANY: &str = "SELECT EXISTS (SELECT FROM public.products)";
const VERSION: &str = "SELECT version FROM public.products WHERE id = $1";

/// What a load found.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// The products that exist.
    pub(crate) products: Vec<Product>,
    /// Those that exist and cannot be served, and why.
    pub(crate) broken: Vec<(ProductId, String)>,
    /// The last versions of products that were deleted; some of them may exist again.
    gone: HashMap<ProductId, Version>,
    /// What was found was current at this moment, or later.
    pub(crate) known_at: Moment,
}

impl Loaded {
    pub(super) fn new(
        rows: Vec<Row>,
        gone: Vec<(i64, i64)>,
        known_at: Moment,
    ) -> Result<Self, Error> {
        let products: Result<_, _> = rows.into_iter().map(Product::try_from).collect();
        let gone = gone.into_iter();
        let gone = gone.filter_map(|(id, version)| Some((ProductId::new(id)?, Version(version))));
        Ok(Self { products: products?, broken: Vec::new(), gone: gone.collect(), known_at })
    }

    /// The version that a product which was not found was last known to have.
    pub(crate) fn last_version(&self, id: ProductId) -> Version {
        self.gone.get(&id).copied().unwrap_or_default()
    }
}

#[derive(FromRow)]
pub(super) struct Row {
    id: i64,
    name: String,
    hundredths: i64,
    currency: String,
    description: String,
    version: i64,
    create_micros: i64,
    update_micros: i64,
}

impl TryFrom<Row> for Product {
    type Error = Error;

    fn try_from(row: Row) -> Result<Self, Error> {
        let broken =
            || Error::Unexpected(format!("product {} breaks the checks of its table", row.id));
        let currency = Currency::stored(&row.currency).ok_or_else(broken)?;
        Ok(Self {
            id: ProductId::new(row.id).ok_or_else(broken)?,
            price: Price::new(row.hundredths, currency).map_err(|_| broken())?,
            version: Version(row.version),
            create_time: unix(row.create_micros),
            update_time: unix(row.update_micros),
            name: row.name,
            description: row.description,
        })
    }
}

pub(super) fn unix(micros: i64) -> SystemTime {
    let distance = Duration::from_micros(micros.unsigned_abs());
    if micros < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance }
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
        let (rows, gone) = found.map_err(|error| read_error(&given_up(&mut connection, error)))?;
        Loaded::new(rows, gone, known_at)
    }

    /// The same outside the budget of callers' loads, for the relay.
    pub(crate) async fn load_now(&self, ids: &[ProductId]) -> Result<Loaded, Error> {
        let mut connection = self.connection(None).await?;
        let known_at = Moment::now();
        let found = self.in_time(load_on(&mut connection, ids)).await;
        let (rows, gone) = found.map_err(|error| read_error(&given_up(&mut connection, error)))?;
        Loaded::new(rows, gone, known_at)
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
        let query = sqlx::query_as::<Db, Row>(UPDATE)
            .bind(id.get())
            .bind(expected.map(|version| version.0))
            .bind(patch.name.as_ref().map(|name| name.as_str()))
            .bind(patch.price.map(Price::hundredths))
            .bind(patch.price.map(|price| price.currency().code().to_owned()))
            .bind(patch.description.as_ref().map(|text| text.as_str()))
            .bind(lock_timeout(deadline)?);
        let row = self.in_time(query.fetch_optional(&mut *connection)).await;
        match row.map_err(|error| write_error(&given_up(&mut connection, error)))? {
            Some(row) => row.try_into(),
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
        let query = sqlx::query_as::<Db, Row>(CREATE)
            .bind(product.name.as_str())
            .bind(product.price.hundredths())
            .bind(product.price.currency().code().to_owned())
            .bind(product.description.as_str())
            .fetch_one(&mut *connection);
        let row = self.in_time(query).await;
        row.map_err(|error| write_error(&given_up(&mut connection, error)))?.try_into()
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

    /// A write that touched no row changed nothing; this only finds the words for it.
    async fn why_untouched(
        &self,
        connection: &mut PoolConnection<Db>,
        id: ProductId,
        expected: Option<Version>,
    ) -> Error {
        if expected.is_none() {
            return Error::NotFound;
        }
        let query = sqlx::query_as(VERSION).bind(id.get()).fetch_optional(&mut **connection);
        let current: Result<Option<(i64,)>, _> = self.in_time(query).await;
        match current {
            Ok(Some((version,))) => Error::VersionMismatch { current: Version(version) },
            Ok(None) => Error::NotFound,
            Err(error) => read_error(&given_up(connection, error)),
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

/// Reads the rows of products, and the last versions of those that were deleted.
pub(super) async fn load_on(
    connection: &mut sqlx::PgConnection,
    ids: &[ProductId],
) -> Result<(Vec<Row>, Vec<(i64, i64)>), sqlx::Error> {
    let ids: Vec<i64> = ids.iter().map(|id| id.get()).collect();
    let rows: Vec<Row> = sqlx::query_as(LOAD).bind(&ids).fetch_all(&mut *connection).await?;
    if rows.len() == ids.len() {
        return Ok((rows, Vec::new()));
    }
    // A later snapshot: a product that was inserted and deleted again meanwhile is gone after that.
    let gone = sqlx::query_as(GONE).bind(&ids).fetch_all(connection).await?;
    Ok((rows, gone))
}
