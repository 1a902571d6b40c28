//! Staleness as lived: how long after the commit of a change this instance could still serve an older version.
//!
//! The time of a commit is bounded by two clocks, each of which is compared with itself only. By the clock of PostgreSQL the
//! change was made some time before the poll that returned it, and it was committed after that. By the monotonic clock of this
//! machine it was committed after the previous poll was sent, which did not see it. The later of the two is taken, so the
//! figures are upper bounds: they contain the way of the poll to PostgreSQL, and of a long transaction at most one poll interval.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use ahash::RandomState;

use super::Catalog;
use crate::metrics::{HeardBy, Metrics, Staleness};
use crate::moment::Moment;
use crate::postgres::{Ages, Changes};
use crate::product::ProductId;
use crate::recent_changes::Published;

/// The new changes of a poll, and how this instance heard of those that it knew before.
pub(super) struct HeardChanges {
    ages: Ages,
    asked: Moment,
    last_asked: Moment,
    published: HashMap<ProductId, Published, RandomState>,
}

impl HeardChanges {
    /// Called before the changes are applied. `None` for the first poll: what was committed before it concerns no reader.
    pub(super) fn of(
        catalog: &Catalog,
        changes: &mut Changes,
        last_asked: Option<Moment>,
    ) -> Option<Self> {
        let ages = std::mem::take(&mut changes.ages);
        let last_asked = last_asked.filter(|_| !ages.single.is_empty() || !ages.bulk.is_empty())?;
        let published = catalog.recent.published(ages.single.iter().map(|(id, ..)| *id));
        Some(Self { ages, asked: changes.asked, last_asked, published })
    }

    /// `applied_at`: when the floors were raised, from which moment on older entries of Redis are refused. `dropped`: the products of
    /// which memory held an older version until then.
    pub(super) fn record(
        &self,
        metrics: &Metrics,
        applied_at: Moment,
        dropped: &[(ProductId, Moment)],
    ) {
        let dropped: HashMap<ProductId, Moment, RandomState> = dropped.iter().copied().collect();
        let of_single: HashSet<ProductId> = self.ages.single.iter().map(|(id, ..)| *id).collect();
        for (id, revision, age) in &self.ages.single {
            let committed = self.committed(*age);
            let known = self.published.get(id).filter(|known| known.revision >= *revision);
            let by = match known {
                None => HeardBy::Poll,
                Some(known) if known.written_here => HeardBy::Write,
                Some(_) => HeardBy::Hint,
            };
            let heard = known.map_or(applied_at, |known| known.heard_at.min(applied_at));
            metrics.staleness.record(Staleness::of_redis(by), heard.since(committed));
            if let Some(at) = known.and_then(|known| known.dropped_at).or(dropped.get(id).copied())
            {
                metrics.staleness.record(Staleness::of_hot(by), at.since(committed));
            }
        }
        let mut oldest = Duration::ZERO;
        for (age, count) in &self.ages.bulk {
            let stale = applied_at.since(self.committed(*age));
            metrics.staleness.record_many(Staleness::RedisPoll, stale, *count as u64);
            oldest = oldest.max(*age);
        }
        if !self.ages.bulk.is_empty() {
            // Of bulk jobs only the oldest change is known, by an age that is at least that of each other.
            let committed = self.committed(oldest);
            for (_, at) in dropped.iter().filter(|(id, _)| !of_single.contains(id)) {
                metrics.staleness.record(Staleness::HotPoll, at.since(committed));
            }
        }
    }

    /// The change was not committed before this moment.
    fn committed(&self, age: Duration) -> Moment {
        self.asked.before(age).max(self.last_asked)
    }
}
