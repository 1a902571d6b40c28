//! The recently changed products and their newest revisions: the floor, below which no copy is kept or served.
//!
//! The map mirrors the outbox: it contains a change from the poll that read it until its row is pruned, and rows are pruned only
//! when Redis reflects them. So an older copy in Redis is detected however far the relay is behind, and so is a load that was in
//! flight when the change was committed.

mod floors;
mod heard;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ahash::RandomState;
use parking_lot::RwLock;

use crate::product::{ProductId, Revision, Version};
pub use floors::Floors;
pub use heard::Heard;
use heard::HeardLog;

/// Generations in the map. A lookup goes through all of them; when there are more, the oldest two are merged.
const GENERATIONS: usize = 64;
/// Changes published by other instances that no poll has read yet. Further ones are dropped: the next poll reads them.
const PUBLISHED: usize = 65_536;

/// The same bound for writes of this instance, which reach it only when the outbox is unreachable for minutes.
const WRITTEN: usize = 262_144;

#[derive(Debug)]
pub struct RecentChanges {
    state: RwLock<State>,
    capacity: usize,
    /// The number of the last applied poll.
    polls: AtomicU64,
    heard: HeardLog,
}

#[derive(Debug, Default)]
struct State {
    /// The oldest first.
    generations: VecDeque<Generation>,
    size: usize,
    /// The newest poll whose changes were dropped.
    dropped: u64,
    /// The number of the last sent poll.
    sent: u64,
    /// Changes written by this instance or published by others, each with the value of `sent` at that time.
    published: HashMap<ProductId, (Revision, u64), RandomState>,
}

#[derive(Debug)]
struct Generation {
    poll: u64,
    /// Shared with the follower of the change feed while it applies them to memory.
    floors: Arc<Floors>,
    truncated_below: Version,
}

/// The number of a sent poll.
#[derive(Clone, Copy, Debug)]
pub struct PollNumber(u64);

/// The state at the start of a load or a write.
#[derive(Clone, Copy, Debug)]
pub struct Began {
    /// The number of the last applied poll.
    polls: u64,
    /// The floor at the start. It is kept here because its change may be pruned before the load ends, while the load may have
    /// read Redis before Redis reflected the change.
    floor: Revision,
}

