//! The measurements of a drill.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use checker::history::{Failure, Kind, Micros, Read, ReadFreshness, Request, Tier, micros};
use checker::staleness::percentile;
use checker::{Outcome, Verdict};

use crate::database::DatabaseLoad;
use crate::run::DrillTimeline;
use crate::scenario::Allowance;
use crate::trust::Trust;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    pub failed: usize,
    /// Successful and failed.
    pub all: usize,
}
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Plain reads of hot products, from the beginning of the fault to the end of the drill.
    pub cached_reads: Rate,
    /// All reads, in the same time.
    pub reads: Rate,
    /// UpdateProduct, in the same time.
    pub updates: Rate,
    /// p99 of plain reads of hot products before the fault.
    pub p99_before: Micros,
    /// The same during the fault, failures included.
    pub p99_during: Micros,
    /// The same from `STABILISED_AFTER` on; `None` if the fault was shorter.
    pub p99_stabilised: Option<Micros>,
    /// The slowest of all reads that were due during the fault.
    pub slowest: Micros,
    /// The slowest reads of cached products, and the slowest refusals, one line each.
    pub slow: Vec<String>,
    /// How long refusals took: p50, p95, p99. The slowest are of reads that waited for an in-flight load which was refused,
    /// or whose result was too old for them.
    pub refused: [Micros; 3],
    /// From the end of the fault until no request fails and every instance trusts its memory. `None` if an instance did not
    /// trust it within `Plan::recovery_timeout`.
    pub recovered: Option<Micros>,
    /// From the beginning of the fault to the end of the drill.
    pub database: DatabaseLoad,
    /// During the fault.
    pub trust: Trust,
    /// The longest time after a commit that an older state was served.
    pub stalest: Micros,
    /// Violations that the checker found, one line each.
    pub violations: Vec<String>,
    /// Failures by method, code and message.
    pub reasons: BTreeMap<String, usize>,
    /// Some of the failures, reads of cached products first.
    pub examples: Vec<String>,
    /// Requests that the load generator could not send.
    pub not_sent: u64,
}

/// A read, successful or failed.
#[derive(Clone, Copy)]
struct Sample {
    due: Micros,
    latency: Micros,
    cached: bool,
    failed: bool,
}

impl Figures {
    pub(crate) fn new(outcome: &Outcome, verdict: &Verdict, timeline: &DrillTimeline) -> Self {
        let samples = samples(outcome, timeline);
        let failures: Vec<&Failure> = outcome
            .failures
            .iter()
            .filter(|failure| counts(failure, &timeline.allowances))
            .collect();
        let after = |due: Micros| due >= timeline.broken;
        let rate = |of: &dyn Fn(&Sample) -> bool| {
            let of: Vec<&Sample> =
                samples.iter().filter(|sample| after(sample.due) && of(sample)).collect();
            Rate { failed: of.iter().filter(|sample| sample.failed).count(), all: of.len() }
        };
        let cached = |from, to| p99(&samples, |one| one.cached && (from..to).contains(&one.due));
        let during = |one: &&Sample| (timeline.broken..timeline.mended).contains(&one.due);
        let refusals = failures.iter().filter(|failure| failure.what.contains("ResourceExhausted"));
        let stabilised = timeline.broken + micros(STABILISED_AFTER);
        let violations = verdict.violations.iter().chain(&outcome.convergence.violations);
        Self {
            cached_reads: rate(&|sample| sample.cached),
            reads: rate(&|_| true),
            updates: updates(outcome, &failures, timeline),
            p99_before: cached(timeline.measured, timeline.broken),
            p99_during: cached(timeline.broken, timeline.mended),
            p99_stabilised: (stabilised < timeline.mended)
                .then(|| cached(stabilised, timeline.mended)),
            slowest: samples.iter().filter(during).map(|one| one.latency).max().unwrap_or(0),
            slow: slow(outcome, timeline),
            refused: spread(refusals.map(|failure| failure.end - failure.due).collect()),
            recovered: timeline.trusted.map(|trusted| {
                let last = failures.iter().map(|failure| failure.end).max().unwrap_or(0);
                trusted.max(last).saturating_sub(timeline.mended)
            }),
            database: timeline.database,
            trust: timeline.trust,
            stalest: verdict.staleness.max(),
            violations: violations
                .map(|one| format!("{:?} of product {}: {}", one.rule, one.product, one.what))
                .collect(),
            reasons: reasons(&failures),
            examples: examples(&failures, timeline),
            not_sent: outcome.not_sent,
        }
    }

    /// Violations by rule.
    #[must_use]
    pub fn rules(&self) -> BTreeMap<&str, usize> {
        let mut rules = BTreeMap::new();
        for violation in &self.violations {
            *rules.entry(violation.split(' ').next().unwrap_or_default()).or_default() += 1;
        }
        rules
    }
}

/// Failures and slow reads that are printed.
const EXAMPLES: usize = 5;
/// The window of a breaker, and the time until it opens.
const STABILISED_AFTER: Duration = Duration::from_secs(2);

