//! Pruning the versions of products that were deleted long ago.

use std::time::Duration;

use super::{Error, Postgres, read_error};

/// Rows that another instance is pruning, or that a writer has locked, are skipped.
const PRUNE_DELETED: &str = "DELETE FROM hotshelf.deleted WHERE catalogue = $3 AND product_id IN ( \
    SELECT product_id FROM hotshelf.deleted \
    WHERE catalogue = $3 AND delete_time < clock_timestamp() - $1::bigint * interval '1 millisecond' \
    ORDER BY delete_time LIMIT $2::bigint FOR UPDATE SKIP LOCKED)";
const PRUNE_TRUNCATIONS: &str = "DELETE FROM hotshelf.truncations \
    WHERE catalogue = $2 AND delete_time < clock_timestamp() - $1::bigint * interval '1 millisecond'";

impl Postgres {
    /// Deletes at most `limit` versions of products that were deleted longer ago than `older_than`, and those of every TRUNCATE
    /// from before then. Returns their number. `older_than` must exceed every TTL: for a product that is still cached, a load
    /// that finds no row would have no version to prove that the deletion is newer.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn prune_deleted(&self, older_than: Duration, limit: u32) -> Result<u64, Error> {
        let millis = i64::try_from(older_than.as_millis()).unwrap_or(i64::MAX);
        let catalogue = self.statements()?.mapping.number;
        let prune = async {
            let deleted = sqlx::query(PRUNE_DELETED).bind(millis).bind(i64::from(limit));
            let deleted = deleted.bind(catalogue).execute(&self.pool).await?.rows_affected();
            let truncated = sqlx::query(PRUNE_TRUNCATIONS).bind(millis).bind(catalogue);
            let truncated = truncated.execute(&self.pool).await?;
            Ok(deleted + truncated.rows_affected())
        };
        self.in_time(prune).await.map_err(|error| read_error(&error))
    }
}
