//! Reading the outbox: every committed change exactly once, in whatever order transactions commit.
//!
//! Each row contains its transaction's xid. A poll reads, in one statement and so with one snapshot, that snapshot and the rows
//! that the previous poll's snapshot did not see: rows of transactions that began after it, and of those that were in
//! progress then. A transaction that stays open for an hour delays only its own rows.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use sqlx::Executor;
use sqlx::postgres::PgConnection;

use super::change_rows::{ChangeRow, Changes};
use super::error::read_error;
use super::hosts::Hosts;
use super::snapshot::Snapshot;
use super::{Error, Postgres, within};
use crate::metrics::{Metrics, PostgresOperation};
use crate::moment::Moment;
use crate::product::Version;

/// The timeout of each row of a poll, and half that of opening a connection. Too high: copies in memory are trusted on the
/// basis of a slow poll. Too low: a busy server counts as unreachable.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The timeout of the relay's other statements.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);

/// The plan must be an index scan of each branch even when the statistics are from a time when the table was empty. These are SET
/// statements, because poolers drop startup parameters.
const SESSION: &str = "SET jit = off; SET enable_seqscan = off; SET enable_bitmapscan = off; \
    SET plan_cache_mode = force_generic_plan; SET statement_timeout = '60s'; \
    SET default_transaction_isolation = 'read committed'; SET search_path = pg_catalog, pg_temp; \
    SET application_name = 'hotshelf change feed'";

pub(super) const REPLICA: &str =
    "the server is a read-only replica; DATABASE_URL must name the primary";

/// Run once for each connection, because a connection never changes its server.
const SERVER: &str = "SELECT concat_ws('/', c.id, (pg_control_system()).system_identifier, d.oid), \
    CASE WHEN pg_is_in_recovery() THEN NULL \
         ELSE ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::bigint END, \
    pg_postmaster_start_time()::text \
    FROM hotshelf.catalogue c, pg_database d WHERE d.datname = current_database() AND c.number = $1";

/// A header row, and the rows that the last snapshot did not see. A row with an xid in the future was restored from a dump of
/// another cluster; it is not read, and the relay deletes it.
///
/// `remembered` is false when a mark that an earlier poll read is missing and was not pruned: then PostgreSQL went back.
const POLL: &str = "SELECT NULL::bigint[] AS product_ids, NULL::bigint[] AS versions, NULL::boolean AS deleted, \
        NULL::text AS xid, pg_current_snapshot()::text AS snapshot, feed.pruned::text, feed.relayed::text, \
        substr(md5($5), 1, 16) AS catalogue, substr(md5($5 || '/' || epoch), 1, 16) AS epoch, \
        substr(md5($5 || '/' || epoch || '/' || redis_epoch), 1, 16) AS scope, timeline, last_value AS ceiling, \
        mark.id AS mark, mark.token::text AS mark_token, \
        coalesce($3 IS NULL OR EXISTS (SELECT FROM hotshelf.marks WHERE marks.catalogue = $6 AND id = $3 AND token::text = $4) \
            OR $3 < (SELECT min(id) FROM hotshelf.marks WHERE marks.catalogue = $6), false) AS remembered, \
        held_until < clock_timestamp() AS relay_is_free, NULL::float8 AS age \
    FROM hotshelf.feed CROSS JOIN hotshelf.catalogue AS attached CROSS JOIN hotshelf.product_version \
        LEFT JOIN LATERAL (SELECT id, token FROM hotshelf.marks WHERE marks.catalogue = $6 \
            ORDER BY id DESC LIMIT 1) AS mark ON true \
    WHERE feed.catalogue = $6 AND attached.number = $6 \
    UNION ALL \
    SELECT product_ids, versions, deleted, xid::text, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, \
        extract(epoch FROM statement_timestamp() - write_time)::float8 \
    FROM hotshelf.outbox WHERE catalogue = $6 AND xid >= $1::xid8 AND xid < pg_snapshot_xmax(pg_current_snapshot()) \
    UNION ALL \
    SELECT product_ids, versions, deleted, xid::text, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, \
        extract(epoch FROM statement_timestamp() - write_time)::float8 \
    FROM hotshelf.outbox WHERE catalogue = $6 AND xid = ANY($2::xid8[])";