fn samples(outcome: &Outcome, timeline: &DrillTimeline) -> Vec<Sample> {
    let is_cached = |product, wish| wish == ReadFreshness::Plain && timeline.hot.contains(&product);
    // A batch is one request and counts as one read of each of its products. If some of them are not cached, its latency
    // is not that of a cached read.
    let reads = outcome.history.reads.iter().filter_map(|read| {
        let due = read.begin - u64::from(read.late);
        let cached = is_cached(read.product, read.wish) && read.tier != Tier::Unknown;
        let latency = read.end - due;
        let sample = Sample { due, latency, cached, failed: false };
        (!is_allowed(&timeline.allowances, read.instance, due, read.end)).then_some(sample)
    });
    let failures = outcome.failures.iter().filter_map(|failure| {
        let cached = match failure.request {
            Request::Read(product, _, wish) => is_cached(product, wish),
            Request::Batch(_) => false,
            Request::Update(_) | Request::Sql => return None,
        };
        let latency = failure.end - failure.due;
        let sample = Sample { due: failure.due, latency, cached, failed: true };
        counts(failure, &timeline.allowances).then_some(sample)
    });
    reads.chain(failures).collect()
}

/// Plain SQL does not count: the checker sends it to Postgres itself.
fn counts(failure: &Failure, allowances: &[Allowance]) -> bool {
    match failure.request {
        Request::Read(_, instance, _) | Request::Batch(instance) | Request::Update(instance) => {
            !is_allowed(allowances, instance, failure.due, failure.end)
        }
        Request::Sql => false,
    }
}

/// Whether requests to the instance were allowed to fail at any moment between the two.
fn is_allowed(allowances: &[Allowance], instance: u8, due: Micros, end: Micros) -> bool {
    allowances.iter().any(|one| one.instance == instance && due < one.to && end > one.from)
}

fn updates(outcome: &Outcome, failures: &[&Failure], timeline: &DrillTimeline) -> Rate {
    let acks = outcome.history.acks.iter();
    let done = acks.filter(|ack| ack.kind == Kind::Api && ack.sent >= timeline.broken).count();
    let is_update = |failure: &&&Failure| {
        matches!(failure.request, Request::Update(_)) && failure.due >= timeline.broken
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

fn examples(failures: &[&Failure], timeline: &DrillTimeline) -> Vec<String> {
    let is_cached = |failure: &&Failure| {
        let read = |product| timeline.hot.contains(product);
        matches!(&failure.request, Request::Read(product, _, ReadFreshness::Plain) if read(product))
    };
    let (cached, others): (Vec<&Failure>, Vec<&Failure>) =
        failures.iter().copied().partition(is_cached);
    let line = |failure: &Failure| {
        let Failure { what, request, due, end } = failure;
        let after = |moment: Micros| moment.saturating_sub(timeline.broken) / 1_000;
        let [due, end, mended] = [*due, *end, timeline.mended].map(after);
        format!(
            "due {due} ms after the fault, failed at {end}, mended at {mended}: {request:?}: {what}"
        )
    };
    cached.into_iter().chain(others).take(EXAMPLES).map(line).collect()
}

fn slow(outcome: &Outcome, timeline: &DrillTimeline) -> Vec<String> {
    let due = |read: &Read| read.begin - u64::from(read.late);
    let mut reads: Vec<&Read> = outcome.history.reads.iter().collect();
    reads.retain(|read| (timeline.broken..timeline.mended).contains(&due(read)));
    reads.retain(|read| read.wish == ReadFreshness::Plain && timeline.hot.contains(&read.product));
    reads.sort_by_key(|read| Reverse(read.end - due(read)));
    let line = |read: &&Read| {
        let [after, took] =
            [due(read) - timeline.broken, read.end - due(read)].map(|us| us / 1_000);
        format!("due {after} ms after the fault, took {took} ms: {read:?}")
    };
    let refused = |failure: &&Failure| failure.what.contains("ResourceExhausted");
    let mut refusals: Vec<&Failure> = outcome.failures.iter().filter(refused).collect();
    refusals.sort_by_key(|failure| Reverse(failure.end - failure.due));
    let refusal = |failure: &&Failure| {
        let Failure { request, due, end, .. } = failure;
        let [after, took] = [due.saturating_sub(timeline.broken), end - due].map(|us| us / 1_000);
        format!("due {after} ms after the fault, refused {took} ms later: {request:?}")
    };
    let refusals = refusals.iter().take(EXAMPLES).map(refusal);
    reads.iter().take(EXAMPLES).map(line).chain(refusals).collect()
}

fn p99(samples: &[Sample], of: impl Fn(&Sample) -> bool) -> Micros {
    let [_, _, p99] =
        spread(samples.iter().filter(|sample| of(sample)).map(|sample| sample.latency).collect());
    p99
}

/// p50, p95, p99.
fn spread(mut times: Vec<Micros>) -> [Micros; 3] {
    times.sort_unstable();
    [0.5, 0.95, 0.99].map(|share| percentile(&times, share))
}
