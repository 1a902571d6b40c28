//! What is served, marked stale, when nothing better can be had.

use super::singleflight::LoadFailure;
use super::{Answer, Catalog, Error};
use crate::entry::{Entry, Freshness};
use crate::hot_cache::HotEntry;
use crate::metrics::ServedBy;
use crate::moment::Moment;
use crate::product::{ProductId, Revision};

impl Catalog {
    /// Whether there is something stale for a caller when the load fails; the refresher is in no need of anything.
    pub(super) fn may_fall_back(&self, id: ProductId, freshness: Freshness) -> bool {
        let usable =
            |held: &HotEntry| !held.is_invalidated() && !held.entry.past_hard(Moment::now());
        match freshness {
            Freshness::Cached => self.hot.peek(id).is_some_and(|held| usable(&held)),
            Freshness::NotDue { .. } => true,
            Freshness::MinVersion { .. } | Freshness::KnownSince(_) => false,
        }
    }

    /// What memory holds, while Postgres answers nobody's questions: to wait for it would only be slower.
    pub(super) fn unproven(&self, id: ProductId, freshness: Freshness) -> Option<Answer> {
        if freshness != Freshness::Cached || !self.feed.is_unreachable() {
            return None;
        }
        let held = self.hot.peek(id)?;
        let usable = self.hot.has_followed(&held)
            && !held.is_invalidated()
            && !held.entry.past_hard(Moment::now());
        usable.then(|| self.stale(held.entry.clone(), ServedBy::Hot))
    }

    /// With Postgres down or at its limit, what a cache still holds is better than nothing, if the caller did not
    /// ask for more and it is within `stale_if_error`.
    pub(super) fn stale_or(
        &self,
        id: ProductId,
        freshness: Freshness,
        failed: &LoadFailure,
    ) -> Result<Answer, Error> {
        let excusable = matches!(failed.error, Error::Unavailable(_) | Error::OverBudget(_));
        let held = self.hot.peek(id);
        let invalidated = held.as_ref().map_or(Revision::NONE, |held| held.floor());
        let floor = self.recent.floor(id).max(invalidated);
        let in_memory = held.map(|held| (held.entry.clone(), ServedBy::Hot));
        let in_redis = failed.seen.clone().map(|entry| (entry, ServedBy::Redis));
        let usable = |(entry, _): &(Entry, ServedBy)| {
            entry.revision() >= floor && !entry.past_hard(Moment::now())
        };
        // Of two that are as new, the one from Redis may have been confirmed since.
        let newest = in_memory.into_iter().chain(in_redis).filter(usable);
        match newest.max_by_key(|(entry, _)| entry.revision()) {
            Some((entry, from)) if excusable && freshness == Freshness::Cached => {
                Ok(self.stale(entry, from))
            }
            _ => Err(failed.error.clone()),
        }
    }

    pub(super) fn stale(&self, entry: Entry, from: ServedBy) -> Answer {
        self.metrics.reads.inc(from);
        self.metrics.served_stale.inc(());
        Answer { entry, from, stale: true }
    }
}
