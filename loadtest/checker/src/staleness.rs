//! How long after a commit an instance still served the older state.
//!
//! Counted per pair of change and instance, not per read: otherwise a product that is read a thousand times a second would
//! improve the percentiles. A pair counts only if the product was read through the instance within a second after the
//! commit, so that something is known about it.

use std::collections::HashMap;

use crate::history::{Kind, Micros, Read, Tier};
use crate::timeline::{Step, Timeline};

/// A pair counts if a read was sent within this time after the commit.
const OBSERVED_WITHIN: Micros = 1_000_000;
const TIERS: usize = 3;

/// The moment from which time counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Since {
    /// The commit was confirmed to the writer.
    Confirmed,
    /// The row was written, before the commit: the time is an upper bound.
    Written,
}

impl Since {
    fn of(self, step: &Step) -> Micros {
        match self {
            Self::Confirmed => step.committed,
            Self::Written => step.written,
        }
    }
}

/// The longest time that an instance served the older state: from any tier, and from each.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pair {
    observed: bool,
    longest: Micros,
    by_tier: [Micros; TIERS],
}

/// All pairs, by moment and by whether the write was an UpdateProduct.
#[derive(Clone, Debug, Default)]
pub struct Staleness {
    pairs: HashMap<(Since, bool), Vec<Pair>>,
}

/// A line of the table. Times are over all pairs, 0 for one in which no older state was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub pairs: usize,
    /// Pairs in which the older state was served after the commit.
    pub stale: usize,
    pub p50: Micros,
    pub p99: Micros,
    pub p999: Micros,
    pub max: Micros,
}

impl Staleness {
    /// Of one kind of write, and of one tier or any.
    #[must_use]
    pub fn row(&self, since: Since, kind: Kind, tier: Option<Tier>) -> Row {
        let pairs = self.pairs.get(&(since, kind == Kind::Api)).map_or(&[][..], Vec::as_slice);
        let time = |pair: &Pair| match tier {
            None => Some(pair.longest),
            Some(tier) => pair.by_tier.get(tier as usize).copied(),
        };
        let mut times: Vec<Micros> = pairs.iter().filter_map(time).collect();
        times.sort_unstable();
        Row {
            pairs: times.len(),
            stale: times.iter().filter(|time| **time > 0).count(),
            p50: percentile(&times, 0.5),
            p99: percentile(&times, 0.99),
            p999: percentile(&times, 0.999),
            max: times.last().copied().unwrap_or(0),
        }
    }

    /// The longest of all, since the confirmation of the commit.
    #[must_use]
    pub fn max(&self) -> Micros {
        let row = |kind| self.row(Since::Confirmed, kind, None).max;
        row(Kind::Api).max(row(Kind::Sql))
    }
}

/// The value at or below which this share of the sorted values is (nearest rank).
#[must_use]
pub fn percentile(sorted: &[Micros], share: f64) -> Micros {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a rank in a vector"
    )]
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

/// Records the staleness of one product at all instances.
pub(crate) struct StalenessRecorder<'a> {
    timeline: &'a Timeline,
    since: Since,
    instances: usize,
    pairs: Vec<Pair>,
}

impl<'a> StalenessRecorder<'a> {
    pub(crate) fn new(timeline: &'a Timeline, instances: usize, since: Since) -> Self {
        let pairs = vec![Pair::default(); timeline.steps.len() * instances];
        Self { timeline, since, instances, pairs }
    }

    /// Records a read that showed the state at `index`. Reads must come in the order in which they began.
    pub(crate) fn record(&mut self, read: &Read, index: usize) {
        let steps = &self.timeline.steps;
        let committed = steps.partition_point(|step| self.since.of(step) < read.begin);
        for change in (0..committed).rev() {
            let age = read.begin - self.since.of(&steps[change]);
            let stale = change > index;
            if !stale && age > OBSERVED_WITHIN {
                break;
            }
            let pair = &mut self.pairs[change * self.instances + usize::from(read.instance)];
            pair.observed |= age <= OBSERVED_WITHIN;
            if stale {
                pair.longest = age.max(pair.longest);
                if let Some(tier) = pair.by_tier.get_mut(read.tier as usize) {
                    *tier = age.max(*tier);
                }
            }
        }
    }

    /// Adds the pairs of the changes that were confirmed.
    pub(crate) fn finish(self, staleness: &mut Staleness) {
        let changes = self.timeline.steps.iter().zip(self.pairs.chunks(self.instances.max(1)));
        for (step, pairs) in changes {
            let Some(kind) = step.kind else { continue };
            let all = staleness.pairs.entry((self.since, kind == Kind::Api)).or_default();
            all.extend(pairs.iter().filter(|pair| pair.observed || pair.longest > 0));
        }
    }
}
