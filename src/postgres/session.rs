//! Opening connections, with the settings that the statements depend on.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor};

use super::error::{code, unreachable};
use super::hosts::Hosts;
use super::{Error, within};

/// The SQLSTATE of a statement that was canceled.
const CANCELED: &str = "57014";
const SET_ATTEMPTS: u32 = 5;
const APPLICATION: &str = "hotshelf";
/// The timeout of opening a connection for a command.
pub(super) const CONNECT: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) hosts: Hosts,
    settings: String,
}

impl Session {
    /// A statement timeout of zero means no limit.
    pub(super) fn new(url: &str, statement_timeout: Duration) -> Result<Self, String> {
        let hosts = Hosts::of(url)?;
        let application =
            hosts.primary().get_application_name().unwrap_or(APPLICATION).replace('\'', "''");
        let idle =
            if statement_timeout.is_zero() { 0 } else { statement_timeout.as_millis() + 1_000 };
        // Settings of the role, the database or the server must not change the meaning of the statements. `lock_timeout` is set
        // per statement, and read committed gives each statement its own snapshot. `public` is on the search path for
        // operators' triggers that pin none; the statements here qualify every name. Custom plans cost 0.1 ms of planning per
        // statement, but a generic plan from a time when a table was small would be kept. The formats are those of attributes.
        let settings = format!(
            "SET application_name = '{application}'; \
             SET search_path = public, pg_temp; \
             SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres'; SET bytea_output = 'hex'; \
             SET default_transaction_isolation = 'read committed'; \
             SET statement_timeout = {}; \
             SET lock_timeout = 0; \
             SET idle_in_transaction_session_timeout = {idle}; \
             SET plan_cache_mode = force_custom_plan",
            statement_timeout.as_millis()
        );
        Ok(Self { hosts, settings })
    }

    /// Opens a connection, within `limit`.
    pub(super) async fn open(&self, limit: Duration) -> Result<PgConnection, sqlx::Error> {
        let open = async {
            let mut connection = self.hosts.connect().await?;
            self.set(&mut connection).await?;
            Ok(connection)
        };
        within(Some(limit), open).await
    }

    /// Opens a connection to which the names of all types are qualified that are not PostgreSQL's own.
    pub(super) async fn open_for_catalogue(&self) -> Result<PgConnection, Error> {
        let open = async {
            let mut connection = self.open(CONNECT).await?;
            connection.execute("SET search_path = pg_catalog, pg_temp").await?;
            Ok(connection)
        };
        within(Some(CONNECT), open).await.map_err(|error| unreachable(&error))
    }

    /// Applies the settings in one round trip. Not as startup parameters, which poolers drop or refuse.
    pub(super) async fn set(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let mut attempts = 1..=SET_ATTEMPTS;
        loop {
            let settings = sqlx::raw_sql(AssertSqlSafe(self.settings.clone()));
            let set = connection.execute(settings).await.map(drop);
            // A statement timeout of the role applies to the settings themselves: one of some milliseconds can end them.
            let is_canceled =
                set.as_ref().is_err_and(|error| code(error).as_deref() == Some(CANCELED));
            if !is_canceled || attempts.next() == Some(SET_ATTEMPTS) {
                return set;
            }
            let _ = connection.execute("SET statement_timeout = 0").await;
        }
    }
}
