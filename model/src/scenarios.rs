//! The bounds of the checks. Each scenario is small enough for an exhaustive search; together they have every action.

use crate::state::Faults;

#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Redis, and the memory of instances that poll, hold the product in the initial state.
    pub warm: bool,
    /// The most changes of the product, by all writers together.
    pub writes: u8,
    /// Deletions and re-insertions are among them.
    pub deletions: bool,
    /// Transactions may be rolled back.
    pub rollbacks: bool,
    /// The most writes in progress through the API; the others are SQL.
    pub api: usize,
    /// The most instances that poll. The others are never proven current.
    pub feeds: usize,
    /// Instances also poll if nothing has changed.
    pub idle_polls: bool,
    /// The most instances with an in-flight load.
    pub loads: usize,
    /// The relay lease may be taken while its holder still acts.
    pub takeovers: bool,
    /// Rows of the outbox are pruned.
    pub prunes: bool,
    /// The relay may delete an entry instead of replacing it.
    pub bulk: bool,
    pub hints: bool,
    /// Copies may be evicted from Redis and from memory at any time.
    pub evictions: bool,
    /// Any Redis command may fail.
    pub redis_fails: bool,
    /// The most faults of each kind.
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

    /// One change by SQL, and a poll that may be in progress already.
    pub const POLLS: Self = Self { prunes: true, idle_polls: true, ..Self::WARM };
    /// One change by SQL while both instances load, and its row is pruned.
    pub const LOADS: Self = Self { loads: 2, prunes: true, ..Self::CALM };
    /// An update through the API, with evictions, and deletion of the entry by the relay.
    pub const UPDATE: Self = Self { api: 1, evictions: true, bulk: true, ..Self::WARM };
    /// An update through the API while Redis fails.
    pub const UPDATE_WITHOUT_REDIS: Self = Self { api: 1, redis_fails: true, ..Self::WARM };
    /// An update that may be overtaken by another write.
    pub const OVERTAKEN_UPDATE: Self = Self { writes: 2, api: 1, loads: 0, ..Self::CALM };
    /// An overtaken update that is delayed until the rows are pruned.
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
    /// The instances take the relay lease from each other.
    pub const TAKEOVERS: Self = Self { takeovers: true, prunes: true, ..Self::WARM };
    /// Hints, one of them of a version that does not exist.
    pub const HINTS: Self = Self {
        hints: true,
        idle_polls: true,
        faults: Faults { bogus_hints: 1, ..NONE },
        ..Self::WARM
    };
    /// An instance is killed between any two steps of an update, and restarts.
    pub const CRASH: Self = Self { api: 1, faults: Faults { crashes: 1, ..NONE }, ..Self::STILL };
    /// An instance restarts, and does not poll until rows have been pruned.
    pub const START: Self =
        Self { prunes: true, faults: Faults { crashes: 1, ..NONE }, ..Self::WARM };
    /// Redis fails over, and loses any number of its last writes.
    pub const FAILOVER: Self =
        Self { prunes: true, faults: Faults { failovers: 1, ..NONE }, ..Self::WARM };
    /// More changes than RecentChanges can hold.
    pub const OVERFLOW: Self =
        Self { prunes: true, faults: Faults { overflows: 1, ..NONE }, ..Self::WARM };
    /// Postgres is restored from a backup.
    pub const RESTORE: Self =
        Self { prunes: true, faults: Faults { restores: 1, ..NONE }, ..Self::WARM };

    /// As [`OVERTAKEN_UPDATE`](Self::OVERTAKEN_UPDATE), with a load.
    pub const LONG_OVERTAKEN_UPDATE: Self = Self { loads: 1, ..Self::OVERTAKEN_UPDATE };
    /// As [`CRASH`](Self::CRASH), with a load.
    pub const LONG_CRASH: Self = Self { loads: 1, ..Self::CRASH };
    /// As [`FAILOVER`](Self::FAILOVER), and both instances poll.
    pub const LONG_FAILOVER: Self = Self { feeds: 2, ..Self::FAILOVER };
    /// As [`LOADS`](Self::LOADS), and both instances poll.
    pub const LONG_LOADS: Self = Self { feeds: 2, ..Self::LOADS };
}
