//! The rules, product by product.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fmt;
use std::time::Duration;

use crate::history::{History, Micros, Read, Seen, State, Wish, micros};
use crate::staleness::{Since, Staleness, Watch};
use crate::timeline::Timeline;

/// A promise that was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// What is served was committed, and not later.
    Committed,
    /// An instance that served a state never serves an older one.
    NeverBack,
    /// Nothing older than `min_version`, and no refusal of a version that was committed.
    MinVersion,
    /// Nothing that was not current within `max_staleness` of the request.
    MaxStaleness,
    /// Nothing older than what was committed before the request.
    Latest,
    /// Without wishes, nothing that was replaced longer ago than the bound, unless it is marked stale.
    Bound,
    /// A write that was confirmed is in Postgres.
    NotLost,
    /// When the writes have stopped, every tier holds what Postgres holds, within the bound.
    Converges,
}

/// One breach of a rule.
#[derive(Clone, Debug)]
pub struct Violation {
    /// The rule.
    pub rule: Rule,
    /// The product whose history shows it.
    pub product: i64,
    /// When.
    pub at: Micros,
    /// What happened.
    pub what: String,
}

/// What a history shows.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Broken promises, in the order of time.
    pub violations: Vec<Violation>,
    /// How long older states were served.
    pub staleness: Staleness,
}

/// Holds a history against every rule.
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

/// Judges the reads of one product, in the order in which they began.
struct Judge<'a> {
    timeline: &'a Timeline,
    bound: Micros,
    /// For each instance the newest place that a read showed which had ended.
    shown: Vec<usize>,
    /// Reads that had not ended when the last one began: end, instance, place.
    open: BinaryHeap<Reverse<(Micros, u8, usize)>>,
    confirmed: Watch<'a>,
    written: Watch<'a>,
}

impl<'a> Judge<'a> {
    fn new(timeline: &'a Timeline, instances: u8, bound: Micros) -> Self {
        let watch = |since| Watch::new(timeline, usize::from(instances), since);
        Self {
            timeline,
            bound,
            shown: vec![0; usize::from(instances)],
            open: BinaryHeap::new(),
            confirmed: watch(Since::Confirmed),
            written: watch(Since::Written),
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
        self.confirmed.end(&mut verdict.staleness);
        self.written.end(&mut verdict.staleness);
    }

    fn breaches(&mut self, read: &Read) -> Vec<(Rule, String)> {
        self.close_before(read.begin);
        let floors = self.floors(read);
        let lowest = floors.iter().map(|(_, place)| *place).max().unwrap_or(0);
        let place = match self.place(read, lowest) {
            Ok(place) => place,
            Err(breach) => return vec![breach],
        };
        self.open.push(Reverse((read.end, read.instance, place)));
        // An absence may stand for any deletion: the newest is the one that says least against it.
        let newest = match read.seen {
            Seen::Absent => self.newest_deletion(read.end).unwrap_or(place),
            _ => place,
        };
        self.confirmed.look(read, newest);
        self.written.look(read, newest);
        let missed = floors.into_iter().filter(|(_, floor)| place < *floor);
        missed.map(|(rule, floor)| (rule, format!("older than {}", self.state(floor)))).collect()
    }

    /// Takes note of what the reads showed that ended before this moment.
    fn close_before(&mut self, moment: Micros) {
        while let Some(Reverse((end, instance, place))) = self.open.peek().copied() {
            if end >= moment {
                break;
            }
            self.open.pop();
            let shown = &mut self.shown[usize::from(instance)];
            *shown = place.max(*shown);
        }
    }

    /// What this read must not be older than, and why.
    fn floors(&self, read: &Read) -> Vec<(Rule, usize)> {
        let mut floors = vec![(Rule::NeverBack, self.shown[usize::from(read.instance)])];
        let before = |age| self.timeline.surely_at(read.begin.saturating_sub(age));
        floors.push(match read.wish {
            // The answer has said so itself.
            Wish::Plain if read.stale => return floors,
            Wish::Plain => (Rule::Bound, before(self.bound)),
            Wish::MinVersion(version) => (Rule::MinVersion, self.timeline.reaches(version)),
            Wish::MaxStaleness(age) => (Rule::MaxStaleness, before(age)),
            Wish::Latest => (Rule::Latest, before(0)),
        });
        floors
    }

    /// The state that this read shows, not below `lowest` if that can be.
    fn place(&self, read: &Read, lowest: usize) -> Result<usize, (Rule, String)> {
        match read.seen {
            Seen::NotReached => Err((Rule::MinVersion, "a committed version was refused".into())),
            Seen::Product(version, write) => {
                let state = State { version, deleted: false };
                let place = self.timeline.place(state).ok_or_else(|| never("no such version"))?;
                let step = &self.timeline.steps[place];
                match write {
                    None => Err(never("a mixture of two writes")),
                    Some(_) if step.write != write => Err(never("the content of another version")),
                    Some(_) if step.sent > read.end => Err(never("served before it was sent")),
                    Some(_) => Ok(place),
                }
            }
            Seen::Absent => {
                let newest =
                    self.newest_deletion(read.end).ok_or_else(|| never("it was never deleted"))?;
                let deletions = lowest..=newest;
                Ok(deletions.into_iter().find(|place| self.is_deletion(*place)).unwrap_or(newest))
            }
        }
    }

    fn newest_deletion(&self, end: Micros) -> Option<usize> {
        let possible = self.timeline.possibly_at(end);
        (0..=possible).rev().find(|place| self.is_deletion(*place))
    }

    fn is_deletion(&self, place: usize) -> bool {
        self.timeline.steps.get(place).is_some_and(|step| step.state.deleted)
    }

    fn state(&self, place: usize) -> String {
        let step = self.timeline.steps.get(place);
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
