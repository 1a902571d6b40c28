//! How long after a commit an instance still served the older state.
//!
//! Counted per change and instance, not per read: a product that is read a thousand times a second must not
//! make the percentiles look good. Only pairs count of which something is known: the instance was asked for
//! the product within a second after the commit.

use std::collections::HashMap;

use crate::history::{Kind, Micros, Read, Tier};
use crate::timeline::{Step, Timeline};

/// A pair counts if there was a read so soon after the commit.
const OBSERVED_WITHIN: Micros = 1_000_000;
const TIERS: usize = 3;

/// When the time begins to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Since {
    /// When the writer was told of the commit.
    Confirmed,
    /// When the row was written, before the commit: too early, and so an upper bound.
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

/// The longest time that a change was not seen at an instance: in any tier, and in each.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pair {
    observed: bool,
    longest: Micros,
    by_tier: [Micros; TIERS],
}

/// All pairs.
#[derive(Clone, Debug, Default)]
pub struct Staleness {
    pairs: HashMap<(Since, bool), Vec<Pair>>,
}

/// A line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Changes times instances.
    pub pairs: usize,
    /// Those in which the older state was served after the commit.
    pub stale: usize,
    /// Half of the pairs: at most this long.
    pub p50: Micros,
    /// 99 of 100.
    pub p99: Micros,
    /// 999 of 1000.
    pub p999: Micros,
    /// All.
    pub max: Micros,
}

impl Staleness {
    /// The times of one kind of write, and one tier, or any.
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

    /// The longest of all, since the writer was told.
    #[must_use]
    pub fn max(&self) -> Micros {
        let row = |kind| self.row(Since::Confirmed, kind, None).max;
        row(Kind::Api).max(row(Kind::Sql))
    }
}

/// The value that this share of the sorted values is at or below.
#[must_use]
pub fn percentile(sorted: &[Micros], share: f64) -> Micros {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a rank among what memory holds"
    )]
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

/// Watches the changes of one product at all instances.
pub(crate) struct Watch<'a> {
    timeline: &'a Timeline,
    since: Since,
    instances: usize,
    pairs: Vec<Pair>,
}

impl<'a> Watch<'a> {
    pub(crate) fn new(timeline: &'a Timeline, instances: usize, since: Since) -> Self {
        let pairs = vec![Pair::default(); timeline.steps.len() * instances];
        Self { timeline, since, instances, pairs }
    }

    /// Takes note of a read that showed the state at `place`; reads come in the order of their begin.
    pub(crate) fn look(&mut self, read: &Read, place: usize) {
        let steps = &self.timeline.steps;
        let over = steps.partition_point(|step| self.since.of(step) < read.begin);
        for change in (0..over).rev() {
            let age = read.begin - self.since.of(&steps[change]);
            let stale = change > place;
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

    /// Hands over what was seen of the changes that somebody was told of.
    pub(crate) fn end(self, staleness: &mut Staleness) {
        let changes = self.timeline.steps.iter().zip(self.pairs.chunks(self.instances.max(1)));
        for (step, pairs) in changes {
            let Some(kind) = step.kind else { continue };
            let all = staleness.pairs.entry((self.since, kind == Kind::Api)).or_default();
            all.extend(pairs.iter().filter(|pair| pair.observed || pair.longest > 0));
        }
    }
}
