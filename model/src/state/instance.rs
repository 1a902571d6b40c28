//! An instance: its memory, and its polls, loads, writes and relay in progress.

use super::{Entry, NodeKey, Revision};
use crate::snapshot::Snapshot;

/// The memory of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    pub entry: Entry,
    /// No gap since the entry was checked.
    pub trusted: bool,
    /// A newer revision was observed.
    pub invalidated: bool,
}

/// Shows whether a load or a write may have missed changes since it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket {
    /// The confirmed floor in RecentChanges at the begin.
    pub floor: Revision,
    /// No gap since the begin.
    pub trusted: bool,
    /// A generation that was added since the begin has been dropped.
    pub outlived_changes: bool,
    /// The proof at the begin. Only the promises use it.
    pub proof: u8,
    /// The scope of the keys in Redis.
    pub scope: u8,
}

/// The source of a load's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum From {
    /// Redis. If the result is rejected, the load tries to take the lease.
    Redis,
    /// Redis, read again under the lease.
    RedisUnderLease,
    /// Postgres, under the lease.
    Fill,
    /// Postgres, without the lease: the last try.
    Postgres,
}

/// The next step of a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// `GET`.
    ReadRedis,
    /// `try_lease.lua`.
    TryLease,
    /// `SELECT`.
    Select,
    /// `fill.lua`.
    Fill(Entry),
    /// `SELECT`, because the lease is held by another load, or Redis does not answer.
    SelectWithoutLease,
    /// `publish.lua`.
    Replace(Entry),
    /// Offers the result to memory.
    Finish(Entry, From),
}

/// An in-flight load. An instance has at most one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Load {
    pub stage: Stage,
    pub ticket: Ticket,
}

/// A write through the API after its commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Write {
    /// The entry was offered to the memory of the instance. Redis is next.
    pub offered: bool,
    pub entry: Entry,
    pub ticket: Ticket,
}

/// The next step of a relay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RelayStage {
    /// A poll, or `supersede.lua`.
    #[default]
    Idle,
    /// Reads the product again.
    Load,
    /// `publish.lua`.
    Replace(Entry),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Relay {
    /// The snapshot up to which it has read the outbox.
    pub cursor: Snapshot,
    /// The change that the node of the product has not applied yet.
    pub pending: Revision,
    pub stage: RelayStage,
    /// The scope of the keys in Redis.
    pub scope: u8,
}

/// The response to a poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Answer {
    /// The current snapshot.
    pub snapshot: Snapshot,
    /// The marker of pruning.
    pub pruned: Snapshot,
    /// The marker of the relay.
    pub relayed: Snapshot,
    pub epoch: u8,
    /// The newest revision in the rows.
    pub newest: Revision,
    /// The highest `seq` in the rows.
    pub seq: u8,
    /// Rows may be missing.
    pub gap: bool,
}

/// The number is the newest commit acknowledged before the poll was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Poll {
    #[default]
    Idle,
    /// The statement is on its way to Postgres.
    Sent(u8),
    /// The response is on its way back.
    Answered(u8, Answer),
}

/// The change feed of an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Feed {
    /// The snapshot of the last poll; `None` before the first.
    pub previous: Option<Snapshot>,
    /// The highest `seq` that was read; only for [`Cursor::Sequence`](crate::protections::Cursor::Sequence).
    pub seq: u8,
    pub poll: Poll,
    /// Trusted copies may not be older than this commit: the newest one acknowledged before the last proof, or observed.
    pub proof: u8,
    /// The epoch in the last response.
    pub epoch: u8,
}

/// The newest generation of RecentChanges in which the product changed. Older ones are dropped no later, and have lower
/// revisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation {
    pub revision: Revision,
    /// The snapshot of its poll.
    pub snapshot: Snapshot,
    /// The in-flight load began before that poll completed.
    pub during_load: bool,
    /// The write in progress began before that poll completed.
    pub during_write: bool,
}

/// RecentChanges: the floor of the product.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Changes {
    /// Returned by polls.
    pub generation: Option<Generation>,
    /// Observed since the last poll was sent.
    pub pending: Revision,
    /// Observed before the last poll was sent, and dropped when it completes.
    pub polled: Revision,
    /// Entries of Redis that were known before this are not current: later changes overflowed. 0: no overflow.
    pub complete_since: u8,
    /// The snapshot of the poll that overflowed. When it is relayed, Redis reflects those changes.
    pub overflowed: Snapshot,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instance {
    pub feed: Feed,
    pub changes: Changes,
    pub slot: Option<Slot>,
    pub load: Option<Load>,
    pub write: Option<Write>,
    pub relay: Option<Relay>,
    /// The key that the Redis node holds; `None` until the instance has read it on the current connection.
    pub node: Option<NodeKey>,
}
