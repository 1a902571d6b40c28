//! What the world is made of: one product, and where copies of it are.

use crate::stream::{Frontier, Place, Stream};

/// How many instances there are.
pub const INSTANCES: usize = 2;
/// The most writes that a scenario may have; commit 0 is what was there before.
pub const MOST_WRITES: usize = 3;
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
    /// What it says of itself.
    pub revision: Revision,
    /// Which state of Postgres it really shows. The protocol does not know this, the promises do.
    pub commit: u8,
}

/// Where the outbox row of a commit is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Row {
    /// There is no such commit yet.
    #[default]
    None,
    /// In `product_changes`.
    Outbox,
    /// In an open transaction of this instance's relay.
    Claimed(u8),
    /// In `relayed_changes`.
    Relayed,
}

/// Who holds the lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lock {
    /// Nobody.
    #[default]
    Free,
    /// The load in flight of this instance.
    Load(u8),
    /// A load that is no more: nothing but time frees it.
    Nobody,
}

/// What Redis holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Redis {
    /// Of the product.
    pub entry: Option<Entry>,
    /// Its lease.
    pub lock: Lock,
    /// The change stream.
    pub stream: Stream,
}

/// What the memory of an instance holds (`hot_cache::Held`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// The copy.
    pub entry: Entry,
    /// The newest revision that was heard of.
    pub floor: Revision,
    /// Whether no change can have been missed since it was checked.
    pub trusted: bool,
}

/// Where the result of a load is from, which decides what follows when memory refuses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum From {
    /// Redis; the lease is next.
    Redis,
    /// Redis, looked at again with the lease in hand.
    RedisUnderLease,
    /// Postgres, under the lease.
    Fill,
    /// Postgres, without it: the last try.
    Postgres,
}

/// The next thing that a load does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// `Catalog::land_from_redis`.
    AskRedis,
    /// `Catalog::load_under_leases`, one attempt.
    AskLease,
    /// `Catalog::load_and_fill`: the `SELECT`.
    Select,
    /// `Catalog::load_and_fill`: the fill.
    Fill(Entry),
    /// `Catalog::load_without_lease`: the `SELECT`.
    SelectWithoutLease,
    /// `Catalog::load_without_lease`: telling Redis.
    Replace(Entry),
    /// `Catalog::land`.
    Land(Entry, From),
}

/// A load in flight; an instance has one at a time (`catalog/flight.rs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Load {
    /// What is next.
    pub stage: Stage,
    /// The newest revision heard of since it began (`hot_cache::Floor`).
    pub floor: Revision,
    /// The newest version that Redis was seen to hold.
    pub seen: u8,
    /// Whether no change can have been missed since it began.
    pub trusted: bool,
}

/// The next thing that a write through the API does, once it is committed (`Catalog::publish`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Writing {
    /// Into its own memory.
    Offer,
    /// To Redis.
    Publish,
    /// Into the change stream.
    Append,
}

/// A write through the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Write {
    /// What is next.
    pub stage: Writing,
    /// What was written.
    pub entry: Entry,
    /// Whether something newer was heard of since it began.
    pub overtaken: bool,
    /// Whether no change can have been missed since it began.
    pub trusted: bool,
}

/// The next thing that a relay does (`Relay::step`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Relay {
    /// Claims rows.
    #[default]
    Claim,
    /// Breaks the lease, and asks whether Redis holds something older.
    Supersede,
    /// Reads the product again.
    Load,
    /// Replaces what Redis holds.
    Replace(Entry),
    /// Tells the stream.
    Append,
    /// Commits.
    Done,
}

/// One instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instance {
    /// Its memory of the product.
    pub slot: Option<Slot>,
    /// Its load in flight.
    pub load: Option<Load>,
    /// Its write that Redis does not know of yet.
    pub write: Option<Write>,
    /// Its relay.
    pub relay: Relay,
    /// How far it has heard the change stream; `None` while it starts anew (`Follower::restart`).
    pub cursor: Option<Place>,
    /// Whether it will replay what was relayed (`Catalog::replay`).
    pub replay: bool,
    /// How far it knows that changes have been relayed.
    pub frontier: Frontier,
}

/// What may still happen to it from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Faults {
    /// An instance is killed and started again.
    pub crashes: u8,
    /// Redis loses what it was told last.
    pub failovers: u8,
    /// The stream is trimmed before everybody has heard it.
    pub trims: u8,
}

/// Everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct State {
    /// How many writes were committed.
    pub commit: u8,
    /// What each of them made of the product.
    pub history: [Revision; MOST_WRITES + 1],
    /// Where the outbox row of each is.
    pub rows: [Row; MOST_WRITES + 1],
    /// The primary.
    pub redis: Redis,
    /// What the next primary has heard of, once it does not hear of everything any more.
    pub replica: Option<Redis>,
    /// The instances.
    pub instances: [Instance; INSTANCES],
    /// What may still go wrong.
    pub faults: Faults,
}

impl Revision {
    /// Older than everything.
    pub const NONE: Self = Self { version: 0, deleted: false };
}

impl Slot {
    /// Whether something newer is known to be committed.
    #[must_use]
    pub fn is_void(&self) -> bool {
        self.entry.revision < self.floor
    }
}

impl State {
    /// What Postgres holds.
    #[must_use]
    pub fn truth(&self) -> Entry {
        let revision = self.history[usize::from(self.commit)];
        Entry { revision, commit: self.commit }
    }

    /// The highest id that anybody has seen in the stream.
    #[must_use]
    pub fn newest_id(&self) -> u8 {
        let heard = self.instances.iter().filter_map(|instance| instance.cursor);
        heard.map(|place| place.id).fold(self.redis.stream.end.id, u8::max)
    }

    /// Forgets what everybody has heard of the stream, and counts from there.
    pub fn rebase_stream(&mut self) {
        let heard = self.instances.iter().filter_map(|instance| instance.cursor);
        let heard = heard.map(|place| place.id).min().unwrap_or(u8::MAX);
        let Self { redis, replica, instances, .. } = self;
        let mut streams = [Some(redis), replica.as_mut()].map(|redis| Some(&mut redis?.stream));
        streams.iter_mut().flatten().for_each(|stream| stream.forget(heard));
        let mut least = Place { id: u8::MAX, number: u8::MAX };
        let mut each = |change: &mut dyn FnMut(&mut Place)| {
            streams.iter_mut().flatten().flat_map(|stream| stream.places()).for_each(&mut *change);
            instances.iter_mut().filter_map(|instance| instance.cursor.as_mut()).for_each(change);
        };
        each(&mut |place| least.id = least.id.min(place.id));
        each(&mut |place| least.number = least.number.min(place.number));
        if least != Place::default() {
            each(&mut |place| place.id -= least.id);
            each(&mut |place| place.number -= least.number);
        }
    }

    /// The same with the instances' names exchanged.
    #[must_use]
    pub fn mirrored(&self) -> Self {
        let mut mirrored = *self;
        mirrored.instances.swap(0, 1);
        for row in &mut mirrored.rows {
            if let Row::Claimed(instance) = row {
                *instance = 1 - *instance;
            }
        }
        for redis in [Some(&mut mirrored.redis), mirrored.replica.as_mut()].into_iter().flatten() {
            if let Lock::Load(instance) = &mut redis.lock {
                *instance = 1 - *instance;
            }
        }
        mirrored
    }
}
