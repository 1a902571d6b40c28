//! How much is tried. Each scenario is small enough to be tried to its end; together they have every action.

use crate::state::Faults;

/// The bounds of one check.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Whether Redis, and memory that follows the changes, hold the product in the beginning.
    pub warm: bool,
    /// How many changes of the product there are, from any writer.
    pub writes: u8,
    /// Whether there are deletions and re-insertions among them.
    pub deletions: bool,
    /// Whether transactions may be rolled back.
    pub rollbacks: bool,
    /// How many writes may be under way through the API at the same time; the others are SQL.
    pub api: usize,
    /// How many instances follow the changes; another one is never proven current.
    pub feeds: usize,
    /// Whether they poll also when there is nothing to learn.
    pub idle_polls: bool,
    /// How many instances load at the same time.
    pub loads: usize,
    /// Whether the relay lease may be taken while its holder still acts.
    pub takeovers: bool,
    /// Whether rows of the outbox are pruned.
    pub prunes: bool,
    /// Whether the relay may delete an entry instead of replacing it.
    pub bulk: bool,
    /// Whether there are hints.
    pub hints: bool,
    /// Whether copies are evicted, from Redis and from memory, as often as they come.
    pub evictions: bool,
    /// Whether Redis may fail to answer, as often as it is asked.
    pub redis_fails: bool,
    /// How often each fault happens at most.
    pub faults: Faults,
}

const NONE: Faults =
    Faults { crashes: 0, failovers: 0, bogus_hints: 0, overflows: 0, restores: 0, transactions: 0 };

impl Scenario {
    const CALM: Self = Self {
        warm: false,
        writes: 1,
        deletions: false,
        rollbacks: false,
        api: 0,
        feeds: 1,
        idle_polls: false,
        loads: 1,
        takeovers: false,
        prunes: false,
        bulk: false,
        hints: false,
        evictions: false,
        redis_fails: false,
        faults: NONE,
    };
    const WARM: Self = Self { warm: true, ..Self::CALM };
    const STILL: Self = Self { loads: 0, ..Self::WARM };

    /// One change in SQL, and a poll that may be under way already.
    pub const POLLS: Self = Self { prunes: true, idle_polls: true, ..Self::WARM };
    /// One change in SQL while both instances load, and its row is pruned.
    pub const LOADS: Self = Self { loads: 2, prunes: true, ..Self::CALM };
    /// An update through the API, copies that are evicted, and bulk.
    pub const UPDATE: Self = Self { api: 1, evictions: true, bulk: true, ..Self::WARM };
    /// The same with a Redis that fails.
    pub const UPDATE_WITHOUT_REDIS: Self = Self { api: 1, redis_fails: true, ..Self::WARM };
    /// An update that may be overtaken by another write.
    pub const OVERTAKEN_UPDATE: Self = Self { writes: 2, api: 1, loads: 0, ..Self::CALM };
    /// The same, held up until the rows are pruned.
    pub const SLOW_UPDATE: Self = Self { writes: 2, api: 1, prunes: true, ..Self::STILL };
    /// A deletion and a re-insertion.
    pub const DELETION: Self = Self { writes: 2, deletions: true, ..Self::WARM };
    /// Transactions that commit in another order than they began.
    pub const TRANSACTIONS: Self = Self {
        rollbacks: true,
        idle_polls: true,
        writes: 2,
        faults: Faults { transactions: 2, ..NONE },
        ..Self::STILL
    };
    /// The relay lease goes from one instance to the other and back.
    pub const TAKEOVERS: Self = Self { takeovers: true, prunes: true, ..Self::WARM };
    /// Hints, one of them of a version that does not exist.
    pub const HINTS: Self = Self {
        hints: true,
        idle_polls: true,
        faults: Faults { bogus_hints: 1, ..NONE },
        ..Self::WARM
    };
    /// An instance is killed between any two steps of an update, and starts anew.
    pub const CRASH: Self = Self { api: 1, faults: Faults { crashes: 1, ..NONE }, ..Self::STILL };
    /// An instance starts, and does not poll for longer than rows are kept.
    pub const START: Self =
        Self { prunes: true, faults: Faults { crashes: 1, ..NONE }, ..Self::WARM };
    /// Redis fails over and has lost what it was told last, however much that is.
    pub const FAILOVER: Self =
        Self { prunes: true, faults: Faults { failovers: 1, ..NONE }, ..Self::WARM };
    /// More changes than RecentChanges may hold.
    pub const OVERFLOW: Self =
        Self { prunes: true, faults: Faults { overflows: 1, ..NONE }, ..Self::WARM };
    /// Postgres is set back.
    pub const RESTORE: Self =
        Self { prunes: true, faults: Faults { restores: 1, ..NONE }, ..Self::WARM };

    /// As [`OVERTAKEN_UPDATE`](Self::OVERTAKEN_UPDATE), with a load.
    pub const LONG_OVERTAKEN_UPDATE: Self = Self { loads: 1, ..Self::OVERTAKEN_UPDATE };
    /// As [`CRASH`](Self::CRASH), with a load.
    pub const LONG_CRASH: Self = Self { loads: 1, ..Self::CRASH };
    /// As [`FAILOVER`](Self::FAILOVER), and both instances follow the changes.
    pub const LONG_FAILOVER: Self = Self { feeds: 2, ..Self::FAILOVER };
    /// As [`LOADS`](Self::LOADS), and both instances follow the changes.
    pub const LONG_LOADS: Self = Self { feeds: 2, ..Self::LOADS };
}
