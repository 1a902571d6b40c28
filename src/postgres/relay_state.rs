//! The state that relays share through Postgres: the lease, how far the outbox is applied to Redis, and how far it may be pruned.

use std::time::Duration;

use sqlx::postgres::PgConnection;

use super::snapshot::Snapshot;
use super::{ChangeReader, Error};

/// Takes or renews the lease of the relay. An expired lease is free.
const HOLD: &str = "UPDATE hotshelf.feed \
    SET holder = $1::uuid, held_until = clock_timestamp() + $2::bigint * interval '1 millisecond' \
    WHERE catalogue = $3 AND (holder = $1::uuid OR held_until < clock_timestamp()) RETURNING relayed::text";
/// Removes snapshots and rows with xids in the future. They are from before a crash that lost transactions which were not on
/// disk, or from another cluster through a dump; their xids will be assigned to other transactions. Only the newest 100 marks
/// are checked at a time.
const REPAIR: &str = "WITH now AS (SELECT pg_snapshot_xmax(pg_current_snapshot()) AS xmax), \
    lost AS (DELETE FROM hotshelf.marks USING now WHERE pg_snapshot_xmax(snapshot) > now.xmax \
        AND id = ANY(ARRAY( \
            SELECT id FROM hotshelf.marks WHERE catalogue = $1 ORDER BY id DESC LIMIT 100))), \
    foreign_rows AS (DELETE FROM hotshelf.outbox WHERE catalogue = $1 AND xid >= pg_snapshot_xmax(pg_current_snapshot())) \
    UPDATE hotshelf.feed SET pruned = pg_current_snapshot(), relayed = '1:1:' FROM now \
    WHERE catalogue = $1 AND (pg_snapshot_xmax(pruned) > now.xmax OR pg_snapshot_xmax(relayed) > now.xmax)";
const RELEASE: &str =
    "UPDATE hotshelf.feed SET held_until = '-infinity' WHERE catalogue = $2 AND holder = $1::uuid";
/// Fencing of the catalogue `$4`: only the holder of the lease may write, and only in the epoch of its cursor, because snapshots
/// of an earlier epoch contain xids that were assigned to other transactions since.
macro_rules! fenced {
    () => {
        "feed.catalogue = $4 AND holder = $1::uuid AND EXISTS (SELECT FROM hotshelf.catalogue \
         WHERE number = $4 AND substr(md5($2 || '/' || epoch), 1, 16) = $3)"
    };
}
const MARK: &str = concat!(
    "INSERT INTO hotshelf.marks (catalogue, snapshot, relayed) SELECT $4, $5::pg_snapshot, $6 FROM hotshelf.feed WHERE ",
    fenced!(),
    // The row lock waits for a concurrent RAISE_EPOCH; the condition is then evaluated again, and fails.
    " FOR NO KEY UPDATE RETURNING id, token::text"
);
const RECORD_RELAYED: &str =
    concat!("UPDATE hotshelf.feed SET relayed = $5::pg_snapshot WHERE ", fenced!());
/// Advances `pruned` before rows are deleted, so that an instance that missed rows detects it. The new value is the newest mark
/// that is old enough and relayed, or older than every entry in Redis can be. The scan starts at the newest mark, because there
/// may be one for each write of several hours.
const ADVANCE: &str = concat!(
    "UPDATE hotshelf.feed SET relayed = coalesce($5::pg_snapshot, relayed), pruned = coalesce( \
        (SELECT snapshot FROM hotshelf.marks \
         WHERE marks.catalogue = $4 AND (relayed AND mark_time < clock_timestamp() - $6::bigint * interval '1 millisecond' \
             OR mark_time < clock_timestamp() - $7::bigint * interval '1 millisecond') \
             AND pg_snapshot_xmax(snapshot) BETWEEN pg_snapshot_xmax(pruned) AND pg_snapshot_xmax(pg_current_snapshot()) \
         ORDER BY id DESC LIMIT 1), pruned) \
     WHERE ",
    fenced!()
);
/// Deletes only rows that the `pruned` snapshot in the table sees, so it is safe without the lease and at any time. Deletes
/// nothing while that snapshot is in the future and waits for [`REPAIR`].
const PRUNE: &str = "WITH marker AS (SELECT pruned FROM hotshelf.feed \
        WHERE catalogue = $2 AND pg_snapshot_xmax(pruned) <= pg_snapshot_xmax(pg_current_snapshot())) \
    DELETE FROM hotshelf.outbox WHERE catalogue = $2 AND (xid, seq) IN ( \
        SELECT xid, seq FROM hotshelf.outbox \
        WHERE catalogue = $2 AND xid < pg_snapshot_xmax((SELECT pruned FROM marker)) \
            AND pg_visible_in_snapshot(xid, (SELECT pruned FROM marker)) \
        ORDER BY xid, seq LIMIT $1)";
const PRUNE_MARKS: &str = "DELETE FROM hotshelf.marks \
    WHERE id = ANY(ARRAY( \
            SELECT id FROM hotshelf.marks WHERE catalogue = $3 ORDER BY id LIMIT $2)) \
        AND mark_time < clock_timestamp() - 2 * $1::bigint * interval '1 millisecond' \
        AND id < (SELECT max(id) FROM hotshelf.marks WHERE catalogue = $3)";
const HAS_MARK: &str = "SELECT coalesce(EXISTS (SELECT FROM hotshelf.marks WHERE catalogue = $3 AND id = $1 AND token::text = $2) \
    OR $1 < (SELECT min(id) FROM hotshelf.marks WHERE catalogue = $3), false)";
const ABANDON_REDIS: &str =
    "UPDATE hotshelf.catalogue SET redis_epoch = gen_random_uuid() WHERE number = $1";
