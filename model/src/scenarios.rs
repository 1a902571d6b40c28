//! How much is tried. Each scenario is small enough to be tried to its end; together they have every action.

use crate::state::Faults;

/// The bounds of one check.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// How many writes there are, by anybody.
    pub writes: u8,
    /// Whether there are deletions and re-insertions among them.
    pub deletions: bool,
    /// How many of them may be under way through the API at the same time; the others are anybody's SQL.
    pub api: usize,
    /// How many instances load at the same time.
    pub loads: usize,
    /// How many relays work at the same time.
    pub relays: usize,
    /// Whether copies are evicted, from Redis and from memory, as often as they come.
    pub evictions: bool,
    /// Whether Redis may fail to answer, as often as it is asked.
    pub redis_fails: bool,
    /// Whether instances look how far changes have been relayed.
    pub looks: bool,
    /// How often each fault happens at most.
    pub faults: Faults,
}

impl Scenario {
    const CALM: Self = Self {
        writes: 1,
        deletions: false,
        api: 0,
        loads: 1,
        relays: 1,
        evictions: false,
        redis_fails: false,
        looks: false,
        faults: Faults { crashes: 0, failovers: 0, trims: 0 },
    };

    /// Two instances load while somebody's SQL changes or deletes the product.
    pub const LOADS: Self =
        Self { deletions: true, loads: 2, evictions: true, redis_fails: true, ..Self::CALM };
    /// Two instances load during an `UpdateProduct`.
    pub const LOADS_AND_UPDATE: Self = Self { api: 1, loads: 2, ..Self::CALM };
    /// A write through the API, or a deletion, with everything that may come in its way but a second load.
    pub const UPDATE: Self =
        Self { deletions: true, api: 1, evictions: true, redis_fails: true, ..Self::CALM };
    /// An `UpdateProduct` that may be overtaken by another write.
    pub const OVERTAKEN_UPDATE: Self = Self { writes: 2, api: 1, ..Self::CALM };
    /// Two changes in SQL, a deletion and a re-insertion among them, and a relay for each.
    pub const RELAYS: Self =
        Self { writes: 2, deletions: true, relays: 2, evictions: true, ..Self::CALM };
    /// An instance is killed between any two steps, and starts anew.
    pub const CRASH: Self =
        Self { api: 1, faults: Faults { crashes: 1, ..Self::CALM.faults }, ..Self::CALM };
    /// Redis fails over and has lost what it was told last, however much that is.
    pub const FAILOVER: Self =
        Self { faults: Faults { failovers: 1, ..Self::CALM.faults }, ..Self::CALM };
    /// An instance falls behind by more than the change stream keeps.
    pub const TRIM: Self =
        Self { evictions: true, faults: Faults { trims: 1, ..Self::CALM.faults }, ..Self::CALM };
    /// Two changes by SQL, a relay for each, and an instance that looks how far they have been relayed.
    pub const FRONTIER: Self = Self { writes: 2, relays: 2, looks: true, ..Self::CALM };
    /// The same of an update or a change by SQL, with everything that may come in its way.
    pub const FRONTIER_OF_ONE: Self =
        Self { api: 1, evictions: true, redis_fails: true, looks: true, ..Self::CALM };
    /// The same of a deletion by SQL.
    pub const FRONTIER_OF_DELETION: Self =
        Self { deletions: true, evictions: true, redis_fails: true, looks: true, ..Self::CALM };
    /// The same, and an instance is killed between any two steps.
    pub const FRONTIER_AND_CRASH: Self = Self { api: 0, looks: true, ..Self::CRASH };

    /// As [`UPDATE`](Self::UPDATE), with loads in both instances. Takes half a minute.
    pub const LONG_UPDATE: Self =
        Self { deletions: true, api: 1, loads: 2, evictions: true, ..Self::CALM };
    /// Three writes, one at a time through the API. Takes half a minute.
    pub const LONG_THREE_WRITES: Self = Self { writes: 3, api: 1, loads: 1, ..Self::CALM };
    /// Two writes under way through the API, deletions among them. Takes a quarter of a minute.
    pub const LONG_OVERTAKEN_UPDATE: Self =
        Self { writes: 2, deletions: true, api: 2, ..Self::CALM };
    /// A failover and the death of an instance, in any order. Takes minutes and 4 GB.
    pub const LONG_DOUBLE_FAULT: Self =
        Self { faults: Faults { crashes: 1, failovers: 1, ..Self::CALM.faults }, ..Self::CALM };
    /// As [`FRONTIER`](Self::FRONTIER), with an `UpdateProduct` that may be overtaken. Takes a quarter of a minute.
    pub const LONG_FRONTIER: Self = Self { writes: 2, api: 1, looks: true, ..Self::CALM };
    /// As [`TRIM`](Self::TRIM), with an instance that looks, and a Redis that fails. Takes a minute.
    pub const LONG_FRONTIER_AND_TRIM: Self = Self { redis_fails: true, looks: true, ..Self::TRIM };
}
