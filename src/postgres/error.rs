//! Errors that a caller can act on, converted from those of sqlx and PostgreSQL.

use std::io::ErrorKind;

use sqlx::error::DatabaseError;
use sqlx::postgres::PgDatabaseError;

use crate::metrics::PostgresShare;
use crate::product::Version;

/// Why a read or a write failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Postgres is unreachable or overloaded, or timed out. Nothing was changed.
    #[error("PostgreSQL is not available: {0}")]
    Unavailable(String),
    /// The connection broke during a write, which may have been committed.
    #[error("the connection to PostgreSQL broke during a write: {0}")]
    OutcomeUnknown(String),
    /// The queue of this share of the connections is full, or no turn came in time. Nothing was begun.
    #[error("too many statements for PostgreSQL are in flight or waiting ({0:?})")]
    OverBudget(PostgresShare),
    /// Too many writes of the product wait for each other. Nothing was changed.
    #[error("too many writes of the product wait for each other")]
    ProductBusy,
    /// Another transaction held a lock on the row until the caller's deadline. Nothing was changed.
    #[error("another transaction held a lock on the row until the deadline")]
    Locked,
    #[error("no such product")]
    NotFound,
    /// The product has another version than the caller expected.
    #[error("the product is at version {current}")]
    VersionMismatch { current: Version },
    /// The product exists and the API cannot express it: the column and the reason.
    #[error("the product cannot be expressed: {0}")]
    Unreadable(String),
    /// A constraint or trigger that is not part of this program's schema refused the write. Nothing was changed.
    #[error("{0}")]
    Refused(Refused),
    /// A value of a write that the table cannot keep: the field and the reason. Nothing was changed.
    #[error("{0}: {1}")]
    Invalid(String, String),
    /// The reason, and what to run.
    #[error("{0}")]
    NotAttached(String),
    /// A column or the table itself is not what the statement was built for. Nothing was changed.
    #[error("the table was changed: {0}")]
    TableChanged(String),
    #[error("the sequence of the ids is at its end")]
    NoMoreIds,
    /// An error that no valid statement of this program causes.
    #[error("PostgreSQL: {0}")]
    Unexpected(String),
}

/// A write that a constraint or trigger refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    pub what: Refusal,
    /// The field of the product, if the table has only one column that can be the reason.
    pub field: Option<String>,
    /// The column, where PostgreSQL names one.
    pub(super) column: Option<String>,
    /// The constraint; `None` when PostgreSQL names none.
    pub constraint: Option<String>,
    /// PostgreSQL's message.
    pub message: String,
}

/// What must change for a refused write to succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Another row, which has the same unique value.
    Duplicate,
    /// The values of the write.
    Value,
    /// Other data in the database.
    State,
}

/// The error's text. For an error of the server only its message, without the source line that sqlx appends.
pub(super) fn message(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(database) => database.message().to_owned(),
        sqlx::Error::PoolTimedOut => "no connection became free in time".to_owned(),
        sqlx::Error::Io(error) if error.kind() == ErrorKind::TimedOut => {
            "no answer came in time".to_owned()
        }
        sqlx::Error::Io(error) => error.to_string(),
        error => error.to_string(),
    }
}

/// Converts the error of a statement that changes nothing, or that was certainly not executed.
pub(super) fn read_error(error: &sqlx::Error) -> Error {
    let why = message(error);
    match error {
        sqlx::Error::Database(database) => refused(&**database)
            .map_or_else(|| answered(database.code().as_deref(), why), Error::Refused),
        sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => Error::Unavailable(why),
        error if is_broken(error) => Error::Unavailable(why),
        _ => Error::Unexpected(why),
    }
}

/// Converts the error of a failed connection attempt. An error of the server counts as unavailable, because no statement was
/// sent.
pub(super) fn unreachable(error: &sqlx::Error) -> Error {
    match error {
        sqlx::Error::Database(_) | sqlx::Error::Configuration(_) => {
            Error::Unavailable(message(error))
        }
        error => read_error(error),
    }
}

/// Converts the error of a statement that may have been committed when the connection broke.
pub(super) fn write_error(error: &sqlx::Error) -> Error {
    if is_broken(error) { Error::OutcomeUnknown(message(error)) } else { read_error(error) }
}

/// Whether the connection must be closed.
pub(super) fn is_broken(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::WorkerCrashed => true,
        // After these the server closes the connection, possibly in the middle of a commit: shutdown and crash (57P01,
        // 57P02), idle session timeout (57P05), and connection errors that a proxy reports (class 08).
        sqlx::Error::Database(database) => database.code().is_some_and(|code| {
            matches!(&*code, "57P01" | "57P02" | "57P05") || code.starts_with("08")
        }),
        _ => false,
    }
}

/// The SQLSTATE of an error of the server.
pub(super) fn code(error: &sqlx::Error) -> Option<String> {
    error.as_database_error().and_then(DatabaseError::code).map(std::borrow::Cow::into_owned)
}

/// Whether a value of a row made a SELECT fail: it cannot be converted, or is corrupted on disk.
pub(super) fn row_of_statement_raised(error: &sqlx::Error) -> bool {
    code(error).is_some_and(|code| code.starts_with("22") || code.starts_with("XX"))
}

/// Converts an error of the server by its SQLSTATE (PostgreSQL documentation, appendix A).
fn answered(code: Option<&str>, why: String) -> Error {
    match code {
        // Text outside the client's encoding: from a row of a database in SQL_ASCII.
        Some("22021") => Error::Unreadable(format!("text: {why}")),
        Some("2200H") => Error::NoMoreIds,
        // No such column, table or function, and types that do not match.
        Some("42703" | "42P01" | "42883" | "42804" | "42846") => Error::TableChanged(why),
        // Lock timeout.
        Some("55P03") => Error::Locked,
        // 08 connection, 53 out of resources, 57 operator intervention (shutdown, starting up, statement
        // timeout), 40 serialization and deadlock, 25006 read-only during a failover.
        Some(code) if ["08", "53", "57", "40"].contains(&&code[..2]) || code == "25006" => {
            Error::Unavailable(why)
        }
        _ => Error::Unexpected(why),
    }
}

/// Recognises the errors that constraints and triggers raise.
fn refused(error: &dyn DatabaseError) -> Option<Refused> {
    let code = error.code()?;
    let what = match &*code {
        "23505" => Refusal::Duplicate,
        // Not null, check; too long, out of range, not in the database's encoding.
        "23502" | "23514" | "22001" | "22003" | "22P05" => Refusal::Value,
        "22021" | "2200H" => return None,
        // Other constraints, errors inside trigger functions (P0001 and others of PL/pgSQL), and WITH CHECK OPTION.
        code if ["22", "23", "P0", "44", "09", "27", "38", "39"].contains(&&code[..2]) => {
            Refusal::State
        }
        _ => return None,
    };
    let constraint = error.constraint().map(str::to_owned);
    let column = error.try_downcast_ref::<PgDatabaseError>().and_then(PgDatabaseError::column);
    let (column, field) = (column.map(str::to_owned), None);
    Some(Refused { what, field, column, constraint, message: error.message().to_owned() })
}
