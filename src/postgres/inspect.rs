//! Looking at what Postgres holds of one product.

use std::time::SystemTime;

use super::rows::unix;
use super::{Error, Postgres, read_error};
use crate::product::{ProductId, Version};

/// A change is pending until everything that its snapshot sees is applied to Redis.
const INSPECT: &str = "SELECT product.version::bigint, \
     CASE WHEN isfinite(product.update_time) \
         THEN (extract(epoch FROM product.update_time) * 1000000)::bigint END, \
     (SELECT count(*) FROM hotshelf.outbox AS change, hotshelf.feed \
      WHERE NOT pg_visible_in_snapshot(change.xid, feed.relayed) \
      AND (change.product_ids IS NULL OR asked.id = ANY(change.product_ids))) \
     FROM (SELECT $1::bigint AS id) AS asked LEFT JOIN public.products AS product USING (id)";

/// What Postgres holds of one product.
#[derive(Clone, Copy, Debug)]
pub struct RowState {
    /// Its version and when it was last changed; `None` when it does not exist.
    pub row: Option<(Version, SystemTime)>,
    /// Its changes that Redis does not reflect.
    pub pending_changes: u64,
}

impl Postgres {
    /// Looks at one product.
    pub(crate) async fn inspect(&self, id: ProductId) -> Result<RowState, Error> {
        let inspect = sqlx::query_as(INSPECT).bind(id.get()).fetch_one(&self.pool);
        let found = self.in_time(inspect).await;
        let (version, micros, pending): (Option<i64>, Option<i64>, i64) =
            found.map_err(|error| read_error(&error))?;
        let row = version.zip(micros).map(|(version, micros)| (Version(version), unix(micros)));
        Ok(RowState { row, pending_changes: pending.unsigned_abs() })
    }
}
