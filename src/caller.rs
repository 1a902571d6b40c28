//! The caller of a unit of work. The shares of PostgreSQL and of Redis are fair between callers.

use std::time::Instant;

/// The bit that identities have and connection numbers do not.
const OF_IDENTITY: u64 = 1 << 63;

/// A client: its authenticated identity, or else its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Caller(u64);

impl Caller {
    /// The background tasks of this instance, such as the refresher.
    pub const BACKGROUND: Self = Self(0);

    /// The client of a connection. `number` is 1 or more: 0 is [`BACKGROUND`](Self::BACKGROUND).
    #[must_use]
    pub fn of_connection(number: u64) -> Self {
        Self(number)
    }

    /// A named caller, on any connection. `digest` has to be cryptographic: otherwise a client could search for a name that
    /// collides with another caller's, and use up its share.
    #[must_use]
    pub fn of_identity(digest: u64) -> Self {
        Self(digest | OF_IDENTITY)
    }
}

/// The caller and the deadline of a read or a write.
#[derive(Clone, Copy, Debug)]
pub struct CallContext {
    /// The caller that the work is charged to.
    pub caller: Caller,
    /// The moment at which the caller stops waiting; `None`: never.
    pub deadline: Option<Instant>,
}

impl CallContext {
    /// Work of a background task, without a deadline.
    pub const BACKGROUND: Self = Self { caller: Caller::BACKGROUND, deadline: None };
}
