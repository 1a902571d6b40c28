//! Compares the figures of a drill with what its fault demands.

use std::time::Duration;

use checker::history::{Micros, micros};

use crate::figures::{Figures, Rate};
use crate::trust::Trust;
use crate::{Demands, Fault, Plan};

/// Tolerance of "as fast as before": the jitter of the scheduler.
const SCHEDULER_JITTER: Micros = 1_000;

/// Codes that a caller can act on. Any other is a defect. CANCELLED is the timeout of the client itself: the server did
/// not answer at all.
const ACTIONABLE: [&str; 3] = [": Unavailable:", ": ResourceExhausted:", ": DeadlineExceeded:"];

/// Broken promises, one line each.
pub(crate) fn breaches(
    fault: &Fault,
    plan: &Plan,
    figures: &Figures,
    budget: usize,
) -> Vec<String> {
    let mut breaches = of_always(figures, budget);
    breaches.extend(of_failures(&fault.demands, figures));
    if plan.timed {
        breaches.extend(of_speed(&fault.demands, figures));
    }
    breaches
}

fn of_always(figures: &Figures, budget: usize) -> Vec<String> {
    let mut breaches = Vec::new();
    let mut demand = |holds: bool, what: String| {
        if !holds {
            breaches.push(what);
        }
    };
    for (rule, times) in figures.rules() {
        let first = figures.violations.iter().find(|one| one.starts_with(rule));
        demand(false, format!("{times} times {rule}; {}", first.map_or("", String::as_str)));
    }
    demand(figures.database.highest_count > 0, "no load was counted in Postgres".to_owned());
    for (reason, times) in &figures.reasons {
        let actionable = ACTIONABLE.iter().any(|code| reason.contains(code));
        demand(
            actionable,
            format!("{times} requests failed in a way that no caller can act on: {reason}"),
        );
    }
    demand(figures.recovered.is_some(), "memory was not trusted again in time".to_owned());
    demand(figures.not_sent == 0, format!("{} requests could not be sent", figures.not_sent));
    let running = figures.database.most_running;
    let within = usize::try_from(running).is_ok_and(|running| running <= budget);
    demand(within, format!("{running} loads at once in Postgres, and the budget is {budget}"));
    breaches
}

fn of_failures(demands: &Demands, figures: &Figures) -> Vec<String> {
    let checks = [
        (demands.cached_reads, figures.cached_reads, "reads of cached products"),
        (demands.reads, figures.reads, "reads"),
        (demands.updates, figures.updates, "updates"),
    ];
    let broken = checks.iter().filter(|(demanded, rate, _)| *demanded && rate.failed > 0);
    let line = |(_, Rate { failed, all }, what): &(bool, Rate, &str)| {
        format!("{failed} of {all} {what} failed: {:?}", figures.reasons)
    };
    let mut breaches: Vec<String> = broken.map(line).collect();
    if demands.trusted && figures.trust.samples == 0 {
        breaches.push("hotshelf_hot_lease_valid was never read".to_owned());
    }
    if demands.trusted && figures.trust.lapses > 0 {
        let Trust { lapses, samples } = figures.trust;
        breaches.push(format!("memory was not trusted in {lapses} of {samples} samples"));
    }
    if figures.cached_reads.all == 0 {
        breaches.push("nothing was read".to_owned());
    }
    breaches
}

fn of_speed(demands: &Demands, figures: &Figures) -> Vec<String> {
    let Figures { p99_before, p99_during, p99_stabilised, slowest, refused, stalest, .. } =
        *figures;
    let longer = |time: Micros, limit: Option<Duration>| {
        limit.filter(|limit| time > micros(*limit)).map(|limit| (time, limit))
    };
    let mut breaches = Vec::new();
    #[expect(clippy::cast_precision_loss, reason = "times of some seconds")]
    let ratio = p99_during.saturating_sub(SCHEDULER_JITTER) as f64 / p99_before.max(1) as f64;
    if let Some(limit) = demands.p99_ratio.filter(|limit| ratio > *limit) {
        breaches.push(format!("p99 of hot products was {ratio:.1} times of before, not {limit}"));
    }
    if let Some((time, limit)) = longer(stalest, demands.stalest) {
        breaches.push(format!("an older state was served for {time} us, and may be for {limit:?}"));
    }
    if let Some((time, limit)) = longer(slowest, demands.slowest) {
        breaches.push(format!("a read took {time} us, and may take {limit:?}"));
    }
    if let Some((time, limit)) = longer(refused[1], demands.refused_within) {
        breaches.push(format!("refusing took {time} us (p95), and may take {limit:?}"));
    }
    let limit = 2 * p99_before + SCHEDULER_JITTER;
    let stabilised = p99_stabilised.filter(|_| demands.soon_fast);
    if let Some(p99) = stabilised.filter(|p99| *p99 > limit) {
        breaches.push(format!("p99 stayed at {p99} us, and was {p99_before} us before"));
    }
    breaches
}