impl RecentChanges {
    /// `capacity` is the maximum number of changes.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let (state, polls, heard) = (RwLock::default(), AtomicU64::new(0), HeardLog::default());
        Self { state, capacity, polls, heard }
    }

    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Changes from polls; published ones do not count.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state.read().size
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The oldest revision that a copy of `id` may have. An older copy is known to be stale.
    #[must_use]
    pub fn floor(&self, id: ProductId) -> Revision {
        let state = self.state.read();
        let published = state.published.get(&id).map(|(revision, _)| *revision);
        state.floor(id).max(published.unwrap_or(Revision::NONE))
    }

    /// Called at the start of a load or a write of `id`.
    #[must_use]
    pub fn begin(&self, id: ProductId) -> Began {
        let polls = self.polls.load(Ordering::Acquire);
        // Without published changes: they may be wrong, and this floor stays until the end of the load.
        let floor = self.state.read().floor(id);
        Began { polls, floor }
    }

    /// The floor for the result of a load or write that began at `began`.
    #[must_use]
    pub fn floor_since(&self, began: Began, id: ProductId) -> Revision {
        self.floor(id).max(began.floor)
    }

    /// Whether the map still contains every change since `began`. If not, the load took so long that its result cannot be
    /// checked.
    #[must_use]
    pub fn covers(&self, began: Began) -> bool {
        self.state.read().dropped <= began.polls
    }

    /// Adds a change of this instance or one that another instance has published. It counts until a poll that is sent later is
    /// applied: that poll reads the change from the outbox, if it was committed.
    ///
    /// Returns false when too many writes without a poll overflowed the map and were dropped. Then every copy from before this
    /// moment must be treated as stale.
    pub fn publish(&self, id: ProductId, revision: Revision, written_here: bool) -> bool {
        let mut state = self.state.write();
        if !written_here && state.published.len() >= PUBLISHED {
            return true;
        }
        let overflows = state.published.len() >= WRITTEN;
        if overflows {
            state.published.clear();
            state.dropped = state.dropped.max(state.sent);
        }
        let sent = state.sent;
        let newest = state.published.entry(id).or_insert((revision, sent));
        *newest = (revision.max(newest.0), sent);
        !overflows
    }

    /// Records when a change was published, and when memory dropped an older version.
    pub fn record_heard(&self, heard: Heard) {
        let sent = self.state.read().sent;
        self.heard.push(sent, heard);
    }

    /// The changes that were heard of before the poll, and some that were later. Called once for each poll.
    #[must_use]
    pub fn take_heard(&self, poll: PollNumber) -> Vec<Heard> {
        self.heard.take(poll.0)
    }

    /// Called just before a poll is sent.
    #[must_use]
    pub fn poll_is_sent(&self) -> PollNumber {
        let mut state = self.state.write();
        state.sent += 1;
        PollNumber(state.sent)
    }

    /// Drops all changes because there are more than fit. Loads that began before the poll are rejected.
    pub fn overflow(&self, poll: PollNumber) {
        self.state.write().drop_all(poll.0);
        self.polls.store(poll.0, Ordering::Release);
    }

    /// Adds the changes of a poll. Returns false, and adds none, when they do not fit: see [`overflow`](Self::overflow).
    pub fn apply(
        &self,
        poll: PollNumber,
        floors: &Arc<Floors>,
        truncated_below: Option<Version>,
    ) -> bool {
        let mut state = self.state.write();
        if state.size + floors.len() > self.capacity {
            return false;
        }
        if !floors.is_empty() || truncated_below.is_some() {
            state.size += floors.len();
            let truncated_below = truncated_below.unwrap_or_default();
            let floors = Arc::clone(floors);
            state.generations.push_back(Generation { poll: poll.0, floors, truncated_below });
            state.merge_oldest();
        }
        // The others are in the generations, or were never committed.
        state.published.retain(|_, (_, sent)| *sent >= poll.0);
        drop(state);
        self.polls.store(poll.0, Ordering::Release);
        true
    }

    /// The changes that did not fit are applied to Redis. Loads that began before are rejected: they may have read Redis
    /// earlier.
    pub fn overflow_ends(&self, poll: PollNumber) {
        let mut state = self.state.write();
        state.dropped = state.dropped.max(poll.0);
    }

    /// Drops the changes of polls up to this one. The caller ensures that Redis reflects them and that no older copy is left.
    pub fn drop_through(&self, poll: PollNumber) {
        let mut state = self.state.write();
        while let Some(oldest) = state.generations.pop_front_if(|oldest| oldest.poll <= poll.0) {
            state.size -= oldest.floors.len();
            state.dropped = state.dropped.max(oldest.poll);
        }
    }

    /// Drops everything, because the epoch changed. Loads in flight are rejected.
    pub fn reset(&self) {
        let mut state = self.state.write();
        let sent = state.sent;
        state.drop_all(sent);
        state.published.clear();
    }
}

impl State {
    fn floor(&self, id: ProductId) -> Revision {
        let floors = self.generations.iter().map(|generation| generation.floor(id));
        floors.max().unwrap_or(Revision::NONE)
    }

    fn drop_all(&mut self, poll: u64) {
        self.generations.clear();
        self.size = 0;
        self.dropped = self.dropped.max(poll);
    }

    fn merge_oldest(&mut self) {
        if self.generations.len() <= GENERATIONS {
            return;
        }
        let (Some(oldest), Some(next)) =
            (self.generations.pop_front(), self.generations.pop_front())
        else {
            return;
        };
        let apart = oldest.floors.len() + next.floors.len();
        let mut merged = Arc::unwrap_or_clone(oldest.floors);
        merged.merge(Arc::unwrap_or_clone(next.floors));
        self.size -= apart - merged.len();
        let truncated_below = oldest.truncated_below.max(next.truncated_below);
        let floors = Arc::new(merged);
        self.generations.push_front(Generation { poll: next.poll, floors, truncated_below });
    }
}

impl Generation {
    fn floor(&self, id: ProductId) -> Revision {
        self.floors.get(id).max(Revision::live(self.truncated_below))
    }
}

#[cfg(test)]
mod tests;
