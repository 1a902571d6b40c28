//! The state of the model: one product, and its copies.

mod instance;
mod postgres;

pub use instance::*;
pub use postgres::*;

pub const INSTANCES: usize = 2;
/// In a scenario.
pub const MOST_TRANSACTIONS: usize = 4;
/// In a scenario: commits that change the product, including lost ones. Commit 0 is the initial state.
pub const MOST_COMMITS: usize = 4;

/// As `product::Revision`: the order of "newest wins".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    /// 0: no version is known.
    pub version: u8,
    /// Whether that version was deleted.
    pub deleted: bool,
}

/// A copy of the product, or of its absence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry {
    pub revision: Revision,
    /// The commit that the copy really shows. Only the promises use it.
    pub commit: u8,
    /// In the unit of `State::clock`.
    pub known_at: u8,
}

/// The holder of the lease of the product.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lock {
    /// Not held.
    #[default]
    Free,
    /// Held by the in-flight load of this instance.
    Load(u8),
    /// Held by a load that has ended: only the TTL frees it.
    Abandoned,
}

/// The key in a Redis node by which lost writes are detected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeKey {
    /// The replication id when the key was written.
    pub replication: u8,
    /// Entries known before this are suspect.
    pub since: u8,
    /// The newest commit that was pruned when the key was written. Without `suspects_age`, only older entries are suspect.
    pub pruned: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Redis {
    /// The epoch in the keys of `entry` and `lock`. Keys of older epochs are not read again.
    pub scope: u8,
    pub entry: Option<Entry>,
    /// The lease of the product.
    pub lock: Lock,
    /// The replication id of the server.
    pub replication: u8,
    pub key: NodeKey,
}

/// The faults that may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Faults {
    /// An instance is killed and started again.
    pub crashes: u8,
    /// Redis loses its last writes.
    pub failovers: u8,
    /// A hint names a version that does not exist.
    pub bogus_hints: u8,
    /// A poll returns more changes than RecentChanges can hold.
    pub overflows: u8,
    /// Postgres is restored from a backup.
    pub restores: u8,
    /// Not a fault: a transaction takes an xid before it changes the product, or without changing it.
    pub transactions: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct State {
    pub postgres: Postgres,
    /// The state to which Postgres may be restored.
    pub backup: Option<Postgres>,
    /// The revision after each commit, including lost ones.
    pub history: [Revision; MOST_COMMITS + 1],
    /// The newest commit in `history`.
    pub newest: u8,
    /// The lost commits, as bits.
    pub lost: u8,
    /// The primary.
    pub redis: Redis,
    /// The replica, after it has stopped replicating.
    pub replica: Option<Redis>,
    /// Counts detected losses of Redis, and overflows.
    pub clock: u8,
    pub instances: [Instance; INSTANCES],
    pub faults: Faults,
}

impl Revision {
    /// Older than every other.
    pub const NONE: Self = Self { version: 0, deleted: false };
}

impl State {
    /// The product as Postgres holds it.
    #[must_use]
    pub fn truth(&self) -> Entry {
        let Self { postgres: Postgres { commit, .. }, clock, .. } = *self;
        Entry { revision: self.history[usize::from(commit)], commit, known_at: clock }
    }

    /// Whether a restore has lost that commit.
    #[must_use]
    pub fn is_lost(&self, commit: u8) -> bool {
        self.lost >> commit & 1 == 1
    }

    /// The same with the instances exchanged.
    #[must_use]
    pub fn mirrored(&self) -> Self {
        let mut mirrored = *self;
        mirrored.instances.swap(0, 1);
        for postgres in
            [Some(&mut mirrored.postgres), mirrored.backup.as_mut()].into_iter().flatten()
        {
            postgres.holder = 1 - postgres.holder;
        }
        for redis in [Some(&mut mirrored.redis), mirrored.replica.as_mut()].into_iter().flatten() {
            if let Lock::Load(instance) = &mut redis.lock {
                *instance = 1 - *instance;
            }
        }
        mirrored
    }
}
