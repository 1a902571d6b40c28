//! The result of a run: tables in Markdown, and the whole history of a product with a violation.

use std::collections::HashSet;
use std::fmt::{self, Write};
use std::io;
use std::path::{Path, PathBuf};

use crate::history::{History, Kind, Micros, Tier};
use crate::load::Outcome;
use crate::staleness::{Row, Since, percentile};
use crate::timeline::Timeline;
use crate::verify::{Line, Verdict, Violation};

/// The most violations that are printed, the first of each rule and product. The report counts all.
const PRINTED: usize = 20;

const CAPTION: &str = "Staleness: how long after the commit of a change an instance still served the older \
state. Percentiles are over pairs of change and instance, not over reads: of each pair the longest time \
counts, 0 if the older state was not served. A pair counts if the product was read through the instance within a second \
after the commit. Time counts from the confirmation of the commit to the writer until the read was sent; \
\"since written\": from the moment at which the row was written, before the commit, \
which is an upper bound. After each write its product was read through every instance ten times, about \
1, 4, 8, 16 ... 1000 ms later, besides all other reads: that is the resolution.";

/// A run, as Markdown.
#[derive(Debug)]
pub struct Report<'a> {
    pub outcome: &'a Outcome,
    pub verdict: &'a Verdict,
}

impl Report<'_> {
    /// Of the history and of the convergence.
    #[must_use]
    pub fn violations(&self) -> Vec<&Violation> {
        self.verdict.violations.iter().chain(&self.outcome.convergence.violations).collect()
    }

    /// Whether no promise was broken, no request failed, and the load was sent as planned.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.violations().is_empty()
            && self.outcome.not_sent == 0
            && self.outcome.failures.is_empty()
    }

    fn staleness(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{CAPTION}\n")?;
        writeln!(f, "| change | tier | pairs | stale | p50 | p99 | p99.9 | max |")?;
        writeln!(f, "|---|---|--:|--:|--:|--:|--:|--:|")?;
        let tiers = [
            (None, "any"),
            (Some(Tier::Hot), "hot"),
            (Some(Tier::Redis), "redis"),
            (Some(Tier::Postgres), "postgres"),
        ];
        for (kind, change) in [(Kind::Api, "UpdateProduct"), (Kind::Sql, "SQL")] {
            for (tier, name) in tiers {
                let row = self.verdict.staleness.row(Since::Confirmed, kind, tier);
                staleness_line(f, change, name, row)?;
            }
        }
        let row = self.verdict.staleness.row(Since::Written, Kind::Api, None);
        staleness_line(f, "UpdateProduct, since written", "any", row)
    }

    fn reads(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reads = &self.outcome.history.reads;
        writeln!(f, "\nLatency of reads, from the time at which they were due.\n")?;
        writeln!(f, "| tier | reads | p50 | p99 | p99.9 | max |")?;
        writeln!(f, "|---|--:|--:|--:|--:|--:|")?;
        for (tier, name) in [
            (Tier::Hot, "hot"),
            (Tier::Redis, "redis"),
            (Tier::Postgres, "postgres"),
            (Tier::Unknown, "in batches"),
        ] {
            let of_tier = reads.iter().filter(|read| read.tier == tier);
            let mut times: Vec<Micros> =
                of_tier.map(|read| read.end - read.begin + u64::from(read.late)).collect();
            times.sort_unstable();
            let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|share| Ms(percentile(&times, share)));
            let max = Ms(times.last().copied().unwrap_or(0));
            writeln!(f, "| {name} | {} | {p50} | {p99} | {p999} | {max} |", times.len())?;
        }
        Ok(())
    }

    fn totals(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcome { history, convergence, not_sent, .. } = self.outcome;
        let count = |kind| history.acks.iter().filter(|ack| ack.kind == kind).count();
        let (api, sql) = (count(Kind::Api), count(Kind::Sql));
        writeln!(
            f,
            "\n{} reads through {} instances; {api} changes by UpdateProduct, {sql} by SQL.",
            history.reads.len(),
            history.instances,
        )?;
        writeln!(
            f,
            "{} probes of the tiers after the last write: no disagreement later than {:?} after it.",
            convergence.probes, convergence.converged_after,
        )?;
        let marked = history.reads.iter().filter(|read| read.stale).count();
        writeln!(f, "{marked} reads were marked stale.")?;
        for (what, times) in self.outcome.reasons() {
            writeln!(f, "FAILED {times} times: {what}")?;
        }
        if *not_sent > 0 {
            writeln!(f, "NOT SENT: {not_sent} requests, because too many were in flight.")?;
        }
        Ok(())
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.staleness(f)?;
        self.reads(f)?;
        self.totals(f)?;
        let violations = self.violations();
        writeln!(f, "Violations: {}.", violations.len())?;
        let mut printed = HashSet::new();
        let first = violations.iter().filter(|one| printed.insert((one.rule, one.product)));
        for Violation { rule, product, at, what } in first.take(PRINTED) {
            writeln!(f, "- {rule:?}, product {product}, at {at} us: {what}")?;
        }
        Ok(())
    }
}

fn staleness_line(f: &mut fmt::Formatter<'_>, change: &str, tier: &str, row: Row) -> fmt::Result {
    let Row { pairs, stale, p50, p99, p999, max } = row;
    let [p50, p99, p999, max] = [p50, p99, p999, max].map(Ms);
    writeln!(f, "| {change} | {tier} | {pairs} | {stale} | {p50} | {p99} | {p999} | {max} |")
}

/// Milliseconds with two decimals.
struct Ms(Micros);

impl fmt::Display for Ms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02} ms", self.0 / 1_000, self.0 % 1_000 / 10)
    }
}

/// Writes the history of a product in the order of time. Returns the path of the file.
pub fn write_history(history: &History, product: i64, dir: &Path) -> io::Result<PathBuf> {
    let path = dir.join(format!("history-of-product-{product}.txt"));
    std::fs::write(&path, history_of(history, product))?;
    Ok(path)
}

fn history_of(history: &History, product: i64) -> String {
    let committed: Vec<_> =
        history.committed.iter().filter(|row| row.product == product).copied().collect();
    let acks: Vec<_> = history.acks.iter().filter(|ack| ack.product == product).copied().collect();
    let timeline = Timeline::new(product, &committed, &acks);
    let mut lines: Vec<(Micros, String)> = Vec::new();
    for step in &timeline.steps {
        let at = step.sent.max(step.written);
        lines.push((at, format!("{step:?}")));
    }
    for read in history.reads.iter().filter(|read| read.product == product) {
        lines.push((read.begin, Line(read).to_string()));
    }
    lines.sort_by_key(|(at, _)| *at);
    let mut text = String::new();
    for (at, line) in lines {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{at:>12} {line}");
    }
    text
}
