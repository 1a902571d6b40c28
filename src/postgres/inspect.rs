//! Reads what Postgres holds for one product.

use std::time::SystemTime;

use super::attempts::Kind;
use super::budget::Turn;
use super::rows::finite;
use super::{Error, Postgres};
use crate::caller::CallContext;
use crate::metrics::{PostgresOperation, PostgresShare};
use crate::product::{ProductId, Version};

/// What Postgres holds for one product.
#[derive(Clone, Copy, Debug)]
pub struct RowState {
    /// The version, and the time of the last change if the table has such a column and it is finite; `None` when the product
    /// does not exist.
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
        let mut attempts = self.attempts(PostgresOperation::Explain, Kind::Read, None);
        let statement = self.statements()?.inspect.clone();
        let (exists, version, micros, pending): (bool, i64, Option<i64>, i64) = loop {
            let inspect =
                sqlx::query_as(statement.clone()).bind(id.get()).fetch_one(&mut *connection);
            let outcome = attempts.in_time(inspect).await;
            if let Some(found) = attempts.answer_or_retry(&mut connection, outcome).await? {
                break found;
            }
        };
        let row = exists.then(|| (Version(version), micros.and_then(finite)));
        Ok(RowState { row, pending_changes: pending.unsigned_abs() })
    }
}
