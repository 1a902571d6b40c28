//! Forgetting what was deleted long ago.

use std::time::Duration;

use super::{Error, Postgres, read_error};

/// What another instance forgets at the same time is left to it, and so is what a writer is about to write again.
const PRUNE_DELETED: &str = "DELETE FROM hotshelf.deleted WHERE product_id IN ( \
    SELECT product_id FROM hotshelf.deleted \
    WHERE delete_time < clock_timestamp() - $1::bigint * interval '1 millisecond' \
    ORDER BY delete_time LIMIT $2::bigint FOR UPDATE SKIP LOCKED)";
const PRUNE_TRUNCATIONS: &str = "DELETE FROM hotshelf.truncations \
    WHERE delete_time < clock_timestamp() - $1::bigint * interval '1 millisecond'";

impl Postgres {
    /// Forgets the versions of at most `limit` products that were deleted longer ago than `older_than`, and of every TRUNCATE
    /// that was. Returns how many. Only what no cache can hold any more may be forgotten: a load that finds nothing could not say
    /// that the absence is newer.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn prune_deleted(&self, older_than: Duration, limit: u32) -> Result<u64, Error> {
        let millis = i64::try_from(older_than.as_millis()).unwrap_or(i64::MAX);
        let prune = async {
            let deleted = sqlx::query(PRUNE_DELETED).bind(millis).bind(i64::from(limit));
            let deleted = deleted.execute(&self.pool).await?.rows_affected();
            let truncated = sqlx::query(PRUNE_TRUNCATIONS).bind(millis).execute(&self.pool).await?;
            Ok(deleted + truncated.rows_affected())
        };
        self.in_time(prune).await.map_err(|error| read_error(&error))
    }
}
