//! Settings of the role, the database or the server that no session of this service replaces, and that hurt.

use std::time::Duration;

use sqlx::postgres::PgConnection;

use crate::findings::Finding;

const SETTINGS: &str = "SELECT name, setting, source FROM pg_settings \
    WHERE name IN ('default_transaction_read_only', 'transaction_timeout', 'idle_session_timeout', 'row_security') \
    ORDER BY name";
const NAMES: &str = "SELECT quote_ident(current_user), quote_ident(current_database())";

/// Connections in use are idle for no longer than this.
const IDLE: Duration = Duration::from_secs(5);

pub(super) async fn check(
    connection: &mut PgConnection,
    statement_timeout: Duration,
) -> Result<Vec<Finding>, sqlx::Error> {
    let rows = sqlx::query_as(SETTINGS).fetch_all(&mut *connection).await?;
    let rows: Vec<(String, String, String)> = rows;
    let (role, database): (String, String) = sqlx::query_as(NAMES).fetch_one(connection).await?;
    let mut found = Vec::new();
    for (name, setting, source) in rows {
        let reset = match source.as_str() {
            "database user" => format!("ALTER ROLE {role} IN DATABASE {database} RESET {name}"),
            "user" => format!("ALTER ROLE {role} RESET {name}"),
            "database" => format!("ALTER DATABASE {database} RESET {name}"),
            "client" => format!("remove {name} from DATABASE_URL or PGOPTIONS"),
            _ => format!(
                "ALTER SYSTEM RESET {name}, or correct postgresql.conf; then SELECT pg_reload_conf()"
            ),
        };
        let millis = Duration::from_millis(setting.parse().unwrap_or_default());
        let is_short = |limit: Duration| !millis.is_zero() && millis < limit;
        let what = format!("{name} is {setting}, set by the {source}");
        let cost = match name.as_str() {
            "default_transaction_read_only" if setting == "on" => {
                let cost = "every write fails, and no instance can apply changes to Redis or remove them from the outbox";
                found.push(Finding::error("settings", &what, cost, &reset));
                continue;
            }
            "row_security" if setting == "off" => {
                "statements on a table with row level security fail instead of leaving rows out"
            }
            "transaction_timeout" if is_short(statement_timeout) => {
                "PostgreSQL ends the connection of a slower statement before DATABASE_STATEMENT_TIMEOUT"
            }
            "idle_session_timeout" if is_short(IDLE) => {
                "PostgreSQL closes connections that calls are about to use"
            }
            _ => continue,
        };
        found.push(Finding::warning("settings", &what, cost, &reset));
    }
    if found.is_empty() {
        let what = "no setting of the role, the database or the server is in the way";
        found.push(Finding::fine("settings", what));
    }
    Ok(found)
}
