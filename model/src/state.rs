//! One product, and where copies of it are.

mod instance;
mod postgres;

pub use instance::*;
pub use postgres::*;

/// How many instances there are.
pub const INSTANCES: usize = 2;
/// The most transactions of a scenario.
pub const MOST_TRANSACTIONS: usize = 4;
/// The most commits that change the product, lost ones among them; commit 0 is what was there before.
pub const MOST_COMMITS: usize = 4;

/// As `product::Revision`: the order of "newest wins".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    /// 0: none is known.
    pub version: u8,
    /// Whether the product was gone after that version.
    pub deleted: bool,
}

/// A copy of the product, or of its absence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry {
    /// Its label.
    pub revision: Revision,
    /// Which state of Postgres it really shows. The protocol does not know this, the promises do.
    pub commit: u8,
    /// `known_at`, counted in losses of Redis that had been found out.
    pub known_at: u8,
}

/// The holder of the lease of the product.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lock {
    /// None.
    #[default]
    Free,
    /// The load in flight of this instance.
    Load(u8),
    /// A load that has ended: only time frees it.
    Abandoned,
}

/// The key in a Redis node by which losses are found out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeKey {
    /// The replication id for which it was written.
    pub replication: u8,
    /// What was known before this is suspect.
    pub since: u8,
    /// The newest commit that was pruned when it was written: with a threshold that is fixed then, only what is older is suspect.
    pub pruned: u8,
}

/// What Redis holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Redis {
    /// The epoch in the keys below. Nothing reads those of an older one again.
    pub scope: u8,
    /// Of the product.
    pub entry: Option<Entry>,
    /// Its lease.
    pub lock: Lock,
    /// The server's replication id.
    pub replication: u8,
    /// What is stored of it.
    pub key: NodeKey,
}

/// What may still happen from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Faults {
    /// An instance is killed and started again.
    pub crashes: u8,
    /// Redis loses what it was told last.
    pub failovers: u8,
    /// A hint comes of a version that does not exist.
    pub bogus_hints: u8,
    /// More changes come than RecentChanges may hold.
    pub overflows: u8,
    /// Postgres goes back.
    pub restores: u8,
    /// A transaction takes an xid before it changes the product, if it does.
    pub transactions: u8,
}

/// Everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct State {
    /// The primary.
    pub postgres: Postgres,
    /// What it will be restored to.
    pub backup: Option<Postgres>,
    /// What each commit made of the product, lost ones too.
    pub history: [Revision; MOST_COMMITS + 1],
    /// The newest of them.
    pub newest: u8,
    /// Which of them are lost, as bits.
    pub lost: u8,
    /// The primary.
    pub redis: Redis,
    /// What the next primary has heard of, once it does not hear of everything any more.
    pub replica: Option<Redis>,
    /// Losses of Redis, and overflows, that were found out.
    pub clock: u8,
    /// The instances.
    pub instances: [Instance; INSTANCES],
    /// What may still go wrong.
    pub faults: Faults,
}

impl Revision {
    /// Older than everything.
    pub const NONE: Self = Self { version: 0, deleted: false };
}

impl State {
    /// What Postgres holds.
    #[must_use]
    pub fn truth(&self) -> Entry {
        let Self { postgres: Postgres { commit, .. }, clock, .. } = *self;
        Entry { revision: self.history[usize::from(commit)], commit, known_at: clock }
    }

    /// Whether that commit was lost by a restore.
    #[must_use]
    pub fn is_lost(&self, commit: u8) -> bool {
        self.lost >> commit & 1 == 1
    }

    /// The same with the instances' names exchanged.
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
