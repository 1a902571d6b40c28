//! What the relays share: which instance relays, how far the outbox is applied to Redis, and how far it is pruned.

use std::time::Duration;

use sqlx::postgres::PgConnection;

use super::snapshot::Snapshot;
use super::{ChangeReader, Error};

/// The lease of the relay. One that was not renewed in time is free.
const HOLD: &str = "UPDATE hotshelf.feed \
    SET holder = $1::uuid, held_until = clock_timestamp() + $2::bigint * interval '1 millisecond' \
    WHERE holder = $1::uuid OR held_until < clock_timestamp() RETURNING relayed::text";
/// A snapshot of the future is of before a crash that lost what was not on disk, or of the cluster that a dump was made of: its
/// transactions' ids are given out again. So are those of rows from such a dump. The newest marks first, some at a time.
const REPAIR: &str = "WITH now AS (SELECT pg_snapshot_xmax(pg_current_snapshot()) AS xmax), \
    lost AS (DELETE FROM hotshelf.marks USING now WHERE pg_snapshot_xmax(snapshot) > now.xmax \
        AND id = ANY(ARRAY(SELECT id FROM hotshelf.marks ORDER BY id DESC LIMIT 100))), \
    foreign_rows AS (DELETE FROM hotshelf.outbox WHERE xid >= pg_snapshot_xmax(pg_current_snapshot())) \
    UPDATE hotshelf.feed SET pruned = pg_current_snapshot(), relayed = '1:1:' FROM now \
    WHERE pg_snapshot_xmax(pruned) > now.xmax OR pg_snapshot_xmax(relayed) > now.xmax";
const LET_GO: &str = "UPDATE hotshelf.feed SET held_until = '-infinity' WHERE holder = $1::uuid";
/// Only by the holder of the lease, and in the epoch of its cursor: snapshots of a history that was lost name transactions that
/// are others now.
macro_rules! fenced {
    () => {
        "holder = $1::uuid AND EXISTS (SELECT FROM hotshelf.catalogue \
         WHERE substr(md5($2 || '/' || epoch), 1, 16) = $3)"
    };
}
const MARK: &str = concat!(
    "INSERT INTO hotshelf.marks (snapshot, relayed) SELECT $4::pg_snapshot, $5 FROM hotshelf.feed WHERE ",
    fenced!(),
    // Waits for an epoch that is being raised, and sees then that the lease is lost.
    " FOR NO KEY UPDATE RETURNING id, token::text"
);
const NOTE_RELAYED: &str =
    concat!("UPDATE hotshelf.feed SET relayed = $4::pg_snapshot WHERE ", fenced!());
/// The marker before the rows, so that no instance takes rows that are gone for rows that never were. It is the newest mark that is old enough
/// and relayed, or so old that no entry of Redis can be older. Looked for from the newest on: there may be one for each write of hours.
const ADVANCE: &str = concat!(
    "UPDATE hotshelf.feed SET relayed = coalesce($4::pg_snapshot, relayed), pruned = coalesce( \
        (SELECT snapshot FROM hotshelf.marks \
         WHERE (relayed AND mark_time < clock_timestamp() - $5::bigint * interval '1 millisecond' \
             OR mark_time < clock_timestamp() - $6::bigint * interval '1 millisecond') \
             AND pg_snapshot_xmax(snapshot) BETWEEN pg_snapshot_xmax(pruned) AND pg_snapshot_xmax(pg_current_snapshot()) \
         ORDER BY id DESC LIMIT 1), pruned) \
     WHERE ",
    fenced!()
);
/// By the marker in the table: whoever runs it, and whenever, only rows go that may be gone. None by a marker that is to be repaired.
const PRUNE: &str = "WITH marker AS (SELECT pruned FROM hotshelf.feed \
        WHERE pg_snapshot_xmax(pruned) <= pg_snapshot_xmax(pg_current_snapshot())) \
    DELETE FROM hotshelf.outbox WHERE (xid, seq) IN ( \
        SELECT xid, seq FROM hotshelf.outbox \
        WHERE xid < pg_snapshot_xmax((SELECT pruned FROM marker)) \
            AND pg_visible_in_snapshot(xid, (SELECT pruned FROM marker)) \
        ORDER BY xid, seq LIMIT $1)";
const PRUNE_MARKS: &str = "DELETE FROM hotshelf.marks \
    WHERE id = ANY(ARRAY(SELECT id FROM hotshelf.marks ORDER BY id LIMIT $2)) \
        AND mark_time < clock_timestamp() - 2 * $1::bigint * interval '1 millisecond' \
        AND id < (SELECT max(id) FROM hotshelf.marks)";
const HAS_MARK: &str = "SELECT coalesce(EXISTS (SELECT FROM hotshelf.marks WHERE id = $1 AND token::text = $2) \
    OR $1 < (SELECT min(id) FROM hotshelf.marks), false)";