/// Reads the outbox on its own connection, so that it never waits for a call's statement.
#[derive(Debug)]
pub struct ChangeReader {
    hosts: Hosts,
    /// The number of the catalogue.
    catalogue: i32,
    connection: Option<(PgConnection, Server)>,
    /// The snapshot of the last poll.
    seen: Snapshot,
    /// The same, also after [`start_over`](Self::start_over): the rows that it sees were returned before.
    returned: Snapshot,
    /// The newest transaction of which a row was read. If a later snapshot does not see it, a commit was lost.
    newest_xid: u64,
    mark: Option<(i64, String)>,
    epoch: Option<String>,
    /// The start time of the server at the last poll. A restarted server may reuse the xids of transactions that were lost before
    /// they were on disk.
    started: Option<String>,
    metrics: Arc<Metrics>,
}

/// Properties of the server that cannot change during a connection.
#[derive(Clone, Debug)]
struct Server {
    identity: String,
    timeline: i64,
    started: String,
}

impl Postgres {
    /// A reader whose first poll returns the whole outbox.
    #[must_use]
    pub fn change_reader(&self) -> ChangeReader {
        let hosts = self.session.hosts.clone();
        // Before a table is attached there is nothing to read.
        let catalogue = self.statements().map_or(0, |statements| statements.mapping.number);
        ChangeReader {
            hosts,
            catalogue,
            connection: None,
            seen: Snapshot::empty(),
            returned: Snapshot::empty(),
            newest_xid: 0,
            mark: None,
            epoch: None,
            started: None,
            metrics: Arc::clone(&self.metrics),
        }
    }
}

impl ChangeReader {
    pub(super) fn catalogue(&self) -> i32 {
        self.catalogue
    }

    /// The snapshot of the last poll.
    pub(crate) fn seen(&self) -> &Snapshot {
        &self.seen
    }

    /// The next poll returns the rows that are not visible in `seen`.
    pub(crate) fn start_after(&mut self, seen: Snapshot) {
        self.seen = seen;
    }

    /// The next poll returns the whole outbox.
    pub(crate) fn start_over(&mut self) {
        self.seen = Snapshot::empty();
        self.newest_xid = 0;
        self.mark = None;
        self.epoch = None;
        self.started = None;
    }

    /// Reads the changes that were committed since the last poll, at most `limit` of them.
    ///
    /// # Errors
    /// [`Error::Unavailable`]. The next poll returns the changes that this one would have returned.
    pub(crate) async fn poll(&mut self, limit: usize) -> Result<Changes, Error> {
        let (mut connection, server) = self.take_connection().await?;
        let restarted = self.started.as_ref().is_some_and(|started| *started != server.started);
        if restarted {
            self.seen = Snapshot::empty();
        }
        let began = Instant::now();
        let polled = self.poll_on(&mut connection, &server, limit).await;
        self.metrics.postgres_seconds.record(PostgresOperation::Poll, began.elapsed());
        let mut changes = polled?;
        changes.restarted = restarted;
        self.started = Some(server.started.clone());
        self.connection = Some((connection, server));
        Ok(changes)
    }

    /// Takes the connection out. It is put back only after a response, so that a connection that timed out is not used again.
    async fn take_connection(&mut self) -> Result<(PgConnection, Server), Error> {
        match self.connection.take() {
            Some(open) => Ok(open),
            None => within(Some(RESPONSE_TIMEOUT * 2), self.open())
                .await
                .map_err(|error| read_error(&error))?,
        }
    }

