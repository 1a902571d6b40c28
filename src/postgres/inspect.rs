//! Reads what Postgres holds for one product.

use std::time::SystemTime;

use super::attempts::{Attempts, Kind};
use super::budget::Turn;
use super::rows::unix;
use super::{Error, Postgres};
use crate::caller::CallContext;
use crate::metrics::PostgresShare;
use crate::product::{ProductId, Version};

/// A change is pending until the `relayed` snapshot sees its transaction.
const INSPECT: &str = "SELECT product.version::bigint, \
     CASE WHEN isfinite(product.update_time) \
         THEN (extract(epoch FROM product.update_time) * 1000000)::bigint END, \
     (SELECT count(*) FROM hotshelf.outbox AS change, hotshelf.feed \
      WHERE NOT pg_visible_in_snapshot(change.xid, feed.relayed) \
      AND (change.product_ids IS NULL OR asked.id = ANY(change.product_ids))) \
     FROM (SELECT $1::bigint AS id) AS asked LEFT JOIN public.products AS product USING (id)";

/// What Postgres holds for one product.
#[derive(Clone, Copy, Debug)]
pub struct RowState {
    /// The version, and the time of the last change unless SQL has made it infinite; `None` when the product does not exist.
    pub row: Option<(Version, Option<SystemTime>)>,
    /// Changes that are not applied to Redis yet.
    pub pending_changes: u64,
}

/// The turn of an ExplainProduct call. Released when dropped.
#[derive(Debug)]
pub(crate) struct OperatorTurn {
    _turn: Turn,
}

impl Postgres {
    /// # Errors
    /// [`Error::OverBudget`].
    pub(crate) async fn operator_turn(&self, call: CallContext) -> Result<OperatorTurn, Error> {
        let turn = self.operators.turn_of(call).await;
        let turn = turn.map_err(|_| Error::OverBudget(PostgresShare::Operators))?;
        Ok(OperatorTurn { _turn: turn })
    }

    pub(crate) async fn inspect(
        &self,
        id: ProductId,
        _turn: &OperatorTurn,
    ) -> Result<RowState, Error> {
        let mut connection = self.callers.acquire(None).await?;
        let mut attempts = Attempts::new(Kind::Read, None, self.timeout);
        let (version, micros, pending): (Option<i64>, Option<i64>, i64) = loop {
            let inspect = sqlx::query_as(INSPECT).bind(id.get()).fetch_one(&mut *connection);
            let outcome = attempts.in_time(inspect).await;
            if let Some(found) = attempts.answer_or_retry(&mut connection, outcome).await? {
                break found;
            }
        };
        let row = version.map(|version| (Version(version), micros.map(unix)));
        Ok(RowState { row, pending_changes: pending.unsigned_abs() })
    }
}