const ABANDON_REDIS: &str = "UPDATE hotshelf.catalogue SET redis_epoch = gen_random_uuid()";
/// Rows that are deleted at once. They are packed: each is a thousand changes at most.
const CHUNK: u32 = 500;

/// How long rows of the outbox are kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Retention {
    /// After they became visible, when they are applied to Redis.
    pub(crate) relayed: Duration,
    /// When they cannot be: as long as Redis may hold an entry that is older.
    pub(crate) unrelayed: Duration,
}

/// A mark in the table: its id and its random token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) id: i64,
    pub(crate) token: String,
}

impl ChangeReader {
    /// Takes or renews the lease of the relay. Returns what has been relayed, or `None` while another instance holds the lease.
    pub(crate) async fn hold_relay(
        &mut self,
        holder: &str,
        lease: Duration,
    ) -> Result<Option<Snapshot>, Error> {
        let held: Option<(String,)> = self
            .run(async |connection| {
                sqlx::query(REPAIR).execute(&mut *connection).await?;
                let hold = sqlx::query_as(HOLD).bind(holder).bind(millis(lease));
                hold.fetch_optional(connection).await
            })
            .await?;
        held.map(|(relayed,)| relayed.parse().map_err(Error::Unexpected)).transpose()
    }

    /// Gives the lease back, so that another instance need not wait for its end.
    pub(crate) async fn release_relay(&mut self, holder: &str) -> Result<(), Error> {
        let let_go = async |connection: &mut PgConnection| {
            sqlx::query(LET_GO).bind(holder).execute(connection).await.map(drop)
        };
        self.run(let_go).await
    }

    /// Notes that `snapshot` was taken by now, and whether all that it sees is relayed.
    /// `None` when this instance does not hold the lease any more.
    pub(crate) async fn mark(
        &mut self,
        holder: &str,
        snapshot: &Snapshot,
        relayed: bool,
    ) -> Result<Option<Mark>, Error> {
        let (snapshot, Some((identity, epoch))) = (snapshot.to_string(), self.epoch()) else {
            return Ok(None);
        };
        let mark = async |connection: &mut PgConnection| {
            let mark = sqlx::query_as(MARK).bind(holder).bind(identity).bind(epoch);
            mark.bind(snapshot).bind(relayed).fetch_optional(connection).await
        };
        let mark = self.run(mark).await?;
        Ok(mark.map(|(id, token)| Mark { id, token }))
    }

    /// Whether this database has a mark, or may have pruned it.
    pub(crate) async fn has_mark(&mut self, mark: &Mark) -> Result<bool, Error> {
        let knows = async |connection: &mut PgConnection| {
            let knows = sqlx::query_scalar(HAS_MARK).bind(mark.id).bind(&mark.token);
            knows.fetch_one(connection).await
        };
        self.run(knows).await
    }

    /// Notes that all that was read is relayed. Returns whether this instance still holds the lease.
    pub(crate) async fn note_relayed(&mut self, holder: &str) -> Result<bool, Error> {
        let (relayed, Some((identity, epoch))) = (self.seen().to_string(), self.epoch()) else {
            return Ok(false);
        };
        let note = async |connection: &mut PgConnection| {
            let note = sqlx::query(NOTE_RELAYED).bind(holder).bind(identity).bind(epoch);
            note.bind(relayed).execute(connection).await
        };
        Ok(self.run(note).await?.rows_affected() == 1)
    }

    /// Notes how far the outbox is relayed, and how far it may be pruned. Returns whether this instance still holds the lease.
    pub(crate) async fn advance(
        &mut self,
        holder: &str,
        relayed: Option<&Snapshot>,
        keep: Retention,
    ) -> Result<bool, Error> {
        let Some((identity, epoch)) = self.epoch() else { return Ok(false) };
        let relayed = relayed.map(Snapshot::to_string);
        let advance = async |connection: &mut PgConnection| {
            let advanced = sqlx::query(ADVANCE)
                .bind(holder)
                .bind(identity)
                .bind(epoch)
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
            prune.execute(connection).await?;
            Ok(true)
        };
        self.run(advance).await
    }

    /// Deletes some of what may be pruned. Returns whether there may be more.
    pub(crate) async fn prune_outbox(&mut self) -> Result<bool, Error> {
        let prune = async |connection: &mut PgConnection| {
            sqlx::query(PRUNE).bind(i64::from(CHUNK)).execute(connection).await
        };
        Ok(self.run(prune).await?.rows_affected() >= u64::from(CHUNK))
    }

    /// From now on no entry is used that Redis holds at this moment.
    pub(crate) async fn abandon_redis(&mut self) -> Result<(), Error> {
        let abandon = async |connection: &mut PgConnection| {
            sqlx::query(ABANDON_REDIS).execute(connection).await.map(drop)
        };
        self.run(abandon).await
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX).min(i64::from(i32::MAX) * 1_000)
}
