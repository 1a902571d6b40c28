//! What was measured in a drill.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use checker::history::{Failure, Kind, Micros, Read, Request, Tier, Wish, micros};
use checker::staleness::percentile;
use checker::{Outcome, Verdict};

use crate::database::DatabaseLoad;
use crate::run::Course;
use crate::stage::Excuse;
use crate::trust::Trust;

/// Some of some requests failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Those that failed.
    pub failed: usize,
    /// All of them.
    pub all: usize,
}

/// What callers felt, and Postgres.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Plain reads of hot products, from the fault to the end.
    pub cached_reads: Rate,
    /// All reads.
    pub reads: Rate,
    /// UpdateProduct.
    pub updates: Rate,
    /// p99 of plain reads of hot products before the fault.
    pub p99_before: Micros,
    /// During it, failures included.
    pub p99_during: Micros,
    /// Two seconds after it began, while it lasted.
    pub p99_settled: Option<Micros>,
    /// The slowest of all reads that were due while it lasted.
    pub slowest: Micros,
    /// The slowest reads of cached products, and the slowest refusals.
    pub slow: Vec<String>,
    /// How long refusals took: p50, p95, p99. The last are of reads that had waited for another's load, which was refused,
    /// or came back too old for them.
    pub refused: [Micros; 3],
    /// How long after it was mended the last request failed, and every instance trusted its memory; `None` when
    /// they never did.
    pub recovered: Option<Micros>,
    /// What Postgres bore.
    pub database: DatabaseLoad,
    /// Whether the instances trusted their memory while the fault lasted.
    pub trust: Trust,
    /// The longest that an older state was served after a commit.
    pub stalest: Micros,
    /// Reads that were marked stale.
    pub marked: usize,
    /// What the checker found, in words.
    pub violations: Vec<String>,
    /// Why requests failed, and how often.
    pub reasons: BTreeMap<String, usize>,
    /// Some of the failures, the reads of cached products first.
    pub examples: Vec<String>,
    /// Requests that the load generator could not send.
    pub not_sent: u64,
}

/// A read, successful or not.
#[derive(Clone, Copy)]
struct Sample {
    due: Micros,
    latency: Micros,
    cached: bool,
    failed: bool,
}

impl Figures {
    pub(crate) fn new(outcome: &Outcome, verdict: &Verdict, course: &Course) -> Self {
        let samples = samples(outcome, course);
        let failures: Vec<&Failure> =
            outcome.failures.iter().filter(|failure| counts(failure, &course.excuses)).collect();
        let after = |due: Micros| due >= course.broken;
        let rate = |of: &dyn Fn(&Sample) -> bool| {
            let of: Vec<&Sample> =
                samples.iter().filter(|sample| after(sample.due) && of(sample)).collect();
            Rate { failed: of.iter().filter(|sample| sample.failed).count(), all: of.len() }
        };
        let cached = |from, to| p99(&samples, |one| one.cached && (from..to).contains(&one.due));
        let during = |one: &&Sample| (course.broken..course.mended).contains(&one.due);
        let refusals = failures.iter().filter(|failure| failure.what.contains("ResourceExhausted"));
        let settled = course.broken + micros(SETTLED);
        let violations = verdict.violations.iter().chain(&outcome.convergence.violations);
        Self {
            cached_reads: rate(&|sample| sample.cached),
            reads: rate(&|_| true),
            updates: updates(outcome, &failures, course),
            p99_before: cached(course.measured, course.broken),
            p99_during: cached(course.broken, course.mended),
            p99_settled: (settled < course.mended).then(|| cached(settled, course.mended)),
            slowest: samples.iter().filter(during).map(|one| one.latency).max().unwrap_or(0),
            slow: slow(outcome, course),
            refused: spread(refusals.map(|failure| failure.end - failure.due).collect()),
            recovered: course.trusted.map(|trusted| {
                let last = failures.iter().map(|failure| failure.end).max().unwrap_or(0);
                trusted.max(last).saturating_sub(course.mended)
            }),
            database: course.database,
            trust: course.trust,
            stalest: verdict.staleness.max(),
            marked: outcome.history.reads.iter().filter(|read| read.stale).count(),
            violations: violations
                .map(|one| format!("{:?} of product {}: {}", one.rule, one.product, one.what))
                .collect(),
            reasons: reasons(&failures),
            examples: examples(&failures, course),
            not_sent: outcome.not_sent,
        }
    }

    /// What the checker found, by rule.
    #[must_use]
    pub fn rules(&self) -> BTreeMap<&str, usize> {
        let mut rules = BTreeMap::new();
        for violation in &self.violations {
            *rules.entry(violation.split(' ').next().unwrap_or_default()).or_default() += 1;
        }
        rules
    }
}

/// Enough to begin with.
const EXAMPLES: usize = 5;
/// A breaker's window, and what it takes to notice.
pub(crate) const SETTLED: Duration = Duration::from_secs(2);

