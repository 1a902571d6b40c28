//! Checks and migrates the schema.
//!
//! The check only needs the right to read. The schema is changed only if a migration is missing.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::{Connection as _, Executor, PgConnection, SqlStr};

use super::error::{message, read_error};
use super::{Error, Postgres, within};

// MIGRATIONS: version, name and statements of each file in migrations/, in their order.
include!(concat!(env!("OUT_DIR"), "/migrations.rs"));

const SCHEMA: &str = "hotshelf";
const APPLIED: &str = "hotshelf._sqlx_migrations";
/// Reads the system catalogue, which any role may. Only versions before the first release made the table `product_changes`.
const EXISTING: &str = "SELECT \
    EXISTS (SELECT FROM pg_class WHERE relname = '_sqlx_migrations' AND relnamespace = ( \
        SELECT oid FROM pg_namespace WHERE nspname = 'hotshelf')), \
    EXISTS (SELECT FROM pg_class WHERE relname = 'product_changes' AND relnamespace = 'public'::regnamespace), \
    EXISTS (SELECT FROM pg_class WHERE relname = 'products' AND relnamespace = 'public'::regnamespace)";
const LIST: &str =
    "SELECT version, checksum, success FROM hotshelf._sqlx_migrations ORDER BY version";
const BROKEN_TRIGGERS: &str =
    "SELECT string_agg(name, ', ') FROM hotshelf.broken_triggers() AS name";
/// The timeout of opening the connection.
const CONNECT: Duration = Duration::from_secs(5);

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
        let applied = self.in_time(applied(&mut connection)).await;
        let applied = applied.map_err(|error| without_rights(&error))??;
        let migrations = migrations();
        let missing = missing(&migrations, &applied)?;
        match (missing, how) {
            (None, _) => {}
            (Some(version), Migrate::Never) => {
                return Err(Error::Unexpected(format!(
                    "the schema lacks migration {version}, and MIGRATE is never; run hotshelf migrate as a role that may change it"
                )));
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
        let broken = self.in_time(sqlx::query_as(BROKEN_TRIGGERS).fetch_one(&self.pool)).await;
        let (broken,): (Option<String>,) = broken.map_err(|error| without_rights(&error))?;
        broken.map_or(Ok(()), |broken| {
            Err(Error::Unexpected(format!(
                "triggers are missing, or not ENABLE ALWAYS ({broken}), so some writes would not be recorded; \
                 run SELECT hotshelf.install_triggers() as the owner of the table, then update the rows that were written meanwhile: UPDATE products SET version = version"
            )))
        })
    }
}

/// The applied migrations. The inner `Err`: the database has the tables of another program or version.
async fn applied(connection: &mut PgConnection) -> Result<Result<Applied, Error>, sqlx::Error> {
    let (has_migrations, older, products): (bool, bool, bool) =
        sqlx::query_as(EXISTING).fetch_one(&mut *connection).await?;
    if has_migrations {
        let rows: Vec<(i64, Vec<u8>, bool)> = sqlx::query_as(LIST).fetch_all(connection).await?;
        let applied = rows.into_iter().map(|(version, checksum, done)| (version, (checksum, done)));
        return Ok(Ok(applied.collect()));
    }
    let refuse = |words: &str| Ok(Err(Error::Unexpected(words.to_owned())));
    if older {
        return refuse(
            "the schema is of a hotshelf before its first release (there is a table public.product_changes), which cannot be migrated; use a new database, and import the products",
        );
    }
    if products {
        return refuse(
            "there is a table public.products that hotshelf did not make; rename it, or use a database of its own",
        );
    }
    Ok(Ok(Applied::new()))
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
fn without_rights(error: &sqlx::Error) -> Error {
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
