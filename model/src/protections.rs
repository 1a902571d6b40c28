//! What protects the promises, each to be turned off alone: a protection that nothing fails without is not
//! tested, or not needed.

/// How a poll tells which rows it has not seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cursor {
    /// `xid >= previous.xmax OR xid = ANY(previous.xip)`.
    Snapshot,
    /// `xid >= previous.xmax`.
    WithoutXip,
    /// `seq > last`.
    Sequence,
}

/// What protects the promises. Without any one of them the checker finds how one is broken.
#[derive(Clone, Copy, Debug)]
pub struct Protections {
    /// Polls see every committed row exactly once, in whatever order transactions commit.
    pub cursor: Cursor,
    /// `newer_or_same` in `publish.lua` and `fill.lua`: Redis keeps what is newer.
    pub redis_compares: bool,
    /// Memory keeps what is newer.
    pub slot_compares: bool,
    /// A result below the newest recent change is not kept.
    pub floor: bool,
    /// A result below what was the newest recent change when the load began is not kept.
    pub floor_of_begin: bool,
    /// A result is not kept if a generation was dropped that came since the load began.
    pub load_ordinal: bool,
    /// The same of an own write.
    pub write_ordinal: bool,
    /// An own write is a floor until a poll has brought it.
    pub own_write_floor: bool,
    /// What was heard of stops being a floor when a poll that was sent later completes.
    pub pending_ends: bool,
    /// What was heard of stays a floor until a poll completes that was sent later, not only one that completes later.
    pub pending_waits: bool,
    /// What comes back with a gap voids also what is still being loaded.
    pub gap_voids_loads: bool,
    /// `fill.lua`: only the holder of the lease fills.
    pub fill_checks_lease: bool,
    /// `publish.lua` and `supersede.lua`: every write breaks the lease.
    pub writes_break_lease: bool,
    /// A write replaces what Redis holds, and leaves an empty place empty.
    pub writes_only_replace: bool,
    /// What is committed is relayed to Redis.
    pub relay: bool,
    /// A poll compares the pruned marker with its cursor.
    pub gap_check: bool,
    /// Rows are pruned only when relayed.
    pub prune_waits: bool,
    /// `relayed` advances only when the node of every change has answered.
    pub relayed_waits: bool,
    /// The markers never go back.
    pub markers_grow: bool,
    /// The proof is of the moment when the poll was sent.
    pub proof_when_sent: bool,
    /// What was known before a loss of Redis was found out is not current.
    pub suspects: bool,
    /// That it was known for less than `change_retention` is judged when it is read, not when the loss was found out.
    pub suspects_age: bool,
    /// The key in the node says since when, not only for which replication id.
    pub key_says_since: bool,
    /// After an overflow what was known before is not current.
    pub overflow_suspects: bool,
    /// When Redis reflects what overflowed, loads under way are rejected: they may have read it before.
    pub overflow_ends_with_ordinal: bool,
    /// The first poll voids what was loaded until it arrived.
    pub first_poll_voids: bool,
    /// An instance that finds another timeline raises the epoch.
    pub epoch: bool,
    /// The epoch is part of every key in Redis.
    pub scope: bool,
    /// What is under way keeps the scope in which it began.
    pub scope_of_begin: bool,
    /// The markers advance only in the epoch of the relay, and a new epoch sets them anew.
    pub markers_of_epoch: bool,
}

impl Protections {
    /// All of them.
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
        gap_voids_loads: true,
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
        key_says_since: true,
        overflow_suspects: true,
        overflow_ends_with_ordinal: true,
        first_poll_voids: true,
        epoch: true,
        scope: true,
        scope_of_begin: true,
        markers_of_epoch: true,
    };
}
