//! Stale answers: what is served when the outbox is unreachable or a load has failed.

use super::singleflight::LoadFailure;
use super::verdict::{Verdict, judge};
use super::{Answer, Catalog, Error};
use crate::entry::{Entry, Freshness};
use crate::hot_cache::{HotEntry, Trust};
use crate::hot_keys::Source;
use crate::metrics::ServedBy;
use crate::moment::Moment;
use crate::product::{ProductId, Revision};

impl Catalog {
    /// The verdict on what memory holds. Its floor is in the entry, so no read takes the lock of the recent changes.
    #[inline]
    pub(super) fn judge_hot(&self, held: &HotEntry, freshness: &Freshness, now: Moment) -> Verdict {
        judge(&held.entry, freshness, held.floor(), self.hot.trust(held, now), now)
    }

    /// The verdict on what Redis holds. `floor` is the load's.
    pub(super) fn judge_redis(
        &self,
        entry: &Entry,
        freshness: &Freshness,
        floor: Revision,
    ) -> Verdict {
        let confirmed = !entry.is_suspect() && self.is_confirmed(entry);
        let trust = if confirmed { Trust::Confirmed } else { Trust::Unconfirmed };
        judge(entry, freshness, floor, trust, Moment::now())
    }

    /// Whether a caller would get a stale answer if its load failed. The refresher needs none.
    pub(super) fn has_fallback(&self, id: ProductId, freshness: Freshness) -> bool {
        let usable = |held| self.judge_hot(&held, &freshness, Moment::now()).answers_failed_load();
        match freshness {
            Freshness::Cached => self.hot.peek(id).is_some_and(usable),
            Freshness::NotDue { .. } => true,
            Freshness::MinVersion { .. } | Freshness::KnownSince(_) => false,
        }
    }

    /// What memory holds, while the outbox is unreachable: a load would most likely fail too, and only later.
    pub(super) fn unconfirmed(&self, id: ProductId, freshness: Freshness) -> Option<Answer> {
        if !self.feed.is_unreachable() {
            return None;
        }
        let held = self.hot.peek(id)?;
        let verdict = self.judge_hot(&held, &freshness, Moment::now());
        (verdict == Verdict::Unconfirmed).then(|| self.stale(id, held.entry, ServedBy::Hot))
    }

    /// The newest copy that a cache holds, if `failed` is an outage or overload and the caller accepts a stale answer.
    pub(super) fn stale_or(
        &self,
        id: ProductId,
        freshness: Freshness,
        failed: &LoadFailure,
    ) -> Result<Answer, Error> {
        let outage = matches!(failed.error, Error::Unavailable(_) | Error::OverBudget(_));
        if !outage || freshness != Freshness::Cached {
            return Err(failed.error.clone());
        }
        let held = self.hot.peek(id);
        let invalidated = held.as_ref().map_or(Revision::NONE, HotEntry::floor);
        let floor = self.recent.floor(id).max(invalidated);
        let now = Moment::now();
        let in_memory = held.map(|held| (self.hot.trust(&held, now), held.entry, ServedBy::Hot));
        let in_redis = failed.seen.clone().map(|entry| (Trust::Suspect, entry, ServedBy::Redis));
        let usable = |(trust, entry, _): &(Trust, Entry, ServedBy)| {
            judge(entry, &freshness, floor, *trust, now).answers_failed_load()
        };
        // Of two copies of one revision the one of Redis is taken: another instance may have confirmed it since.
        let newest = in_memory.into_iter().chain(in_redis).filter(usable);
        newest
            .max_by_key(|(_, entry, _)| entry.revision())
            .map(|(_, entry, from)| self.stale(id, entry, from))
            .ok_or_else(|| failed.error.clone())
    }

    /// Counts an answer that [`get_hot`](Self::get_hot) did not give.
    pub(super) fn count_answer(&self, id: ProductId, from: ServedBy) {
        self.metrics.reads.inc(from);
        match from {
            ServedBy::Hot => {}
            ServedBy::Redis => self.hot_keys.record_cold(id, Source::Redis),
            ServedBy::Postgres => self.hot_keys.record_cold(id, Source::Postgres),
        }
    }

    pub(super) fn stale(&self, id: ProductId, entry: Entry, from: ServedBy) -> Answer {
        self.count_answer(id, from);
        self.metrics.served_stale.inc(());
        Answer { entry, from, stale: true, collapsed: false }
    }
}
