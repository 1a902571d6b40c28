//! What serving needs of PostgreSQL. `hotshelf doctor` prints all findings, and `serve` logs those that are not fine. The checks
//! change nothing, and each has a time limit.

mod capacity;
mod rights;
mod settings;

use std::time::{Duration, Instant, SystemTime};

use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Executor};

use super::changes::REPLICA;
use super::error::{code, is_broken, message, read_error};
use super::mapping::{Mapping, TABLE, not_attached};
use super::pooler::POOLED;
use super::schema::{broken_triggers, missing_migration, not_migrated};
use super::session::CONNECT;
use super::{Error, Migrate, Postgres, within};
use crate::findings::{Finding, Section, median, milliseconds};

/// The time limit of a check.
const LIMIT: Duration = Duration::from_secs(5);
/// Round trips of which the median is reported.
const ROUND_TRIPS: usize = 5;
/// A round trip that takes longer is reported.
const SLOW: Duration = Duration::from_millis(100);
const SUPPORTED: std::ops::RangeInclusive<i32> = 13..=18;

const SERVER: &str = "SELECT current_setting('server_version'), current_setting('server_version_num')::int / 10000, \
    current_database()::text, current_user::text, (SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl)";

/// The settings that the checks depend on.
#[derive(Clone, Copy, Debug)]
pub struct CheckOptions {
    pub migrate: Migrate,
    /// Whether products are not written.
    pub read_only: bool,
}

struct Checks<'a> {
    postgres: &'a Postgres,
    /// `None` after the server stopped to answer.
    connection: Option<PgConnection>,
    found: Vec<Finding>,
}

impl Postgres {
    /// Checks everything that serving needs.
    pub async fn check(&self, options: CheckOptions) -> Section {
        let findings = match self.session.open(CONNECT).await {
            Err(error) => vec![self.unreachable(&error)],
            Ok(connection) => {
                let (connection, found) = (Some(connection), Vec::new());
                Box::pin(Checks { postgres: self, connection, found }.all(options)).await
            }
        };
        Section { subject: "PostgreSQL".to_owned(), findings }
    }

    /// The identity of the catalogue, read as the change feed reads it; `None` when it cannot be.
    pub async fn catalogue_identity(&self) -> Option<String> {
        let read = async {
            self.open_catalogue().await.ok()?;
            self.change_reader().scope().await.ok()
        };
        let (_, catalogue) = tokio::time::timeout(LIMIT, read).await.ok()??;
        Some(catalogue)
    }

    fn unreachable(&self, error: &sqlx::Error) -> Finding {
        let sentence = match read_error(error) {
            Error::Unavailable(why) => self.unreachable_message(&why),
            _ => format!(
                "{}; check the user, the password and the database in DATABASE_URL",
                message(error)
            ),
        };
        Finding::stops("server", &sentence)
    }
}

impl Checks<'_> {
    async fn all(mut self, options: CheckOptions) -> Vec<Finding> {
        if let Some(connection) = &mut self.connection
            && self.postgres.is_pooled(connection).await == Some(true)
        {
            // No statement can be relied on.
            return vec![Finding::stops("sessions", POOLED)];
        }
        let address = self.postgres.session.hosts.addresses();
        self.run("server", async |connection| server(connection, &address).await).await;
        self.run("primary", primary).await;
        self.run("settings", async |connection| {
            settings::check(connection, self.postgres.statement_timeout).await
        })
        .await;
        self.run("connections", async |connection| {
            capacity::connections(connection, self.postgres).await
        })
        .await;
        self.run("clock", clock).await;
        self.run("latency", latency).await;
        self.run("schema", async |connection| schema(connection, options.migrate).await).await;
        let mut mapping = None;
        self.run(TABLE, async |connection| {
            let (read, found) = table(connection, &self.postgres.catalogue).await?;
            mapping = read;
            Ok(found)
        })
        .await;
        self.run("rights", async |connection| {
            rights::check(connection, mapping.as_ref(), options.read_only).await
        })
        .await;
        if let Some(mapping) = &mapping {
            self.run("triggers", async |connection| triggers(connection, mapping).await).await;
            let number = mapping.number;
            self.run("outbox", async |connection| capacity::outbox(connection, number).await).await;
        }
        if let Some(connection) = self.connection.take() {
            let _ = within(Some(CONNECT), connection.close()).await;
        }
        self.found
    }

    async fn run(
        &mut self,
        name: &'static str,
        check: impl AsyncFnOnce(&mut PgConnection) -> Result<Vec<Finding>, sqlx::Error>,
    ) {
        let Some(connection) = &mut self.connection else { return };
        match within(Some(LIMIT), check(connection)).await {
            Ok(found) => self.found.extend(found),
            Err(error) => {
                let what = format!("it could not be checked: {}", message(&error));
                let cost = "a fault there would not be seen here";
                self.found.push(Finding::warning(name, &what, cost, "run hotshelf doctor again"));
                if is_broken(&error) {
                    self.connection = self.postgres.session.open(CONNECT).await.ok();
                }
            }
        }
    }
}

