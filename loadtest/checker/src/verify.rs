//! The rules, checked product by product.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fmt;
use std::time::Duration;

use crate::history::{History, Micros, Read, ReadFreshness, Seen, State, micros};
use crate::staleness::{Since, Staleness, StalenessRecorder};
use crate::timeline::Timeline;

/// A promise that was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// Every served state was committed, and not served before it was sent.
    Committed,
    /// An instance that served a state never serves an older one.
    NeverBack,
    /// Nothing older than `min_version` is served, and no committed version is refused.
    MinVersion,
    /// Nothing is served that was replaced more than `max_staleness` before the request.
    MaxStaleness,
    /// Nothing older than the last commit before the request is served.
    Latest,
    /// Plain reads: nothing that was replaced longer ago than the bound is served, unless it is marked stale.
    Bound,
    /// A confirmed write is in Postgres.
    NotLost,
    /// After the last write, every tier holds what Postgres holds, within the bound.
    Converges,
}

/// One breach of a rule.
#[derive(Clone, Debug)]
pub struct Violation {
    pub rule: Rule,
    pub product: i64,
    pub at: Micros,
    /// One line.
    pub what: String,
}

/// The result of the check of a history.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// In the order of time.
    pub violations: Vec<Violation>,
    pub staleness: Staleness,
}

/// Checks a history for violations of every rule.
#[must_use]
pub fn verify(history: &History, bound: Duration) -> Verdict {
    let mut verdict = Verdict::default();
    let mut committed = grouped(&history.committed, |row| row.product);
    let mut acks = grouped(&history.acks, |ack| ack.product);
    let mut reads = grouped(&history.reads, |read| read.product);
    let mut products: Vec<i64> =
        committed.keys().chain(acks.keys()).chain(reads.keys()).copied().collect();
    products.sort_unstable();
    products.dedup();
    for product in products {
        let committed = committed.remove(&product).unwrap_or_default();
        let acks = acks.remove(&product).unwrap_or_default();
        let mut reads = reads.remove(&product).unwrap_or_default();
        reads.sort_by_key(|read| read.begin);
        let timeline = Timeline::new(product, &committed, &acks);
        Judge::new(&timeline, history.instances, micros(bound)).judge(&reads, &mut verdict);
    }
    verdict.violations.sort_by_key(|violation| violation.at);
    verdict
}

fn grouped<T: Copy>(all: &[T], product: impl Fn(&T) -> i64) -> HashMap<i64, Vec<T>> {
    let mut groups: HashMap<i64, Vec<T>> = HashMap::new();
    for one in all {
        groups.entry(product(one)).or_default().push(*one);
    }
    groups
}

/// Checks the reads of one product, in the order in which they began.
struct Judge<'a> {
    timeline: &'a Timeline,
    bound: Micros,
    /// By instance: the index of the newest state that an ended read has shown.
    shown: Vec<usize>,
    /// Reads that had not ended when the last one began: end, instance, index of the state.
    open: BinaryHeap<Reverse<(Micros, u8, usize)>>,
    since_confirmed: StalenessRecorder<'a>,
    since_written: StalenessRecorder<'a>,
}

impl<'a> Judge<'a> {
    fn new(timeline: &'a Timeline, instances: u8, bound: Micros) -> Self {
        let recorder = |since| StalenessRecorder::new(timeline, usize::from(instances), since);
        Self {
            timeline,
            bound,
            shown: vec![0; usize::from(instances)],
            open: BinaryHeap::new(),
            since_confirmed: recorder(Since::Confirmed),
            since_written: recorder(Since::Written),
        }
    }

    fn judge(mut self, reads: &[Read], verdict: &mut Verdict) {
        let product = self.timeline.product;
        for lost in &self.timeline.lost {
            let what =
                format!("{}, confirmed to a writer by {:?}, is not there", lost.state, lost.kind);
            verdict.violations.push(Violation {
                rule: Rule::NotLost,
                product,
                at: lost.acked,
                what,
            });
        }
        for read in reads {
            for (rule, why) in self.breaches(read) {
                let at = read.begin;
                let what = format!("{why}: {}", Line(read));
                verdict.violations.push(Violation { rule, product, at, what });
            }
        }
        self.since_confirmed.finish(&mut verdict.staleness);
        self.since_written.finish(&mut verdict.staleness);
    }

