//! What is measured by histograms, with the bounds of their buckets.

use super::{LabelSet, Method, RedisOperation};
use crate::metrics::histogram::Measured;

label_set! {
    /// A statement that is sent to PostgreSQL.
    PostgresOperation { "operation" } [
        /// Reads products, for the caches, for `latest` reads, for the relay or for shadow reads.
        Load = ["load"],
        /// UpdateProduct, with the statements that find the reason of a refusal.
        Update = ["update"],
        /// CreateProduct, likewise.
        Create = ["create"],
        /// DeleteProduct, likewise.
        Delete = ["delete"],
        /// ExplainProduct.
        Explain = ["explain"],
        /// A poll of the outbox, to its last row.
        Poll = ["poll"],
        /// The relay's lease, marks and pruning.
        Relay = ["relay"],
    ]
}

label_set! {
    /// A tier that may hold an older version, and how this instance heard of the change: by its own write, by a hint of another
    /// instance, or by a poll of the outbox.
    Staleness { "tier", "heard_by" } [
        HotWrite = ["hot", "write"],
        HotHint = ["hot", "hint"],
        HotPoll = ["hot", "poll"],
        RedisWrite = ["redis", "write"],
        RedisHint = ["redis", "hint"],
        RedisPoll = ["redis", "poll"],
    ]
}

/// How an instance heard of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeardBy {
    /// It made the change itself.
    Write,
    /// Another instance published it.
    Hint,
    /// A poll of the outbox returned it.
    Poll,
}

impl Staleness {
    #[must_use]
    pub fn of_hot(by: HeardBy) -> Self {
        Self::ALL[by as usize]
    }

    #[must_use]
    pub fn of_redis(by: HeardBy) -> Self {
        Self::ALL[3 + by as usize]
    }
}

/// A hot read takes about 10 us, a load from a slow database seconds.
impl Measured for Method {
    const BOUNDS: &'static [u64] = &[
        10, 30, 50, 100, 300, 600, 1_000, 3_000, 6_000, 10_000, 30_000, 100_000, 300_000,
        1_000_000, 3_000_000, 10_000_000,
    ];
}

/// A round trip takes about 200 us, and `DATABASE_STATEMENT_TIMEOUT` is 2 s by default.
impl Measured for PostgresOperation {
    const BOUNDS: &'static [u64] = ROUND_TRIPS;
}

/// A round trip takes about 100 us, and `REDIS_TIMEOUT` is 100 ms by default.
impl Measured for RedisOperation {
    const BOUNDS: &'static [u64] = ROUND_TRIPS;
}

const ROUND_TRIPS: &[u64] = &[
    50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000,
    1_000_000, 2_000_000, 5_000_000, 10_000_000,
];

/// The bounds of the promise are among them: 50 ms, 500 ms, 1 s and 5 s.
impl Measured for Staleness {
    const BOUNDS: &'static [u64] = &[
        1_000,
        2_000,
        5_000,
        10_000,
        20_000,
        50_000,
        100_000,
        200_000,
        300_000,
        500_000,
        1_000_000,
        2_000_000,
        5_000_000,
        10_000_000,
        30_000_000,
        60_000_000,
        300_000_000,
    ];
}