async fn server(connection: &mut PgConnection, address: &str) -> Result<Vec<Finding>, sqlx::Error> {
    let (version, major, database, role, tls): (String, i32, String, String, Option<String>) =
        sqlx::query_as(SERVER).fetch_one(connection).await?;
    let tls = tls.map_or_else(|| "without TLS".to_owned(), |version| format!("with {version}"));
    let what =
        format!("PostgreSQL {version} at {address}, database {database}, role {role}, {tls}");
    let (oldest, newest) = (SUPPORTED.start(), SUPPORTED.end());
    Ok(vec![if major < *oldest {
        let sentence = format!("{what} is too old; use PostgreSQL {oldest} to {newest}");
        Finding::stops("server", &sentence)
    } else if major > *newest {
        let cost = format!("it is newer than {newest}, the newest that was tried");
        Finding::warning("server", &what, &cost, "watch the log for errors of statements")
    } else {
        Finding::fine("server", what)
    }])
}

async fn primary(connection: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    let replica = sqlx::query_scalar("SELECT pg_is_in_recovery()").fetch_one(connection).await?;
    Ok(vec![match replica {
        true => Finding::stops("primary", REPLICA),
        false => Finding::fine("primary", "the server is no replica"),
    }])
}

async fn clock(connection: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    let before = SystemTime::now();
    let now = "SELECT extract(epoch FROM clock_timestamp())::float8";
    let theirs: f64 = sqlx::query_scalar(now).fetch_one(connection).await?;
    let theirs = Duration::try_from_secs_f64(theirs).unwrap_or_default();
    Ok(vec![Finding::clock(before, theirs, SystemTime::now())])
}

async fn latency(connection: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    let mut times = Vec::new();
    for _ in 0..ROUND_TRIPS {
        let began = Instant::now();
        connection.execute("SELECT 1").await?;
        times.push(began.elapsed());
    }
    let median = median(times);
    let what = format!("a round trip takes {}", milliseconds(median));
    let cost = "each miss and each write takes at least that long";
    let remedy = "run hotshelf near PostgreSQL, or raise DATABASE_ACQUIRE_TIMEOUT";
    Ok(vec![match median > SLOW {
        true => Finding::warning("latency", &what, cost, remedy),
        false => Finding::fine("latency", what),
    }])
}

async fn schema(
    connection: &mut PgConnection,
    migrate: Migrate,
) -> Result<Vec<Finding>, sqlx::Error> {
    const MAY_CREATE: &str = "SELECT quote_ident(current_user), quote_ident(current_database()), coalesce( \
            (SELECT pg_has_role(nspowner, 'USAGE') FROM pg_namespace WHERE nspname = 'hotshelf'), \
            has_database_privilege(current_database(), 'CREATE'))";
    let missing = match missing_migration(connection).await {
        Err(error) => return Ok(vec![Finding::stops("schema", &sentence(&error))]),
        Ok(missing) => missing,
    };
    Ok(vec![match (missing, migrate) {
        (None, _) => {
            Finding::fine("schema", "the schema hotshelf has all migrations of this program")
        }
        (Some(version), Migrate::Never) => Finding::stops("schema", &not_migrated(version)),
        (Some(version), Migrate::Auto) => {
            let may_create = sqlx::query_as(MAY_CREATE).fetch_one(connection).await?;
            let (role, database, may_create): (String, String, bool) = may_create;
            let what = format!("the schema lacks migration {version}");
            match may_create {
                true => Finding::warning(
                    "schema",
                    &what,
                    "serve applies it at its start, as MIGRATE is auto",
                    "hotshelf migrate applies it before",
                ),
                false => Finding::stops(
                    "schema",
                    &format!(
                        "{what}, and the role {role} may not create it; run hotshelf migrate as the owner of the table, or GRANT CREATE ON DATABASE {database} TO {role}"
                    ),
                ),
            }
        }
    }])
}

/// The mapping as `serve` reads it, and what has become of it.
async fn table(
    connection: &mut PgConnection,
    catalogue: &str,
) -> Result<(Option<Mapping>, Vec<Finding>), sqlx::Error> {
    const MAY_READ: &str = "SELECT (SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = 'hotshelf')";
    let may_read = sqlx::query_scalar(MAY_READ).fetch_one(&mut *connection).await?;
    let read = match may_read {
        None => Err(not_attached()),
        // The check of the rights says so.
        Some(false) => return Ok((None, Vec::new())),
        Some(true) => {
            let mut transaction = connection.begin().await?;
            transaction.execute("SET LOCAL search_path = pg_catalog, pg_temp").await?;
            let read = Mapping::read(&mut transaction, catalogue).await;
            transaction.rollback().await?;
            read
        }
    };
    Ok(match read {
        Ok(mapping) => {
            let found = mapping.findings();
            (Some(mapping), found)
        }
        Err(error) => (None, vec![Finding::stops(TABLE, &sentence(&error))]),
    })
}

async fn triggers(
    connection: &mut PgConnection,
    mapping: &Mapping,
) -> Result<Vec<Finding>, sqlx::Error> {
    let what = "each write of the table is recorded, whichever role or tool makes it";
    match broken_triggers(connection, mapping).await {
        Ok(None) => Ok(vec![Finding::fine("triggers", what)]),
        Ok(Some(sentence)) => Ok(vec![Finding::stops("triggers", &sentence)]),
        // The check of the rights names the missing one.
        Err(error) if code(&error).as_deref() == Some("42501") => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The text of an error without the name of the server, which is the title of the section.
fn sentence(error: &Error) -> String {
    match error {
        Error::Unexpected(why) => why.clone(),
        error => error.to_string(),
    }
}
