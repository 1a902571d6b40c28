//! The caller that work is done for. The shares of PostgreSQL and of Redis are fair by caller.

use std::time::Instant;

/// The bit that no number of a connection has.
const OF_IDENTITY: u64 = 1 << 63;

/// A client, as far as it can be told from others: by the identity that it has shown, else by its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Caller(u64);

impl Caller {
    /// This instance itself: refreshes, probes.
    pub const BACKGROUND: Self = Self(0);

    /// The client of a connection; connections are numbered from 1.
    #[must_use]
    pub fn of_connection(number: u64) -> Self {
        Self(number)
    }

    /// An authenticated caller, on any connection. `digest` is a cryptographic one: no identity can be found that takes the
    /// shares of another.
    #[must_use]
    pub fn of_identity(digest: u64) -> Self {
        Self(digest | OF_IDENTITY)
    }
}

/// The caller of a read or a write, and until when it waits for the answer; `None`: for ever.
#[derive(Clone, Copy, Debug)]
pub struct CallContext {
    /// Whose share the call takes.
    pub caller: Caller,
    /// After this moment the answer is of no use to it.
    pub deadline: Option<Instant>,
}

impl CallContext {
    /// What this instance does by itself.
    pub const BACKGROUND: Self = Self { caller: Caller::BACKGROUND, deadline: None };
}
