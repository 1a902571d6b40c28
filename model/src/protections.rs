//! The mechanisms that protect the promises. Each can be turned off alone: if nothing fails without it, it is not tested, or
//! not needed.

/// How a poll selects the rows that earlier polls have not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cursor {
    /// `xid >= previous.xmax OR xid = ANY(previous.xip)`.
    Snapshot,
    /// `xid >= previous.xmax`.
    WithoutXip,
    /// `seq > last`.
    Sequence,
}

/// Without any one of these the checker finds a counterexample.
#[derive(Clone, Copy, Debug)]
pub struct Protections {
    /// Polls read every committed row exactly once, in whatever order transactions commit.
    pub cursor: Cursor,
    /// `newer_or_same` in `publish.lua` and `fill.lua`: Redis keeps the newer entry.
    pub redis_compares: bool,
    /// Memory keeps the newer entry.
    pub slot_compares: bool,
    /// Memory rejects a result below the newest recent change.
    pub floor: bool,
    /// Memory rejects a result below the newest recent change at the begin of the load.
    pub floor_of_begin: bool,
    /// Memory rejects a result if a generation was dropped that was added after the load began.
    pub load_ordinal: bool,
    /// The same for a write through this instance.
    pub write_ordinal: bool,
    /// A write through this instance is a floor until a poll returns it.
    pub own_write_floor: bool,
    /// An observed change stops being a floor when a poll that was sent later completes.
    pub pending_ends: bool,
    /// An observed change stays a floor until a poll completes that was sent later, not only one that completes later.
    pub pending_waits: bool,
    /// A gap also invalidates the results of in-flight loads and writes.
    pub gap_invalidates_loads: bool,
    /// `fill.lua`: only the holder of the lease fills.
    pub fill_checks_lease: bool,
    /// `publish.lua` and `supersede.lua`: every write breaks the lease.
    pub writes_break_lease: bool,
    /// A write replaces an entry in Redis, and stores nothing if there is none.
    pub writes_only_replace: bool,
    /// Committed changes are relayed to Redis.
    pub relay: bool,
    /// A poll compares the pruned marker with its cursor.
    pub gap_check: bool,
    /// Rows are pruned only after they were relayed.
    pub prune_waits: bool,
    /// `relayed` advances only after the node of every change has answered.
    pub relayed_waits: bool,
    /// The markers never go back.
    pub markers_grow: bool,
    /// The proof is of the moment at which the poll was sent.
    pub proof_when_sent: bool,
    /// After a loss of Redis was detected, entries known before are not current.
    pub suspects: bool,
    /// Whether such an entry was known for less than `change_retention` is judged when it is read, not when the loss was
    /// detected.
    pub suspects_age: bool,
    /// The key in the node holds the moment of the detection, not only the replication id.
    pub key_has_since: bool,
    /// After an overflow, entries known before are not current.
    pub overflow_suspects: bool,
    /// When Redis reflects the changes that overflowed, in-flight loads are rejected: they may have read an entry before.
    pub overflow_ends_with_ordinal: bool,
    /// The first poll invalidates everything that was loaded before its response arrived.
    pub first_poll_invalidates: bool,
    /// An instance that finds another timeline raises the epoch.
    pub epoch: bool,
    /// The epoch is part of every key in Redis.
    pub scope: bool,
    /// Loads, writes and the relay keep the scope in which they began.
    pub scope_of_begin: bool,
    /// The markers advance only in the epoch of the relay, and a new epoch resets them.
    pub markers_of_epoch: bool,
}

impl Protections {
    pub const ALL: Self = Self {
        cursor: Cursor::Snapshot,
        redis_compares: true,
        slot_compares: true,
        floor: true,
        floor_of_begin: true,
        load_ordinal: true,
        write_ordinal: true,
        own_write_floor: true,
        pending_ends: true,
        pending_waits: true,
        gap_invalidates_loads: true,
        fill_checks_lease: true,
        writes_break_lease: true,
        writes_only_replace: true,
        relay: true,
        gap_check: true,
        prune_waits: true,
        relayed_waits: true,
        markers_grow: true,
        proof_when_sent: true,
        suspects: true,
        suspects_age: true,
        key_has_since: true,
        overflow_suspects: true,
        overflow_ends_with_ordinal: true,
        first_poll_invalidates: true,
        epoch: true,
        scope: true,
        scope_of_begin: true,
        markers_of_epoch: true,
    };
}
