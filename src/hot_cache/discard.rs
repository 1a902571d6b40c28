//! Discards an entry that was found to be wrong.

use std::time::Duration;

use super::{Floor, HotCache, HotEntry};
use crate::entry::{Entry, Ttl};
use crate::moment::Moment;
use crate::product::{ProductId, Revision, Version};

impl HotCache {
    /// Discards the copy of `id`, unless memory holds something else than `wrong` by now.
    ///
    /// The slot gets an empty entry that answers no read and that the result of any load replaces. Invalidating the wrong entry
    /// would not do: the right one may have an older version. Without a slot, mini-moka would have a key too many.
    pub fn discard(&self, id: ProductId, wrong: &Entry) {
        let stripe = self.slots.stripe(id);
        if self.slots.peek(id).is_none_or(|held| !held.entry.is_same_as(wrong)) {
            return;
        }
        let ttl = Ttl { soft: Duration::ZERO, hard: Duration::ZERO };
        let entry = Entry::tombstone(Version(0), Moment::NEVER, ttl);
        let floor = Floor::at(Revision::live(Version(1)));
        self.slots.replace(id, HotEntry { entry, checked_at: Moment::NEVER, floor }, &stripe);
    }
}