    /// Runs a statement on this reader's connection.
    pub(super) async fn run<T>(
        &mut self,
        statement: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, Error> {
        let (mut connection, server) = self.take_connection().await?;
        let began = Instant::now();
        let done = within(Some(STATEMENT_TIMEOUT), statement(&mut connection)).await;
        self.metrics.postgres_seconds.record(PostgresOperation::Relay, began.elapsed());
        let done = done.map_err(|error| read_error(&error))?;
        self.connection = Some((connection, server));
        Ok(done)
    }

    async fn open(&self) -> Result<Result<(PgConnection, Server), Error>, sqlx::Error> {
        let mut connection = self.hosts.connect().await?;
        connection.execute(SESSION).await?;
        let server = sqlx::query_as(SERVER).bind(self.catalogue);
        let server: Option<(String, Option<i64>, String)> =
            server.fetch_optional(&mut connection).await?;
        let Some((identity, timeline, started)) = server else {
            return Ok(Err(Error::NotAttached("the table is no longer attached".to_owned())));
        };
        let Some(timeline) = timeline else {
            return Ok(Err(Error::Unavailable(REPLICA.to_owned())));
        };
        Ok(Ok((connection, Server { identity, timeline, started })))
    }

    async fn poll_on(
        &mut self,
        connection: &mut PgConnection,
        server: &Server,
        limit: usize,
    ) -> Result<Changes, Error> {
        let asked = Moment::now();
        let in_progress = self.seen.in_progress().iter().map(u64::to_string).collect::<Vec<_>>();
        let (mark, token) = self.mark.clone().unzip();
        let mut rows = sqlx::query_as::<_, ChangeRow>(POLL)
            .bind(self.seen.xmax().to_string())
            .bind(in_progress)
            .bind(mark)
            .bind(token)
            .bind(&server.identity)
            .bind(self.catalogue)
            .fetch(connection);
        let (mut header, mut newest_xid) = (None, self.newest_xid);
        let mut changes = Changes::nothing(asked);
        while let Some(row) = within(Some(RESPONSE_TIMEOUT), rows.try_next())
            .await
            .map_err(|error| read_error(&error))?
        {
            match &row.xid {
                None => header = Some(row),
                Some(xid) => {
                    let xid = xid.parse().unwrap_or_default();
                    newest_xid = newest_xid.max(xid);
                    changes.take(&row, limit, !self.returned.sees(xid));
                }
            }
        }
        let header = header
            .ok_or_else(|| Error::NotAttached("the table is no longer attached".to_owned()))?;
        self.take_header(&mut changes, header, server, newest_xid)?;
        Ok(changes)
    }

    fn take_header(
        &mut self,
        changes: &mut Changes,
        header: ChangeRow,
        server: &Server,
        newest_xid: u64,
    ) -> Result<(), Error> {
        let snapshot = |text: Option<String>| {
            text.unwrap_or_default().parse::<Snapshot>().map_err(Error::Unexpected)
        };
        changes.snapshot = snapshot(header.snapshot)?;
        changes.pruned = snapshot(header.pruned)?;
        changes.relayed = snapshot(header.relayed)?;
        changes.catalogue = header.catalogue.unwrap_or_default();
        changes.epoch = header.epoch.unwrap_or_default();
        changes.scope = header.scope.unwrap_or_default();
        changes.relay_is_free = header.relay_is_free == Some(true);
        changes.ceiling = Version(header.ceiling.unwrap_or_default());
        let known = self.epoch.as_ref().is_some_and(|epoch| *epoch == changes.epoch);
        changes.went_back = if header.timeline != Some(server.timeline) {
            Some("its WAL timeline is another (promotion or point-in-time recovery)")
        } else if known && !changes.snapshot.sees(self.newest_xid) && self.newest_xid > 0 {
            Some("a committed transaction is missing")
        } else if known && header.remembered == Some(false) {
            Some("a mark that was written to it is missing")
        } else {
            None
        };
        if changes.went_back.is_some() {
            // The cursor stays, so that the next poll detects it again if the epoch cannot be raised now.
            return Ok(());
        }
        self.seen = changes.snapshot.clone();
        self.returned = changes.snapshot.clone();
        self.newest_xid = newest_xid;
        self.mark = header.mark.zip(header.mark_token);
        self.epoch = Some(changes.epoch.clone());
        Ok(())
    }

    /// The identity of the catalogue and the WAL timeline; `None` without a connection.
    pub(super) fn server(&self) -> Option<(String, i64)> {
        self.connection.as_ref().map(|(_, server)| (server.identity.clone(), server.timeline))
    }

    /// The identity of the catalogue and the epoch that the last poll read.
    pub(super) fn epoch(&self) -> Option<(String, String)> {
        Some((self.server()?.0, self.epoch.clone()?))
    }
}
