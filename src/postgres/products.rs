use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::PgConnection;
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::attempts::Kind;
use super::connections::Connections;
use super::error::{message, read_error, row_of_statement_raised};
use super::inspect::OperatorTurn;
use super::rows;
use super::statements::Statements;
use super::{Demand, Error, Postgres};
use crate::metrics::{PostgresOperation, PostgresShare};
use crate::moment::Moment;
use crate::product::{Product, ProductId, Version};

/// The index of a product's first column in a row of [`Statements::load`].
pub(super) const PRODUCT: usize = 4;

/// The result of a load.
#[derive(Debug)]
pub(crate) struct LoadedRows {
    /// The products that exist and that the API can express.
    pub(crate) products: Vec<Product>,
    /// The products that exist and that the API cannot express, with the column and the reason.
    pub(crate) broken: Vec<(ProductId, String)>,
    /// The last versions of products that were deleted by DELETE; some of them may exist again.
    deleted: HashMap<ProductId, Version>,
    /// The newest TRUNCATE: it deleted every version below this one.
    truncated: Version,
    /// How long the first statement waited for its turn.
    pub(crate) queued: Duration,
    /// The moment before the first statement: the result was current then or later.
    pub(crate) known_at: Moment,
}

impl LoadedRows {
    pub(super) fn new(known_at: Moment) -> Self {
        let (products, broken, deleted, truncated) = Default::default();
        Self { products, broken, deleted, truncated, queued: Duration::ZERO, known_at }
    }

    /// The last known version of a product that was not found.
    pub(crate) fn last_version(&self, id: ProductId) -> Version {
        self.deleted.get(&id).copied().unwrap_or_default().max(self.truncated)
    }
}

impl Postgres {
    /// Reads products for the caches, within the budget of a share.
    ///
    /// # Errors
    /// [`Error::OverBudget`] and [`Error::Unavailable`].
    pub(crate) async fn load(
        &self,
        ids: &[ProductId],
        demand: &Arc<Demand>,
        share: PostgresShare,
    ) -> Result<LoadedRows, Error> {
        self.callers.check()?;
        let budget = if share == PostgresShare::Latest { &self.latest } else { &self.loads };
        let asked = Instant::now();
        let turn = budget.turn(demand).await;
        let _turn = turn.map_err(|_| Error::OverBudget(share))?;
        let queued = asked.elapsed();
        self.metrics.postgres_loads.add((), ids.len() as u64);
        // Boxed: the future is large, and each load that waits for Redis would contain it.
        let loaded = Box::pin(self.load_on(&self.callers, ids)).await?;
        Ok(LoadedRows { queued, ..loaded })
    }

    /// Reads products for a background task, outside the budgets and the connections of calls.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub(crate) async fn load_now(&self, ids: &[ProductId]) -> Result<LoadedRows, Error> {
        Box::pin(self.load_on(&self.background, ids)).await
    }

    /// Reads products for a comparison with memory, in the share of operators: no caller waits for it.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub(crate) async fn load_to_compare(
        &self,
        ids: &[ProductId],
        _turn: &OperatorTurn,
    ) -> Result<LoadedRows, Error> {
        Box::pin(self.load_on(&self.callers, ids)).await
    }

    async fn load_on(
        &self,
        connections: &Arc<Connections>,
        ids: &[ProductId],
    ) -> Result<LoadedRows, Error> {
        let (mut statements, mut was_renewed) = (self.statements()?, false);
        let mut loaded = LoadedRows::new(Moment::now());
        let mut parts = vec![ids];
        while let Some(part) = parts.pop() {
            match self.rows(connections, part, &statements).await {
                Ok(rows) => rows.iter().try_for_each(|row| self.add(&mut loaded, row))?,
                // A row raised an error, although the columns are selected so that none should. Halving isolates it.
                Err(Failure::Raised(why)) if part.len() == 1 => {
                    self.add_broken(&mut loaded, part[0], Version(0), why);
                }
                Err(Failure::Raised(_)) => parts.extend(part.chunks(part.len().div_ceil(2))),
                // The statements are built anew, once.
                Err(Failure::Other(Error::TableChanged(_))) if !was_renewed => {
                    was_renewed = true;
                    self.open_catalogue().await?;
                    statements = self.statements()?;
                    parts.push(part);
                }
                Err(Failure::Other(error)) => return Err(error),
            }
        }
        Ok(loaded)
    }

    async fn rows(
        &self,
        connections: &Arc<Connections>,
        ids: &[ProductId],
        statements: &Statements,
    ) -> Result<Vec<PgRow>, Failure> {
        let mut connection = connections.acquire(None).await?;
        let mut attempts = self.attempts(PostgresOperation::Load, Kind::Read, None);
        loop {
            let outcome = attempts.in_time(select(&mut connection, ids, statements)).await;
            if let Some(why) = outcome.as_ref().err().filter(|error| row_of_statement_raised(error))
            {
                let why = message(why);
                connection.record_outcome(&outcome);
                return Err(Failure::Raised(why));
            }
            if let Some(rows) = attempts.answer_or_retry(&mut connection, outcome).await? {
                return Ok(rows);
            }
        }
    }

    fn add(&self, loaded: &mut LoadedRows, row: &PgRow) -> Result<(), Error> {
        let (id, exists, deleted, truncated) = found(row).map_err(|error| read_error(&error))?;
        loaded.truncated = loaded.truncated.max(Version(truncated.unwrap_or_default()));
        let Some(id) = ProductId::new(id) else { return Ok(()) };
        if let Some(version) = deleted {
            loaded.deleted.insert(id, Version(version));
        }
        if exists {
            match rows::decode(id, row, PRODUCT) {
                Ok(product) => loaded.products.push(product),
                Err(why) => self.add_broken(loaded, id, rows::version(row, PRODUCT), why),
            }
        }
        Ok(())
    }

    fn add_broken(&self, loaded: &mut LoadedRows, id: ProductId, version: Version, why: String) {
        if self.reported.is_new(id, version) {
            tracing::warn!(%id, %version, %why, "a product cannot be expressed by the API; it is left out until a write corrects it");
        }
        loaded.broken.push((id, why));
    }

    /// Whether the table has any rows.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn has_products(&self) -> Result<bool, Error> {
        let any = sqlx::query_as(self.statements()?.any.clone()).fetch_one(&self.pool);
        let found: Result<(bool,), _> = self.in_time(any).await;
        found.map(|(any,)| any).map_err(|error| read_error(&error))
    }
}

enum Failure {
    /// A value of a row made the statement fail.
    Raised(String),
    Other(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

/// The columns before those of the product: the id, whether it exists, its last version if it was deleted, the last TRUNCATE.
type Found = (i64, bool, Option<i64>, Option<i64>);

fn found(row: &PgRow) -> Result<Found, sqlx::Error> {
    Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?))
}

/// Runs [`Statements::load`].
pub(super) async fn select(
    connection: &mut PgConnection,
    ids: &[ProductId],
    statements: &Statements,
) -> Result<Vec<PgRow>, sqlx::Error> {
    let ids: Vec<i64> = ids.iter().map(|id| id.get()).collect();
    sqlx::query(statements.load.clone()).bind(ids).fetch_all(connection).await
}