    fn breaches(&mut self, read: &Read) -> Vec<(Rule, String)> {
        self.close_before(read.begin);
        let floors = self.floors(read);
        let lowest = floors.iter().map(|(_, index)| *index).max().unwrap_or(0);
        let index = match self.index_of(read, lowest) {
            Ok(index) => index,
            Err(breach) => return vec![breach],
        };
        self.open.push(Reverse((read.end, read.instance, index)));
        // An absence may stand for any deletion. The newest is the most favourable one.
        let newest = match read.seen {
            Seen::Absent => self.newest_deletion(read.end).unwrap_or(index),
            _ => index,
        };
        self.since_confirmed.record(read, newest);
        self.since_written.record(read, newest);
        let missed = floors.into_iter().filter(|(_, floor)| index < *floor);
        missed.map(|(rule, floor)| (rule, format!("older than {}", self.state(floor)))).collect()
    }

    /// Records the states shown by reads that ended before this moment.
    fn close_before(&mut self, moment: Micros) {
        while let Some(Reverse((end, instance, index))) = self.open.peek().copied() {
            if end >= moment {
                break;
            }
            self.open.pop();
            let shown = &mut self.shown[usize::from(instance)];
            *shown = index.max(*shown);
        }
    }

    /// The states that this read must not be older than, by rule.
    fn floors(&self, read: &Read) -> Vec<(Rule, usize)> {
        let mut floors = vec![(Rule::NeverBack, self.shown[usize::from(read.instance)])];
        let before = |age| self.timeline.certainly_at(read.begin.saturating_sub(age));
        floors.push(match read.wish {
            // A response that is marked stale may be older than the bound.
            ReadFreshness::Plain if read.stale => return floors,
            ReadFreshness::Plain => (Rule::Bound, before(self.bound)),
            ReadFreshness::MinVersion(version) => {
                (Rule::MinVersion, self.timeline.reaches(version))
            }
            ReadFreshness::MaxStaleness(age) => (Rule::MaxStaleness, before(age)),
            ReadFreshness::Latest => (Rule::Latest, before(0)),
        });
        floors
    }

    /// The index of the state that this read shows. For an absence it is the first deletion from `lowest` on, if there is one.
    fn index_of(&self, read: &Read, lowest: usize) -> Result<usize, (Rule, String)> {
        match read.seen {
            Seen::NotReached => Err((Rule::MinVersion, "a committed version was refused".into())),
            Seen::Product(version, write) => {
                let state = State { version, deleted: false };
                let index =
                    self.timeline.index_of(state).ok_or_else(|| never("no such version"))?;
                let step = &self.timeline.steps[index];
                match write {
                    None => Err(never("a mixture of two writes")),
                    Some(_) if step.write != write => Err(never("the content of another version")),
                    Some(_) if step.sent > read.end => Err(never("served before it was sent")),
                    Some(_) => Ok(index),
                }
            }
            Seen::Absent => {
                let newest =
                    self.newest_deletion(read.end).ok_or_else(|| never("it was never deleted"))?;
                let deletions = lowest..=newest;
                Ok(deletions.into_iter().find(|index| self.is_deletion(*index)).unwrap_or(newest))
            }
        }
    }

    fn newest_deletion(&self, end: Micros) -> Option<usize> {
        let possible = self.timeline.possibly_at(end);
        (0..=possible).rev().find(|index| self.is_deletion(*index))
    }

    fn is_deletion(&self, index: usize) -> bool {
        self.timeline.steps.get(index).is_some_and(|step| step.state.deleted)
    }

    fn state(&self, index: usize) -> String {
        let step = self.timeline.steps.get(index);
        step.map_or("every version".to_owned(), |step| step.state.to_string())
    }
}

fn never(why: &str) -> (Rule, String) {
    (Rule::Committed, why.to_owned())
}

/// A read, as one line.
pub(crate) struct Line<'a>(pub(crate) &'a Read);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Read { instance, tier, wish, seen, stale, begin, end, .. } = self.0;
        let mark = if *stale { ", marked stale" } else { "" };
        write!(
            f,
            "{begin}..{end} us, instance {instance}, {wish:?} -> {seen:?} from {tier:?}{mark}"
        )
    }
}
