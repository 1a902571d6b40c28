//! Reads the epoch of the catalogue, and raises it when PostgreSQL has gone back.

use sqlx::postgres::PgConnection;

use super::{ChangeReader, Error};

/// The first instance that detects the fault replaces the epoch; for the others the condition on the old one fails. All caches
/// start empty in the new epoch, so nothing is left to relay. The stored snapshots are reset, because their xids were assigned
/// to other transactions.
const RAISE_EPOCH: &str = "WITH raised AS (UPDATE hotshelf.catalogue \
        SET epoch = gen_random_uuid(), redis_epoch = gen_random_uuid(), timeline = $2, epoch_time = clock_timestamp() \
        WHERE number = $4 AND substr(md5($3 || '/' || epoch), 1, 16) = $1 RETURNING epoch), \
    reset AS (UPDATE hotshelf.feed SET pruned = pg_current_snapshot(), relayed = pg_current_snapshot(), \
        holder = NULL, held_until = '-infinity' WHERE catalogue = $4 AND EXISTS (SELECT FROM raised)), \
    forgotten AS (DELETE FROM hotshelf.marks WHERE catalogue = $4 AND EXISTS (SELECT FROM raised)) \
    SELECT EXISTS (SELECT FROM raised)";

impl ChangeReader {
    /// The scope of the keys in Redis, and the hash of the catalogue's identity.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub(crate) async fn scope(&mut self) -> Result<(String, String), Error> {
        let changes = self.poll(0).await?;
        Ok((changes.scope, changes.catalogue))
    }

    /// Replaces the epoch `of`, unless another instance has done so already. Returns whether this one did.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub(crate) async fn raise_epoch(&mut self, of: &str) -> Result<bool, Error> {
        let Some((identity, timeline)) = self.server() else {
            return Err(Error::Unavailable("the connection was lost".to_owned()));
        };
        let catalogue = self.catalogue();
        let raise = async |connection: &mut PgConnection| {
            let raise = sqlx::query_scalar(RAISE_EPOCH).bind(of).bind(timeline).bind(identity);
            raise.bind(catalogue).fetch_one(connection).await
        };
        self.run(raise).await
    }

    /// Replaces the epoch that the last poll read.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub(crate) async fn raise_epoch_now(&mut self) -> Result<bool, Error> {
        match self.epoch() {
            Some((_, epoch)) => self.raise_epoch(&epoch).await,
            None => Ok(false),
        }
    }
}