fn samples(outcome: &Outcome, course: &Course) -> Vec<Sample> {
    let is_cached = |product, wish| wish == Wish::Plain && course.hot.contains(&product);
    // A batch is one request, and shows as many reads: they count as reads of its products, but when some of them are
    // not cached, what it waited for says nothing about those that are.
    let reads = outcome.history.reads.iter().filter_map(|read| {
        let due = read.begin - u64::from(read.late);
        let cached = is_cached(read.product, read.wish) && read.tier != Tier::Unsaid;
        let latency = read.end - due;
        let sample = Sample { due, latency, cached, failed: false };
        (!excused(&course.excuses, read.instance, due, read.end)).then_some(sample)
    });
    let failures = outcome.failures.iter().filter_map(|failure| {
        let cached = match failure.request {
            Request::Read(product, _, wish) => is_cached(product, wish),
            Request::Batch(_) => false,
            Request::Update(_) | Request::Sql => return None,
        };
        let latency = failure.end - failure.due;
        let sample = Sample { due: failure.due, latency, cached, failed: true };
        counts(failure, &course.excuses).then_some(sample)
    });
    reads.chain(failures).collect()
}

/// Plain SQL is the drill's own: what becomes of it says nothing about hotshelf.
fn counts(failure: &Failure, excuses: &[Excuse]) -> bool {
    match failure.request {
        Request::Read(_, instance, _) | Request::Batch(instance) | Request::Update(instance) => {
            !excused(excuses, instance, failure.due, failure.end)
        }
        Request::Sql => false,
    }
}

/// Whether the instance was a victim at any moment between the two.
fn excused(excuses: &[Excuse], instance: u8, due: Micros, end: Micros) -> bool {
    excuses.iter().any(|one| one.instance == instance && due < one.to && end > one.from)
}

fn updates(outcome: &Outcome, failures: &[&Failure], course: &Course) -> Rate {
    let acks = outcome.history.acks.iter();
    let done = acks.filter(|ack| ack.kind == Kind::Api && ack.sent >= course.broken).count();
    let is_update = |failure: &&&Failure| {
        matches!(failure.request, Request::Update(_)) && failure.due >= course.broken
    };
    let failed = failures.iter().filter(is_update).count();
    Rate { failed, all: done + failed }
}

fn reasons(failures: &[&Failure]) -> BTreeMap<String, usize> {
    let mut reasons = BTreeMap::new();
    for failure in failures {
        *reasons.entry(failure.what.clone()).or_default() += 1;
    }
    reasons
}

fn examples(failures: &[&Failure], course: &Course) -> Vec<String> {
    let is_cached = |failure: &&Failure| {
        let read = |product| course.hot.contains(product);
        matches!(&failure.request, Request::Read(product, _, Wish::Plain) if read(product))
    };
    let (cached, others): (Vec<&Failure>, Vec<&Failure>) =
        failures.iter().copied().partition(is_cached);
    let line = |failure: &Failure| {
        let Failure { what, request, due, end } = failure;
        let after = |moment: Micros| moment.saturating_sub(course.broken) / 1_000;
        let [due, end, mended] = [*due, *end, course.mended].map(after);
        format!(
            "due {due} ms after the fault, failed at {end}, mended at {mended}: {request:?}: {what}"
        )
    };
    cached.into_iter().chain(others).take(EXAMPLES).map(line).collect()
}

fn slow(outcome: &Outcome, course: &Course) -> Vec<String> {
    let due = |read: &Read| read.begin - u64::from(read.late);
    let mut reads: Vec<&Read> = outcome.history.reads.iter().collect();
    reads.retain(|read| (course.broken..course.mended).contains(&due(read)));
    reads.retain(|read| read.wish == Wish::Plain && course.hot.contains(&read.product));
    reads.sort_by_key(|read| Reverse(read.end - due(read)));
    let line = |read: &&Read| {
        let [after, took] = [due(read) - course.broken, read.end - due(read)].map(|us| us / 1_000);
        format!("due {after} ms after the fault, took {took} ms: {read:?}")
    };
    let refused = |failure: &&Failure| failure.what.contains("ResourceExhausted");
    let mut refusals: Vec<&Failure> = outcome.failures.iter().filter(refused).collect();
    refusals.sort_by_key(|failure| Reverse(failure.end - failure.due));
    let refusal = |failure: &&Failure| {
        let Failure { request, due, end, .. } = failure;
        let [after, took] = [due.saturating_sub(course.broken), end - due].map(|us| us / 1_000);
        format!("due {after} ms after the fault, refused {took} ms later: {request:?}")
    };
    let refusals = refusals.iter().take(EXAMPLES).map(refusal);
    reads.iter().take(EXAMPLES).map(line).chain(refusals).collect()
}

fn p99(samples: &[Sample], of: impl Fn(&Sample) -> bool) -> Micros {
    p99_of(samples.iter().filter(|sample| of(sample)).map(|sample| sample.latency).collect())
}

fn spread(mut times: Vec<Micros>) -> [Micros; 3] {
    times.sort_unstable();
    [0.5, 0.95, 0.99].map(|share| percentile(&times, share))
}

fn p99_of(mut times: Vec<Micros>) -> Micros {
    times.sort_unstable();
    percentile(&times, 0.99)
}
