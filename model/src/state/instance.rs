//! An instance: its memory, and what it has under way.

use super::{Entry, NodeKey, Revision};
use crate::snapshot::Snapshot;

/// What the memory of an instance holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// The copy.
    pub entry: Entry,
    /// Whether no change can have been missed since it was checked.
    pub trusted: bool,
    /// Whether something newer was heard of.
    pub void: bool,
}

/// What an instance may have missed since a load or a write began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket {
    /// What RecentChanges held then.
    pub floor: Revision,
    /// Whether there was no gap since.
    pub trusted: bool,
    /// Whether a generation was dropped that had been seen since.
    pub slept: bool,
    /// What was proven then: for the promises.
    pub proof: u8,
    /// The scope of its keys in Redis.
    pub scope: u8,
}

/// Where the result of a load is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum From {
    /// Redis; the lease is next if it is refused.
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
    /// `GET`.
    AskRedis,
    /// `try_lease.lua`.
    AskLease,
    /// `SELECT`.
    Select,
    /// `fill.lua`.
    Fill(Entry),
    /// `SELECT`, the lease being taken or Redis unreachable.
    SelectWithoutLease,
    /// `publish.lua`.
    Replace(Entry),
    /// Brings the result into memory.
    Finish(Entry, From),
}

/// A load in flight; an instance has one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Load {
    /// What is next.
    pub stage: Stage,
    /// What it may have missed.
    pub ticket: Ticket,
}

/// A write through the API, from its commit to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Write {
    /// Whether its own memory has it, and Redis is next.
    pub offered: bool,
    /// What was written.
    pub entry: Entry,
    /// What it may have missed.
    pub ticket: Ticket,
}

/// The next thing that a relay does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RelayStage {
    /// Polls, or `supersede.lua`.
    #[default]
    Idle,
    /// Reads the product again.
    Load,
    /// `publish.lua`.
    Replace(Entry),
}

/// A relay at work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Relay {
    /// How far it has read.
    pub cursor: Snapshot,
    /// What the node of the product has yet to hear of.
    pub pending: Revision,
    /// What is next.
    pub stage: RelayStage,
    /// The scope of its keys in Redis.
    pub scope: u8,
}

/// What Postgres answered to a poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Answer {
    /// The current snapshot.
    pub snapshot: Snapshot,
    /// The markers.
    pub pruned: Snapshot,
    /// How far the relay is.
    pub relayed: Snapshot,
    /// The epoch.
    pub epoch: u8,
    /// The newest revision in the rows.
    pub newest: Revision,
    /// The highest `seq` in the rows.
    pub seq: u8,
    /// Whether rows may be missing.
    pub gap: bool,
}

/// How far a poll is. The number is the newest commit acknowledged before it was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Poll {
    /// None is under way.
    #[default]
    Idle,
    /// On its way to Postgres.
    Sent(u8),
    /// On its way back.
    Answered(u8, Answer),
}

/// The change feed of an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Feed {
    /// The snapshot of the last poll; `None` before the first.
    pub previous: Option<Snapshot>,
    /// The highest `seq` that was seen: for a cursor of that kind only.
    pub seq: u8,
    /// The poll under way.
    pub poll: Poll,
    /// The newest commit that nothing may be older than: acknowledged before the last proof, or heard of.
    pub proof: u8,
    /// The epoch it knows.
    pub epoch: u8,
}

/// The newest generation in which the product changed. Older ones are dropped no later, and say no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation {
    /// What the product became.
    pub revision: Revision,
    /// The snapshot of its poll.
    pub snapshot: Snapshot,
    /// Whether the load in flight had begun before that poll completed.
    pub during_load: bool,
    /// Whether the write under way had.
    pub during_write: bool,
}

/// RecentChanges: the floor of the product.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Changes {
    /// What polls brought.
    pub generation: Option<Generation>,
    /// Heard of since the last poll was sent.
    pub pending: Revision,
    /// Heard of before that, and dropped when it completes.
    pub polled: Revision,
    /// An entry of Redis that was known before is not current: the changes since did not fit.
    pub complete_since: u8,
    /// What did not fit was visible in this; Redis reflects it when that is relayed.
    pub overflowed: Snapshot,
}

/// One instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instance {
    /// Its change feed.
    pub feed: Feed,
    /// What it brought.
    pub changes: Changes,
    /// Its memory of the product.
    pub slot: Option<Slot>,
    /// Its load in flight.
    pub load: Option<Load>,
    /// Its write that Redis does not know of yet.
    pub write: Option<Write>,
    /// Its relay.
    pub relay: Option<Relay>,
    /// What the node says of itself; `None` while that is not known on the present connection.
    pub node: Option<NodeKey>,
}
