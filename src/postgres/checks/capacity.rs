//! Whether there are connections for an instance, and whether the outbox is read.

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{FromRow, Row as _};

use crate::findings::Finding;
use crate::metrics::PostgresShare;
use crate::postgres::Postgres;

/// Connections of an instance that are not for calls (docs/operating.md).
const BACKGROUND: i64 = 5;
/// With more rows in the outbox that no instance relays, its growth is reported.
const MOST_ROWS: i64 = 100_000;
/// A relay that has applied nothing for this long, in seconds, while changes wait, is behind.
const BEHIND: i64 = 60;

const CONNECTIONS: &str = "SELECT current_setting('max_connections')::bigint AS most, \
        CASE WHEN rolsuper THEN 0 ELSE current_setting('superuser_reserved_connections')::bigint \
            + coalesce(current_setting('reserved_connections', true)::bigint, 0) END AS reserved, \
        (SELECT sum(numbackends) FROM pg_stat_database)::bigint AS used, \
        quote_ident(rolname) AS role, CASE WHEN rolsuper THEN -1 ELSE rolconnlimit END::bigint AS of_role, \
        (SELECT count(*) FROM pg_stat_activity WHERE usename = rolname) AS used_by_role, \
        quote_ident(datname) AS database, CASE WHEN rolsuper THEN -1 ELSE datconnlimit END::bigint AS of_database, \
        (SELECT numbackends FROM pg_stat_database AS s WHERE s.datid = d.oid)::bigint AS used_of_database \
    FROM pg_roles, pg_database AS d WHERE rolname = current_user AND datname = current_database()";
const OUTBOX: &str = "SELECT (SELECT count(*) FROM (SELECT FROM hotshelf.outbox \
            WHERE catalogue = $1 AND NOT pg_visible_in_snapshot(xid, feed.relayed) LIMIT $2) AS waiting), \
        held_until > clock_timestamp(), \
        (SELECT extract(epoch FROM clock_timestamp() - max(mark_time))::bigint FROM hotshelf.marks \
            WHERE marks.catalogue = $1 AND relayed) \
    FROM hotshelf.feed WHERE catalogue = $1";

struct Limits {
    most: i64,
    reserved: i64,
    used: i64,
    role: String,
    of_role: i64,
    used_by_role: i64,
    database: String,
    of_database: i64,
    used_of_database: i64,
}

impl FromRow<'_, PgRow> for Limits {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            most: row.try_get("most")?,
            reserved: row.try_get("reserved")?,
            used: row.try_get("used")?,
            role: row.try_get("role")?,
            of_role: row.try_get("of_role")?,
            used_by_role: row.try_get("used_by_role")?,
            database: row.try_get("database")?,
            of_database: row.try_get("of_database")?,
            used_of_database: row.try_get("used_of_database")?,
        })
    }
}

pub(super) async fn connections(
    connection: &mut PgConnection,
    postgres: &Postgres,
) -> Result<Vec<Finding>, sqlx::Error> {
    let limits: Limits = sqlx::query_as(CONNECTIONS).fetch_one(connection).await?;
    let shares: u64 =
        PostgresShare::all().iter().map(|share| postgres.counts(*share).most_running).sum();
    let needed = i64::try_from(shares).unwrap_or(i64::MAX).saturating_add(BACKGROUND);
    // Those of this process are counted as used, and are part of what it needs.
    let own = i64::try_from(postgres.connections()).unwrap_or_default() + 1;
    let free = |limit: i64, used: i64| (limit - used + own).max(0);
    let Limits { role, database, .. } = &limits;
    let limited = [
        (
            limits.most - limits.reserved,
            limits.used,
            format!("max_connections is {}", limits.most),
            "raise max_connections and restart PostgreSQL".to_owned(),
        ),
        (
            limits.of_role,
            limits.used_by_role,
            format!("the role {role} has CONNECTION LIMIT {}", limits.of_role),
            format!("ALTER ROLE {role} CONNECTION LIMIT -1"),
        ),
        (
            limits.of_database,
            limits.used_of_database,
            format!("the database {database} has CONNECTION LIMIT {}", limits.of_database),
            format!("ALTER DATABASE {database} CONNECTION LIMIT -1"),
        ),
    ];
    let mut found = Vec::new();
    let mut least = i64::MAX;
    for (limit, used, what, remedy) in limited.iter().filter(|(limit, ..)| *limit >= 0) {
        let free = free(*limit, *used);
        least = least.min(free);
        if free < needed {
            let what =
                format!("{what}: {free} connections are free, and an instance opens {needed}");
            let cost = "calls wait for connections and fail, and an instance may not start";
            let remedy = format!("{remedy}, or lower DATABASE_CONNECTIONS");
            found.push(Finding::warning("connections", &what, cost, &remedy));
        }
    }
    if found.is_empty() {
        let what = format!("{least} are free, and an instance opens {needed}");
        found.push(Finding::fine("connections", what));
    }
    Ok(found)
}

pub(super) async fn outbox(
    connection: &mut PgConnection,
    catalogue: i32,
) -> Result<Vec<Finding>, sqlx::Error> {
    let read = sqlx::query_as(OUTBOX).bind(catalogue).bind(MOST_ROWS + 1);
    let read: Result<Option<(i64, bool, Option<i64>)>, _> = read.fetch_optional(connection).await;
    let (rows, relays, age) = match read {
        Ok(Some(read)) => read,
        Ok(None) => return Ok(Vec::new()),
        // The check of the rights names the missing one.
        Err(error) if super::code(&error).as_deref() == Some("42501") => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let rows = match rows {
        many if many > MOST_ROWS => format!("more than {MOST_ROWS} rows"),
        1 => "1 row".to_owned(),
        few => format!("{few} rows"),
    };
    let many = rows.starts_with("more");
    let ago = age.map_or("never".to_owned(), |age| format!("{age} s ago"));
    let behind = relays && rows != "0 rows" && age.is_some_and(|age| age > BEHIND);
    Ok(vec![if behind {
        let what = format!("{rows} of changes wait, and Redis was last up to date {ago}");
        let cost = "what Redis holds of changed products is loaded from PostgreSQL again";
        let remedy = "see docs/runbooks/HotshelfRelayBehind.md";
        Finding::warning("outbox", &what, cost, remedy)
    } else if many && !relays {
        let what = format!("{rows} of changes wait in hotshelf.outbox, and no instance reads them");
        let cost = "it grows with each write to the table";
        let remedy = "run hotshelf serve, or hotshelf detach if the table is no longer served";
        Finding::warning("outbox", &what, cost, remedy)
    } else {
        let who = if relays { "an instance applies them" } else { "no instance runs" };
        Finding::fine(
            "outbox",
            format!("{rows} of changes wait; {who}; Redis was up to date {ago}"),
        )
    }])
}
