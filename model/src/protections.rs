//! What protects the promises, each to be turned off alone: a protection that nothing fails without is not
//! tested, or not needed.

/// What protects the promises. Without any one of them the checker finds how one is broken.
#[derive(Clone, Copy, Debug)]
pub struct Protections {
    /// `newer_or_same` in `publish.lua` and `fill.lua`: Redis keeps what is newer.
    pub redis_compares: bool,
    /// `HotCache::keep`: memory keeps what is newer.
    pub slot_compares: bool,
    /// `LoadTicket::finish`: a load hears of what is committed meanwhile.
    pub flight_floor: bool,
    /// A write hears of what is committed after it, as a load does, until it is in its own memory.
    pub write_floor: bool,
    /// `fill.lua`: only the holder of the lease fills.
    pub fill_checks_lease: bool,
    /// `publish.lua` and `supersede.lua`: every write breaks the lease.
    pub writes_break_lease: bool,
    /// A write replaces what Redis holds, and leaves an empty place empty. Once the lease is broken and the
    /// entry gone, nothing there could tell a late writer that something newer was committed.
    pub writes_only_replace: bool,
    /// `Relay::step`.
    pub relay: bool,
    /// `Follower::poll`: an entry of another number than the next, or an end before the cursor.
    pub gap_detection: bool,
    /// `Follower::restart`: void is what was checked before the end of the stream was *known*, not before it was
    /// asked for: changes in between are never heard.
    pub void_after_restart: bool,
    /// `Catalog::replay`.
    pub replay: bool,
    /// An instance replays when no step of its relay spans the failover, because what that step did may be
    /// lost, and is committed only after the replay.
    pub replay_after_relay: bool,
    /// An instance replays when it starts: the one it replaces may have had to.
    pub replay_at_start: bool,
    /// The absence of a product is labelled with the version that was deleted, not with the newest that
    /// happened to be heard of.
    pub exact_tombstones: bool,
    /// An instance that asks whether all has been relayed sees also what a relay has claimed and not done.
    pub look_sees_claimed: bool,
    /// A poll of the stream proves what was known to be relayed before it, not when its answer came.
    pub looked_before_poll: bool,
    /// The clock of the new primary is not behind, so that new entries of the stream are behind every cursor.
    pub clock_goes_on: bool,
}

impl Protections {
    /// All of them.
    pub const ALL: Self = Self {
        redis_compares: true,
        slot_compares: true,
        flight_floor: true,
        write_floor: true,
        fill_checks_lease: true,
        writes_break_lease: true,
        writes_only_replace: true,
        relay: true,
        gap_detection: true,
        void_after_restart: true,
        replay: true,
        replay_after_relay: true,
        replay_at_start: true,
        exact_tombstones: true,
        look_sees_claimed: true,
        looked_before_poll: true,
        clock_goes_on: true,
    };
}
