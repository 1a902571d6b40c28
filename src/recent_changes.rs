//! Which products changed lately, and to which revision: the floor below which no copy is kept or served.
//!
//! It mirrors the outbox: a change is here from the poll that brought it until the row has been pruned, and rows are pruned only when
//! Redis reflects them. So a copy in Redis that is older than a change is found out, however far the relay is behind; and so
//! is a load that was under way when the change was committed.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};

use ahash::RandomState;
use parking_lot::RwLock;

use crate::product::{ProductId, Revision, Version};

/// Generations that are kept apart. A look goes through all of them; older ones are merged.
const GENERATIONS: usize = 64;
/// Changes that were published and that no poll has confirmed yet. More are not taken: the next poll brings them.
const PUBLISHED: usize = 65_536;

/// The same of what was written here. So many are written only while the outbox cannot be read for minutes.
const WRITTEN: usize = 262_144;

/// The newest revision of each product, about 40 bytes for each.
pub type Floors = HashMap<ProductId, Revision, RandomState>;

/// The changes of the last minute or so, of one instance.
#[derive(Debug)]
pub struct RecentChanges {
    state: RwLock<State>,
    capacity: usize,
    /// Polls that have been applied.
    polls: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// The oldest first.
    generations: VecDeque<Generation>,
    size: usize,
    /// The newest poll whose changes have been dropped.
    dropped: u64,
    /// Polls that have been sent.
    sent: u64,
    /// Written here or heard of from others, with the number of polls that had been sent then.
    published: HashMap<ProductId, (Revision, u64), RandomState>,
}

#[derive(Debug)]
struct Generation {
    poll: u64,
    /// In the order of the reader's snapshots: dropped when it is below what has been pruned.
    floors: Floors,
    truncated_below: Version,
}

/// The number of a poll that was sent.
#[derive(Clone, Copy, Debug)]
pub struct PollNumber(u64);

/// What was known when a load or a write began.
#[derive(Clone, Copy, Debug)]
pub struct Began {
    /// Polls that had been applied.
    polls: u64,
    /// The floor then. Its change may be pruned before the load ends, which has read Redis before that was told.
    floor: Revision,
}

impl RecentChanges {
    /// Room for so many changes.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { state: RwLock::default(), capacity, polls: AtomicU64::new(0) }
    }

    /// How many changes it has room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state.read().size
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The oldest revision that a copy of `id` may have: what is older is known to be out of date.
    #[must_use]
    pub fn floor(&self, id: ProductId) -> Revision {
        let state = self.state.read();
        let published = state.published.get(&id).map(|(revision, _)| *revision);
        state.floor(id).max(published.unwrap_or(Revision::NONE))
    }

    /// A load or a write of `id` begins.
    #[must_use]
    pub fn begin(&self, id: ProductId) -> Began {
        let polls = self.polls.load(Ordering::Acquire);
        // Without what is only published: that may be wrong, and the floor lasts as long as the load.
        let floor = self.state.read().floor(id);
        Began { polls, floor }
    }

    /// The floor of what began then.
    #[must_use]
    pub fn floor_since(&self, began: Began, id: ProductId) -> Revision {
        self.floor(id).max(began.floor)
    }

    /// Whether every change since then is still here. Otherwise it took too long to tell whether its result is current.
    #[must_use]
    pub fn covers(&self, began: Began) -> bool {
        self.state.read().dropped <= began.polls
    }

    /// Takes in a change that was written here, or that another instance has published. It counts until a poll that is sent
    /// later has been applied: that one brings the change itself, if it was committed.
    ///
    /// Returns false when there have been so many writes without a poll that they are forgotten: then every copy from before this
    /// moment must be taken for out of date.
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

    /// A poll is about to be sent.
    #[must_use]
    pub fn poll_is_sent(&self) -> PollNumber {
        let mut state = self.state.write();
        state.sent += 1;
        PollNumber(state.sent)
    }

    /// There are more changes than fit: none is kept, and what began before the poll is rejected.
    pub fn overflow(&self, poll: PollNumber) {
        self.state.write().forget_all(poll.0);
        self.polls.store(poll.0, Ordering::Release);
    }

    /// Takes in what a poll brought. Returns false when there is no room for it: see [`overflow`](Self::overflow).
    pub fn apply(
        &self,
        poll: PollNumber,
        floors: Floors,
        truncated_below: Option<Version>,
    ) -> bool {
        let mut state = self.state.write();
        if state.size + floors.len() > self.capacity {
            return false;
        }
        if !floors.is_empty() || truncated_below.is_some() {
            state.size += floors.len();
            let truncated_below = truncated_below.unwrap_or_default();
            state.generations.push_back(Generation { poll: poll.0, floors, truncated_below });
            state.merge_oldest();
        }
        // In the generations now, or never committed.
        state.published.retain(|_, (_, sent)| *sent >= poll.0);
        drop(state);
        self.polls.store(poll.0, Ordering::Release);
        true
    }

    /// What there was too much of is applied to Redis by now. What began before is rejected: it may have read Redis before that.
    pub fn overflow_ends(&self, poll: PollNumber) {
        let mut state = self.state.write();
        state.dropped = state.dropped.max(poll.0);
    }

    /// Forgets what polls up to this one brought: Redis reflects it, and no copy is older.
    pub fn drop_through(&self, poll: PollNumber) {
        let mut state = self.state.write();
        while let Some(oldest) = state.generations.pop_front_if(|oldest| oldest.poll <= poll.0) {
            state.size -= oldest.floors.len();
            state.dropped = state.dropped.max(oldest.poll);
        }
    }

    /// Forgets everything: PostgreSQL is another. Loads that are under way are rejected.
    pub fn reset(&self) {
        let mut state = self.state.write();
        let sent = state.sent;
        state.forget_all(sent);
        state.published.clear();
    }
}

impl State {
    fn floor(&self, id: ProductId) -> Revision {
        let floors = self.generations.iter().map(|generation| generation.floor(id));
        floors.max().unwrap_or(Revision::NONE)
    }

    fn forget_all(&mut self, poll: u64) {
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
        let (mut larger, smaller) = match oldest.floors.len() > next.floors.len() {
            true => (oldest.floors, next.floors),
            false => (next.floors, oldest.floors),
        };
        for (id, revision) in smaller {
            let floor = larger.entry(id).or_insert(revision);
            *floor = revision.max(*floor);
        }
        self.size -= apart - larger.len();
        let truncated_below = oldest.truncated_below.max(next.truncated_below);
        let merged = Generation { poll: next.poll, floors: larger, truncated_below };
        self.generations.push_front(merged);
    }
}

impl Generation {
    fn floor(&self, id: ProductId) -> Revision {
        let changed = self.floors.get(&id).copied().unwrap_or(Revision::NONE);
        changed.max(Revision::live(self.truncated_below))
    }
}

#[cfg(test)]
mod tests;
