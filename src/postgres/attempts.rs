//! Retries of statements.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::Connection as _;

use super::connections::Connection;
use super::error::{code, is_broken, read_error, write_error};
use super::{Error, Postgres, within};
use crate::metrics::{Metrics, PostgresOperation};

/// The first pause after a serialization failure or a deadlock; it doubles with each one, up to 64 times.
const BACKOFF: Duration = Duration::from_millis(2);
/// Retries after serialization failures and deadlocks for callers without a deadline.
const MOST_CONFLICTS: u32 = 10;

/// A read can be repeated when it is unknown whether it was executed; a write cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
}

/// The attempts of one statement.
#[derive(Debug)]
pub(super) struct Attempts {
    kind: Kind,
    deadline: Option<Instant>,
    /// The timeout of a response; `None`: no limit.
    timeout: Option<Duration>,
    was_reprepared: bool,
    was_reconnected: bool,
    conflicts: u32,
    operation: PostgresOperation,
    metrics: Arc<Metrics>,
}

impl Postgres {
    pub(super) fn attempts(
        &self,
        operation: PostgresOperation,
        kind: Kind,
        deadline: Option<Instant>,
    ) -> Attempts {
        Attempts {
            kind,
            deadline,
            timeout: self.timeout,
            was_reprepared: false,
            was_reconnected: false,
            conflicts: 0,
            operation,
            metrics: Arc::clone(&self.metrics),
        }
    }
}

impl Attempts {
    pub(super) async fn in_time<T>(
        &self,
        answer: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        let began = Instant::now();
        let outcome = within(self.timeout, answer).await;
        self.metrics.postgres_seconds.record(self.operation, began.elapsed());
        outcome
    }

    /// Handles the outcome of an attempt. `None`: the statement must be sent again.
    ///
    /// After an error of the server the statement was rolled back, so it may be sent again, also a write. Without a response
    /// only a read may be sent again.
    pub(super) async fn answer_or_retry<T>(
        &mut self,
        connection: &mut Connection,
        outcome: Result<T, sqlx::Error>,
    ) -> Result<Option<T>, Error> {
        connection.record_outcome(&outcome);
        let error = match outcome {
            Ok(answer) => return Ok(Some(answer)),
            Err(error) => error,
        };
        match code(&error).as_deref() {
            // A result type has changed since the statement was prepared (0A000), or a pooler discarded it (26000).
            Some("0A000" | "26000") if !self.was_reprepared => {
                self.was_reprepared = true;
                let cleared = within(self.timeout, connection.clear_cached_statements()).await;
                connection.record_outcome(&cleared);
                cleared.map_err(|error| read_error(&error))?;
                return Ok(None);
            }
            // Serialization failure, deadlock.
            Some("40001" | "40P01") if self.may_retry() => {
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
        if is_broken(&error) && !is_timeout && !connection.is_fresh && !self.was_reconnected {
            self.was_reconnected = true;
            connection.reopen(self.deadline).await?;
            return Ok(None);
        }
        Err(read_error(&error))
    }

    fn may_retry(&self) -> bool {
        match self.deadline {
            Some(deadline) => Instant::now() < deadline,
            None => self.conflicts < MOST_CONFLICTS,
        }
    }
}
