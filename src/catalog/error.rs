//! Errors of reads and writes, as far as a caller can act on them.

use crate::entry::{Entry, Freshness};
use crate::metrics::PostgresShare;
use crate::postgres::{self, Refused};
use crate::product::Version;

/// Why a read or a write failed. There is no variant for Redis, which is never the caller's error.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("no such product")]
    NotFound,
    #[error("the product is at version {current}")]
    VersionMismatch { current: Version },
    /// Postgres was read after the call arrived, and holds an older version than `min_version`.
    #[error("the product is only at version {current}")]
    VersionNotReached { current: Version },
    /// Postgres does not answer, and no cached entry may be served.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// This share of the connections to Postgres is in use and its queue is full. Nothing was changed.
    #[error("the database budget is exhausted ({0:?})")]
    OverBudget(PostgresShare),
    /// The queue of writes of this product is full. Nothing was changed.
    #[error("too many writes of the product wait for each other")]
    ProductBusy,
    /// The connection broke during a write, which may have been committed.
    #[error("the outcome of the write is unknown: {0}")]
    OutcomeUnknown(String),
    /// Another transaction held the row until the caller's deadline. Nothing was changed.
    #[error("another transaction held the row of the product until the deadline")]
    Locked,
    /// A constraint or a trigger that this program does not know refused the write. Nothing was changed.
    #[error("the database refused the write: {0}")]
    Refused(Refused),
    /// The row exists, and the API cannot express it: the column and the reason.
    #[error("the product cannot be expressed: {0}")]
    Unreadable(String),
    /// The table cannot keep a value of the write: the field of the product and the reason. Nothing was changed.
    #[error("{0}: {1}")]
    Invalid(String, String),
    /// A bug.
    #[error("internal: {0}")]
    Internal(String),
}

impl From<postgres::Error> for Error {
    fn from(error: postgres::Error) -> Self {
        match error {
            postgres::Error::NotFound => Self::NotFound,
            postgres::Error::VersionMismatch { current } => Self::VersionMismatch { current },
            postgres::Error::Unavailable(why) => Self::Unavailable(why),
            postgres::Error::OverBudget(share) => Self::OverBudget(share),
            postgres::Error::ProductBusy => Self::ProductBusy,
            postgres::Error::OutcomeUnknown(why) => Self::OutcomeUnknown(why),
            postgres::Error::Unreadable(why) => Self::Unreadable(why),
            postgres::Error::Locked => Self::Locked,
            postgres::Error::Refused(refused) => Self::Refused(refused),
            postgres::Error::Invalid(field, why) => Self::Invalid(field, why),
            postgres::Error::NotAttached(why) | postgres::Error::TableChanged(why) => {
                Self::Unavailable(why)
            }
            postgres::Error::NoMoreIds => Self::Internal(error.to_string()),
            postgres::Error::Unexpected(why) => Self::Internal(why),
        }
    }
}

/// Refuses a `min_version` that Postgres has not reached after the call arrived: it was never committed in this
/// database.
pub(super) fn reached(entry: &Entry, freshness: &Freshness) -> Result<(), Error> {
    match *freshness {
        Freshness::MinVersion { version, .. }
            if !entry.is_tombstone() && entry.revision().version < version =>
        {
            Err(Error::VersionNotReached { current: entry.revision().version })
        }
        _ => Ok(()),
    }
}
