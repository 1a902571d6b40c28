//! Which statements are repeated, and how often.

use std::time::{Duration, Instant};

use sqlx::Connection as _;

use super::connections::Connection;
use super::error::{code, is_broken, read_error, write_error};
use super::{Error, within};

/// Between two tries after a serialization failure or a deadlock, at first.
const BACKOFF: Duration = Duration::from_millis(2);
/// Without a deadline of the caller's.
const MOST_CONFLICTS: u32 = 10;

/// Whether a statement can be repeated when it is not known whether it was executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
}

/// The tries of one statement.
#[derive(Debug)]
pub(super) struct Attempts {
    kind: Kind,
    deadline: Option<Instant>,
    /// How long an answer may take; `None`: for ever.
    timeout: Option<Duration>,
    is_prepared_again: bool,
    is_reconnected: bool,
    conflicts: u32,
}

impl Attempts {
    pub(super) fn new(kind: Kind, deadline: Option<Instant>, timeout: Option<Duration>) -> Self {
        let (is_prepared_again, is_reconnected) = (false, false);
        Self { kind, deadline, timeout, is_prepared_again, is_reconnected, conflicts: 0 }
    }

    /// Waits for the answer to a try.
    pub(super) async fn in_time<T>(
        &self,
        answer: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        within(self.timeout, answer).await
    }

    /// What a try came to; `None` when the statement has to be sent again.
    ///
    /// A statement that failed with an answer of the server was rolled back, so it may be sent again, whatever it is. Where no answer
    /// came only a read may.
    pub(super) async fn settle<T>(
        &mut self,
        connection: &mut Connection,
        outcome: Result<T, sqlx::Error>,
    ) -> Result<Option<T>, Error> {
        connection.settle(&outcome);
        let error = match outcome {
            Ok(answer) => return Ok(Some(answer)),
            Err(error) => error,
        };
        match code(&error).as_deref() {
            // The type of a result has changed since the statement was prepared; a pooler discarded the statement.
            Some("0A000" | "26000") if !self.is_prepared_again => {
                self.is_prepared_again = true;
                let cleared = within(self.timeout, connection.clear_cached_statements()).await;
                connection.settle(&cleared);
                cleared.map_err(|error| read_error(&error))?;
                return Ok(None);
            }
            // Serialization failure, deadlock.
            Some("40001" | "40P01") if self.may_repeat() => {
                let backoff = BACKOFF * 2_u32.pow(self.conflicts.min(6));
                self.conflicts += 1;
                tokio::time::sleep(backoff.mul_f64(rand::random_range(0.5..1.5))).await;
                return Ok(None);
            }
            _ => {}
        }
        if self.kind == Kind::Write {
            return Err(write_error(&error));
        }
        let is_timeout = matches!(&error, sqlx::Error::Io(error) if error.kind() == std::io::ErrorKind::TimedOut);
        if is_broken(&error) && !is_timeout && !connection.is_fresh && !self.is_reconnected {
            self.is_reconnected = true;
            connection.reopen(self.deadline).await?;
            return Ok(None);
        }
        Err(read_error(&error))
    }

    fn may_repeat(&self) -> bool {
        match self.deadline {
            Some(deadline) => Instant::now() < deadline,
            None => self.conflicts < MOST_CONFLICTS,
        }
    }
}
