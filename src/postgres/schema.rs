//! Checks and migrates the schema.
//!
//! The check only needs the right to read. The schema is changed only if a migration is missing.

use std::collections::BTreeMap;

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::{Connection as _, Executor, PgConnection, SqlStr};

use super::error::{message, read_error};
use super::mapping::Mapping;
use super::quote::literal;
use super::session::CONNECT;
use super::{Error, Postgres, within};

// MIGRATIONS: version, name and statements of each file in migrations/, in their order.
include!(concat!(env!("OUT_DIR"), "/migrations.rs"));

const SCHEMA: &str = "hotshelf";
const APPLIED: &str = "hotshelf._sqlx_migrations";
/// Reads the system catalogue, which any role may.
const HAS_MIGRATIONS: &str = "SELECT EXISTS (SELECT FROM pg_class WHERE relname = '_sqlx_migrations' AND relnamespace = ( \
        SELECT oid FROM pg_namespace WHERE nspname = 'hotshelf'))";
const LIST: &str =
    "SELECT version, checksum, success FROM hotshelf._sqlx_migrations ORDER BY version";
const BROKEN_TRIGGERS: &str =
    "SELECT string_agg(name, ', ') FROM hotshelf.broken_triggers($1) AS name";

/// Whether this process may change the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Migrate {
    /// Missing migrations are applied.
    Auto,
    /// A missing migration is an error.
    Never,
}

type Applied = BTreeMap<i64, (Vec<u8>, bool)>;

fn migrations() -> Migrator {
    let migrations = MIGRATIONS.iter().map(|&(version, name, sql)| {
        Migration::new(version, name.into(), MigrationType::Simple, SqlStr::from_static(sql), false)
    });
    let mut migrations = Migrator::with_migrations(migrations.collect());
    migrations.dangerous_set_table_name(APPLIED);
    migrations.create_schema(SCHEMA);
    migrations
}

impl Postgres {
    /// Checks that the schema is up to date, and migrates it if allowed.
    ///
    /// # Errors
    /// [`Error::Unavailable`], and [`Error::Unexpected`] when this program cannot work with the schema.
    pub async fn migrate(&self, how: Migrate) -> Result<(), Error> {
        let opened = self.session.open(CONNECT).await;
        let mut connection = opened.map_err(|error| read_error(&error))?;
        self.use_primary();
        let applied = self.in_time(applied(&mut connection)).await;
        let applied = applied.map_err(|error| without_rights(&error))?;
        let migrations = migrations();
        let missing = missing(&migrations, &applied)?;
        match (missing, how) {
            (None, _) => {}
            (Some(version), Migrate::Never) => {
                return Err(Error::Unexpected(not_migrated(version)));
            }
            (Some(_), Migrate::Auto) => {
                // Without a timeout, and without notices of objects that exist already.
                let settings = "SET statement_timeout = 0; SET client_min_messages = warning";
                connection.execute(settings).await.map_err(|error| read_error(&error))?;
                migrations
                    .run_direct(None, &mut connection, false)
                    .await
                    .map_err(|error| migrate_error(&error))?;
            }
        }
        // A failed close has no effect on the schema.
        let _ = within(Some(CONNECT), connection.close()).await;
        Ok(())
    }

    /// Checks that every write is recorded in the outbox.
    ///
    /// # Errors
    /// When a trigger is missing or does not fire for all writers, with the command that repairs it; and [`Error::Unavailable`].
    pub async fn check_triggers(&self) -> Result<(), Error> {
        let statements = self.statements()?;
        let checked = async {
            let mut connection = self.pool.acquire().await?;
            broken_triggers(&mut connection, &statements.mapping).await
        };
        let broken = self.in_time(checked).await.map_err(|error| without_rights(&error))?;
        broken.map_or(Ok(()), |sentence| Err(Error::Unexpected(sentence)))
    }
}

