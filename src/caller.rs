//! The caller that work is done for. Capacity of PostgreSQL and Redis is divided fairly between callers.

use std::time::Instant;

/// Set for identities and never reached by connection numbers, so the two cannot collide.
const IDENTITY_BIT: u64 = 1 << 63;

/// A client, identified by its authenticated identity if it has one, else by its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Caller(u64);

impl Caller {
    /// Work of this instance itself: refreshes, probes.
    pub const BACKGROUND: Self = Self(0);

    /// Connections are numbered from 1; 0 is [`Self::BACKGROUND`].
    #[must_use]
    pub fn of_connection(number: u64) -> Self {
        Self(number)
    }

    /// An authenticated caller, on any connection. `digest` has to come from a cryptographic hash; otherwise a client could
    /// choose a name that collides with another caller's and use up its share.
    #[must_use]
    pub fn of_identity(digest: u64) -> Self {
        Self(digest | IDENTITY_BIT)
    }
}

/// The caller of a read or a write, and its deadline.
#[derive(Clone, Copy, Debug)]
pub struct CallContext {
    /// The call is accounted to this caller.
    pub caller: Caller,
    /// The caller discards an answer that comes later. `None`: it waits without limit.
    pub deadline: Option<Instant>,
    pub span: SpanKey,
}

/// The number of a traced call; none for the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SpanKey(u64);

impl SpanKey {
    pub const NONE: Self = Self(0);

    /// `number` is not 0.
    #[must_use]
    pub fn new(number: u64) -> Self {
        Self(number)
    }

    #[inline]
    #[must_use]
    pub fn is_some(self) -> bool {
        self.0 != 0
    }
}

impl CallContext {
    /// Work of this instance itself; it has no deadline.
    pub const BACKGROUND: Self =
        Self { caller: Caller::BACKGROUND, deadline: None, span: SpanKey::NONE };
}
