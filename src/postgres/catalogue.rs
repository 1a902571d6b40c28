//! The catalogue that an instance serves: its mapping is read at the start, and again when the table or the mapping changes.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use sqlx::Executor;

use super::error::read_error;
use super::mapping::Mapping;
use super::statements::Statements;
use super::{Error, Postgres};
use crate::product::Currency;

/// How often the table is compared with the mapping. Too high: an added column is reported later. Too low: needless statements.
const INTERVAL: Duration = Duration::from_secs(5);
/// The timeout of reading the mapping, where statements have none.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

impl Postgres {
    /// Reads the mapping of the catalogue, and builds the statements from it.
    ///
    /// # Errors
    /// [`Error::NotAttached`], [`Error::Unavailable`], and [`Error::Unexpected`] when the table cannot be served.
    pub async fn open_catalogue(&self) -> Result<(), Error> {
        let limit = self.timeout.unwrap_or(READ_TIMEOUT);
        let mapping = tokio::time::timeout(limit, self.read_mapping()).await;
        let late = |_| Error::Unavailable("no answer came in time".to_owned());
        self.take_mapping(mapping.map_err(late)??);
        Ok(())
    }

    /// The statements on the attached table.
    /// The currency of all prices, where the table has one.
    pub(crate) fn only_currency(&self) -> Option<Currency> {
        let statements = self.statements().ok()?;
        statements.mapping.fixed_currency.filter(|_| statements.mapping.currency.is_none())
    }

    pub(super) fn statements(&self) -> Result<Arc<Statements>, Error> {
        let missing = || Error::NotAttached("no table is attached".to_owned());
        self.attached.load_full().ok_or_else(missing)
    }

    async fn read_mapping(&self) -> Result<Mapping, Error> {
        let mut transaction = self.pool.begin().await.map_err(|error| read_error(&error))?;
        // So that the names of all types are qualified that are not PostgreSQL's own.
        let path = transaction.execute("SET LOCAL search_path = pg_catalog, pg_temp").await;
        path.map_err(|error| read_error(&error))?;
        Mapping::read(&mut transaction, &self.catalogue).await
    }

    /// Builds the statements anew if the mapping or the table has changed.
    fn take_mapping(&self, mapping: Mapping) {
        let known = self.attached.load_full();
        if known.as_ref().is_some_and(|known| known.mapping == mapping) {
            return;
        }
        let (schema, table) = &mapping.table;
        let (table, missing) = (format!("{schema}.{table}"), mapping.missing.join(", "));
        let unmapped = mapping.unmapped.join(", ");
        match known {
            Some(known) if known.mapping.epoch == mapping.epoch => tracing::warn!(
                %table, %missing, %unmapped,
                "the table was changed; it is served as far as its mapping allows, until hotshelf attach --again takes the change in"
            ),
            Some(_) => tracing::info!(%table, "the table was attached again"),
            // `check` reports how the table differs.
            None => {}
        }
        self.attached.store(Some(Arc::new(Statements::new(mapping))));
    }

    /// Compares the table with its mapping from time to time. Never returns.
    pub(super) async fn follow_table(&self) -> Result<Infallible, Infallible> {
        let mut reported = String::new();
        loop {
            tokio::time::sleep(INTERVAL.mul_f64(rand::random_range(0.8..1.2))).await;
            let problem = match self.open_catalogue().await {
                // While PostgreSQL does not answer there is nothing to compare; others report that.
                Ok(()) | Err(Error::Unavailable(_)) => String::new(),
                Err(error) => error.to_string(),
            };
            if !problem.is_empty() && problem != reported {
                tracing::error!(%problem, "the table can no longer be served, except for what is cached");
            }
            reported = problem;
        }
    }
}