/// The sentence about triggers that are missing or do not fire for all writers; `None` when there are none.
pub(super) async fn broken_triggers(
    connection: &mut PgConnection,
    mapping: &Mapping,
) -> Result<Option<String>, sqlx::Error> {
    let broken = sqlx::query_scalar(BROKEN_TRIGGERS).bind(mapping.number);
    let broken: Option<String> = broken.fetch_one(connection).await?;
    Ok(broken.map(|broken| {
        format!(
            "triggers are missing, or not ENABLE ALWAYS ({broken}), so some writes would not be recorded; \
             run SELECT hotshelf.install_triggers() as the owner of the table, then update the rows that were written meanwhile: UPDATE {} SET hotshelf_version = hotshelf_version",
            mapping.quoted_table()
        )
    }))
}

/// The first migration that the schema lacks, which may be all of them.
pub(super) async fn missing_migration(connection: &mut PgConnection) -> Result<Option<i64>, Error> {
    let applied = applied(connection).await.map_err(|error| without_rights(&error))?;
    missing(&migrations(), &applied)
}

pub(super) fn not_migrated(version: i64) -> String {
    format!(
        "the schema lacks migration {version}, and MIGRATE is never; run hotshelf migrate as a role that may change it"
    )
}

/// The applied migrations.
async fn applied(connection: &mut PgConnection) -> Result<Applied, sqlx::Error> {
    let exists: bool = sqlx::query_scalar(HAS_MIGRATIONS).fetch_one(&mut *connection).await?;
    if !exists {
        return Ok(Applied::new());
    }
    let rows: Vec<(i64, Vec<u8>, bool)> = sqlx::query_as(LIST).fetch_all(connection).await?;
    Ok(rows.into_iter().map(|(version, checksum, done)| (version, (checksum, done))).collect())
}

/// The statements that make the schema, as [`Postgres::migrate`] does, for a role that runs no hotshelf.
pub(super) fn script() -> Vec<String> {
    let mut statements = vec![
        format!("CREATE SCHEMA {SCHEMA}"),
        // As sqlx makes it.
        format!(
            "CREATE TABLE {APPLIED} (version bigint PRIMARY KEY, description text NOT NULL, \
             installed_on timestamptz NOT NULL DEFAULT now(), success boolean NOT NULL, checksum bytea NOT NULL, \
             execution_time bigint NOT NULL)"
        ),
    ];
    for migration in migrations().iter() {
        statements.push(migration.sql.as_str().trim().trim_end_matches(';').to_owned());
        let checksum: String =
            migration.checksum.iter().map(|byte| format!("{byte:02x}")).collect();
        statements.push(format!(
            "INSERT INTO {APPLIED} (version, description, success, checksum, execution_time) \
             VALUES ({}, {}, true, '\\x{checksum}', 0)",
            migration.version,
            literal(&migration.description)
        ));
    }
    statements
}

/// The first migration that is missing.
fn missing(migrations: &Migrator, applied: &Applied) -> Result<Option<i64>, Error> {
    for (version, (checksum, done)) in applied {
        let Some(known) = migrations.iter().find(|known| known.version == *version) else {
            return Err(migrate_error(&MigrateError::VersionMissing(*version)));
        };
        if !done {
            return Err(migrate_error(&MigrateError::Dirty(*version)));
        }
        if *known.checksum != **checksum {
            return Err(migrate_error(&MigrateError::VersionMismatch(*version)));
        }
    }
    Ok(migrations.iter().map(|known| known.version).find(|version| !applied.contains_key(version)))
}

/// Adds the page on rights to an error about missing ones (42501).
pub(super) fn without_rights(error: &sqlx::Error) -> Error {
    match super::error::code(error).as_deref() {
        Some("42501") => Error::Unexpected(format!(
            "{}; docs/sql.md lists the rights that hotshelf needs",
            message(error)
        )),
        _ => read_error(error),
    }
}

fn migrate_error(error: &MigrateError) -> Error {
    match error {
        MigrateError::VersionMissing(version) => Error::Unexpected(format!(
            "the schema has migration {version}, which this hotshelf {} does not have; run a newer hotshelf",
            env!("CARGO_PKG_VERSION")
        )),
        MigrateError::VersionMismatch(version) => Error::Unexpected(format!(
            "migration {version} was applied with other contents than this hotshelf has; restore the schema, or use a database of its own"
        )),
        MigrateError::Dirty(version) => Error::Unexpected(format!(
            "migration {version} was begun and not finished; restore the database, or finish it by hand"
        )),
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
            without_rights(error)
        }
        other => Error::Unexpected(other.to_string()),
    }
}
