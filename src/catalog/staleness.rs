//! Staleness as lived: how long after the commit of a change this instance could still serve an older version.
//!
//! The time of a commit is bounded by two clocks, each of which is compared with itself only. By the clock of PostgreSQL the
//! change was made some time before the poll that returned it, and it was committed after that. By the monotonic clock of this
//! machine it was committed after the previous poll was sent, which did not see it. The later of the two is taken, so the
//! figures are upper bounds: they contain the way of the poll to PostgreSQL, and of a long transaction at most one poll interval.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use ahash::RandomState;

use crate::metrics::{HeardBy, Metrics, Staleness};
use crate::moment::Moment;
use crate::postgres::{Ages, Changes};
use crate::product::{ProductId, Revision};
use crate::recent_changes::Heard;

/// The new changes of a poll, and how this instance heard of those that it knew before.
pub(super) struct HeardChanges {
    ages: Ages,
    asked: Moment,
    last_asked: Moment,
    known: HashMap<ProductId, Vec<First>, RandomState>,
}

/// The first that was heard of a revision or of a newer one of the same product.
#[derive(Clone, Copy)]
struct First {
    revision: Revision,
    at: Moment,
    by: HeardBy,
    /// When memory dropped an older version because of one of them.
    dropped_at: Option<Moment>,
}

impl HeardChanges {
    /// Called before the changes are applied. `None` for the first poll: what was committed before it concerns no reader.
    pub(super) fn of(
        heard: Vec<Heard>,
        changes: &mut Changes,
        last_asked: Option<Moment>,
    ) -> Option<Self> {
        let ages = std::mem::take(&mut changes.ages);
        let last_asked = last_asked.filter(|_| !ages.single.is_empty() || !ages.bulk.is_empty())?;
        Some(Self { ages, asked: changes.asked, last_asked, known: firsts(heard) })
    }

    /// `applied_at`: when the floors were raised, from which moment on older entries of Redis are refused. `dropped`: the products of
    /// which memory held an older, valid version until then.
    pub(super) fn record(
        &self,
        metrics: &Metrics,
        applied_at: Moment,
        dropped: &[(ProductId, Moment)],
    ) {
        let dropped: HashMap<ProductId, Moment, RandomState> = dropped.iter().copied().collect();
        for (id, revision, age) in &self.ages.single {
            let committed = self.committed(*age);
            let known = self.first(*id, *revision);
            let by = known.map_or(HeardBy::Poll, |first| first.by);
            let at = known.map_or(applied_at, |first| first.at.min(applied_at));
            metrics.staleness.record(Staleness::of_redis(by), at.since(committed));
            let dropped_at = known.and_then(|first| first.dropped_at);
            if let Some(at) = dropped_at.or_else(|| dropped.get(id).copied()) {
                metrics.staleness.record(Staleness::of_hot(by), at.since(committed));
            }
        }
        self.record_bulk(metrics, applied_at, &dropped);
    }

    fn record_bulk(
        &self,
        metrics: &Metrics,
        applied_at: Moment,
        dropped: &HashMap<ProductId, Moment, RandomState>,
    ) {
        let mut oldest = Duration::ZERO;
        for (age, count) in &self.ages.bulk {
            let stale = applied_at.since(self.committed(*age));
            metrics.staleness.record_many(Staleness::RedisPoll, stale, *count as u64);
            oldest = oldest.max(*age);
        }
        if self.ages.bulk.is_empty() {
            return;
        }
        // Which of the rows contained the product is not kept; the age of the oldest row is at least that of each other.
        let committed = self.committed(oldest);
        let single: HashSet<ProductId> = self.ages.single.iter().map(|(id, ..)| *id).collect();
        for (_, at) in dropped.iter().filter(|(id, _)| !single.contains(id)) {
            metrics.staleness.record(Staleness::HotPoll, at.since(committed));
        }
    }

    fn first(&self, id: ProductId, revision: Revision) -> Option<&First> {
        let firsts = self.known.get(&id)?;
        firsts.get(firsts.partition_point(|first| first.revision < revision))
    }

    /// The change was not committed before this moment.
    fn committed(&self, age: Duration) -> Moment {
        self.asked.before(age).max(self.last_asked)
    }
}

/// Of each product, ascending by revision.
fn firsts(heard: Vec<Heard>) -> HashMap<ProductId, Vec<First>, RandomState> {
    let mut known: HashMap<ProductId, Vec<First>, RandomState> = HashMap::default();
    for Heard { change, written_here, at, dropped_at } in heard {
        let by = if written_here { HeardBy::Write } else { HeardBy::Hint };
        let first = First { revision: change.revision, at, by, dropped_at };
        known.entry(change.id).or_default().push(first);
    }
    for firsts in known.values_mut() {
        firsts.sort_unstable_by_key(|first| first.revision);
        let mut next: Option<First> = None;
        for first in firsts.iter_mut().rev() {
            if let Some(next) = next {
                if next.at < first.at {
                    (first.at, first.by) = (next.at, next.by);
                }
                let dropped = [first.dropped_at, next.dropped_at];
                first.dropped_at = dropped.into_iter().flatten().min();
            }
            next = Some(*first);
        }
    }
    known
}