/// Rows that one statement deletes. A row contains up to a thousand changes.
const CHUNK: u32 = 500;

/// How long rows of the outbox are kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Retention {
    /// For rows that are applied to Redis: the time since they became visible.
    pub(crate) relayed: Duration,
    /// For other rows: the longest time for which Redis may contain an older entry.
    pub(crate) unrelayed: Duration,
}

/// A mark in the table: its id and its random token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) id: i64,
    pub(crate) token: String,
}

impl ChangeReader {
    /// Takes or renews the lease of the relay. Returns the `relayed` snapshot, or `None` while another instance holds the lease.
    pub(crate) async fn hold_relay(
        &mut self,
        holder: &str,
        lease: Duration,
    ) -> Result<Option<Snapshot>, Error> {
        let catalogue = self.catalogue();
        let held: Option<(String,)> = self
            .run(async |connection| {
                sqlx::query(REPAIR).bind(catalogue).execute(&mut *connection).await?;
                let hold = sqlx::query_as(HOLD).bind(holder).bind(millis(lease)).bind(catalogue);
                hold.fetch_optional(connection).await
            })
            .await?;
        held.map(|(relayed,)| relayed.parse().map_err(Error::Unexpected)).transpose()
    }

    /// Releases the lease, so that another instance need not wait until it expires.
    pub(crate) async fn release_relay(&mut self, holder: &str) -> Result<(), Error> {
        let catalogue = self.catalogue();
        let release = async |connection: &mut PgConnection| {
            let release = sqlx::query(RELEASE).bind(holder).bind(catalogue);
            release.execute(connection).await.map(drop)
        };
        self.run(release).await
    }

    /// Records the time of `snapshot`, and whether all rows that it sees are relayed. `None` when this instance has lost the
    /// lease.
    pub(crate) async fn mark(
        &mut self,
        holder: &str,
        snapshot: &Snapshot,
        relayed: bool,
    ) -> Result<Option<Mark>, Error> {
        let (snapshot, Some((identity, epoch))) = (snapshot.to_string(), self.epoch()) else {
            return Ok(None);
        };
        let catalogue = self.catalogue();
        let mark = async |connection: &mut PgConnection| {
            let mark = sqlx::query_as(MARK).bind(holder).bind(identity).bind(epoch);
            mark.bind(catalogue).bind(snapshot).bind(relayed).fetch_optional(connection).await
        };
        let mark = self.run(mark).await?;
        Ok(mark.map(|(id, token)| Mark { id, token }))
    }

    /// Whether this database contains a mark, or may have pruned it.
    pub(crate) async fn has_mark(&mut self, mark: &Mark) -> Result<bool, Error> {
        let catalogue = self.catalogue();
        let find = async |connection: &mut PgConnection| {
            let find = sqlx::query_scalar(HAS_MARK).bind(mark.id).bind(&mark.token);
            find.bind(catalogue).fetch_one(connection).await
        };
        self.run(find).await
    }

    /// Records that all rows that were read are relayed. Returns whether this instance still holds the lease.
    pub(crate) async fn record_relayed(&mut self, holder: &str) -> Result<bool, Error> {
        let (relayed, Some((identity, epoch))) = (self.seen().to_string(), self.epoch()) else {
            return Ok(false);
        };
        let catalogue = self.catalogue();
        let record = async |connection: &mut PgConnection| {
            let record = sqlx::query(RECORD_RELAYED).bind(holder).bind(identity).bind(epoch);
            record.bind(catalogue).bind(relayed).execute(connection).await
        };
        Ok(self.run(record).await?.rows_affected() == 1)
    }

    /// Records how far the outbox is relayed and how far it may be pruned. Returns whether this instance still holds the lease.
    pub(crate) async fn advance(
        &mut self,
        holder: &str,
        relayed: Option<&Snapshot>,
        keep: Retention,
    ) -> Result<bool, Error> {
        let Some((identity, epoch)) = self.epoch() else { return Ok(false) };
        let (relayed, catalogue) = (relayed.map(Snapshot::to_string), self.catalogue());
        let advance = async |connection: &mut PgConnection| {
            let advanced = sqlx::query(ADVANCE)
                .bind(holder)
                .bind(identity)
                .bind(epoch)
                .bind(catalogue)
                .bind(relayed)
                .bind(millis(keep.relayed))
                .bind(millis(keep.unrelayed))
                .execute(&mut *connection)
                .await?;
            if advanced.rows_affected() == 0 {
                return Ok(false);
            }
            let oldest = millis(keep.unrelayed.max(keep.relayed));
            let prune = sqlx::query(PRUNE_MARKS).bind(oldest).bind(i64::from(CHUNK));
            prune.bind(catalogue).execute(connection).await?;
            Ok(true)
        };
        self.run(advance).await
    }

    /// Deletes some rows that may be pruned. Returns whether there may be more.
    pub(crate) async fn prune_outbox(&mut self) -> Result<bool, Error> {
        let catalogue = self.catalogue();
        let prune = async |connection: &mut PgConnection| {
            let prune = sqlx::query(PRUNE).bind(i64::from(CHUNK)).bind(catalogue);
            prune.execute(connection).await
        };
        Ok(self.run(prune).await?.rows_affected() >= u64::from(CHUNK))
    }

    /// Changes the scope of the keys: every entry that Redis holds now becomes unreachable.
    pub(crate) async fn abandon_redis(&mut self) -> Result<(), Error> {
        let catalogue = self.catalogue();
        let abandon = async |connection: &mut PgConnection| {
            sqlx::query(ABANDON_REDIS).bind(catalogue).execute(connection).await.map(drop)
        };
        self.run(abandon).await
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX).min(i64::from(i32::MAX) * 1_000)
}
