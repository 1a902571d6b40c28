//! The schema: whether it is up to date, and bringing it there.
//!
//! An instance looks first, which takes no more rights than to read; only where something is missing does it change anything.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{Connection as _, Executor, PgConnection};

use super::error::{message, read_error};
use super::{Error, Postgres, within};

const SCHEMA: &str = "hotshelf";
const APPLIED: &str = "hotshelf._sqlx_migrations";
/// Looks into the catalogue, which any role may read. The oldest table that only earlier versions of this program made is
/// `product_changes`.
const LOOK: &str = "SELECT \
    EXISTS (SELECT FROM pg_class WHERE relname = '_sqlx_migrations' AND relnamespace = ( \
        SELECT oid FROM pg_namespace WHERE nspname = 'hotshelf')), \
    EXISTS (SELECT FROM pg_class WHERE relname = 'product_changes' AND relnamespace = 'public'::regnamespace), \
    EXISTS (SELECT FROM pg_class WHERE relname = 'products' AND relnamespace = 'public'::regnamespace)";
const LIST: &str =
    "SELECT version, checksum, success FROM hotshelf._sqlx_migrations ORDER BY version";
const BROKEN_TRIGGERS: &str =
    "SELECT string_agg(name, ', ') FROM hotshelf.broken_triggers() AS name";
/// Opening a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// Whether a program may change the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Migrate {
    /// Where something is missing.
    Auto,
    /// Not at all: where something is missing, it fails.
    Never,
}

type Applied = BTreeMap<i64, (Vec<u8>, bool)>;

fn migrations() -> Migrator {
    let mut migrations = sqlx::migrate!();
    migrations.dangerous_set_table_name(APPLIED);
    migrations.create_schema(SCHEMA);
    migrations
}

impl Postgres {
    /// Brings the schema up to date, or sees that it is.
    ///
    /// # Errors
    /// When Postgres does not answer ([`Error::Unavailable`]), or its schema is not what this program can work with.
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
                // As long as it takes; and without notices of what is there already.
                let settings = "SET statement_timeout = 0; SET client_min_messages = warning";
                connection.execute(settings).await.map_err(|error| read_error(&error))?;
                migrations
                    .run_direct(None, &mut connection, false)
                    .await
                    .map_err(|error| in_words(&error))?;
            }
        }
        // Whatever becomes of the connection, the schema is up to date.
        let _ = within(Some(CONNECT), connection.close()).await;
        Ok(())
    }

    /// Sees that every write will be recorded.
    ///
    /// # Errors
    /// When a trigger is missing or does not fire for all writers, with the command that mends it; and [`Error::Unavailable`].
    pub async fn check_triggers(&self) -> Result<(), Error> {
        let broken = self.in_time(sqlx::query_as(BROKEN_TRIGGERS).fetch_one(&self.pool)).await;
        let (broken,): (Option<String>,) = broken.map_err(|error| without_rights(&error))?;
        broken.map_or(Ok(()), |broken| {
            Err(Error::Unexpected(format!(
                "triggers are missing, or not ENABLE ALWAYS ({broken}), so writes would not be noticed; \
                 run SELECT hotshelf.install_triggers() as the owner of the table, then touch what was written meanwhile: UPDATE products SET version = version"
            )))
        })
    }
}

/// What was applied; `Err` inside says that this is not our schema.
async fn applied(connection: &mut PgConnection) -> Result<Result<Applied, Error>, sqlx::Error> {
    let (ours, older, products): (bool, bool, bool) =
        sqlx::query_as(LOOK).fetch_one(&mut *connection).await?;
    if ours {
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
            return Err(in_words(&MigrateError::VersionMissing(*version)));
        };
        if !done {
            return Err(in_words(&MigrateError::Dirty(*version)));
        }
        if *known.checksum != **checksum {
            return Err(in_words(&MigrateError::VersionMismatch(*version)));
        }
    }
    Ok(migrations.iter().map(|known| known.version).find(|version| !applied.contains_key(version)))
}

/// What a role lacks is said with where to read what it needs.
fn without_rights(error: &sqlx::Error) -> Error {
    match super::error::code(error).as_deref() {
        Some("42501") => Error::Unexpected(format!(
            "{}; docs/sql.md says which rights hotshelf needs",
            message(error)
        )),
        _ => read_error(error),
    }
}

fn in_words(error: &MigrateError) -> Error {
    match error {
        MigrateError::VersionMissing(version) => Error::Unexpected(format!(
            "the schema has migration {version}, which this hotshelf {} does not know; run a newer hotshelf",
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
