//! The verdict.

use std::collections::BTreeMap;
use std::fmt;

use clap::ValueEnum;

use crate::baseline::{Baseline, Counts};
use crate::operation::Operation;

/// More than this above the baseline fails.
const ALLOWED: f64 = 0.03;
/// The same where only ratios can be compared: another compiler or C library moves those a little, too.
const ALLOWED_ELSEWHERE: f64 = 0.10;
/// How many functions are named.
const NAMED: usize = 8;

/// What was counted now, against what was counted before.
pub(crate) struct Report {
    /// What is different about the environment.
    differences: Vec<String>,
    /// By how much everything takes more here, as far as the bare server tells.
    scale: f64,
    rows: Vec<Row>,
}

struct Row {
    operation: Operation,
    instructions: f64,
    expected: Option<f64>,
    /// The functions that take more than before, and by how much: without and with what they call.
    grown: Vec<(String, f64)>,
    grown_callers: Vec<(String, f64)>,
}

impl Report {
    pub(crate) fn new(before: &Baseline, now: &Baseline) -> Self {
        let differences = before.environment.differences(&now.environment);
        let bare = |baseline: &Baseline| {
            baseline.get(Operation::BareHyper).map(|counts| counts.instructions)
        };
        let scale = match (differences.is_empty(), bare(before), bare(now)) {
            (false, Some(before), Some(now)) => now / before,
            _ => 1.0,
        };
        let row = |operation: &Operation| {
            let (now, nothing) = (now.get(*operation)?, Counts::default());
            let before = before.get(*operation);
            let known = before.unwrap_or(&nothing);
            Some(Row {
                operation: *operation,
                instructions: now.instructions,
                expected: before.map(|before| before.instructions * scale),
                grown: grown(&known.own, &now.own, scale),
                grown_callers: grown(&known.with_callees, &now.with_callees, scale),
            })
        };
        let rows = Operation::value_variants().iter().filter_map(row).collect();
        Self { differences, scale, rows }
    }

    pub(crate) fn passed(&self) -> bool {
        !self.rows.iter().any(|row| self.failed(row))
    }

    fn allowed(&self) -> f64 {
        if self.differences.is_empty() { ALLOWED } else { ALLOWED_ELSEWHERE }
    }

    /// What hotshelf is compared with may become slower: that is for its authors to see.
    fn failed(&self, row: &Row) -> bool {
        !row.operation.is_reference() && row.change().is_none_or(|change| change > self.allowed())
    }
}

impl Row {
    fn change(&self) -> Option<f64> {
        self.expected.map(|expected| self.instructions / expected - 1.0)
    }
}

fn grown(
    before: &BTreeMap<String, f64>,
    now: &BTreeMap<String, f64>,
    scale: f64,
) -> Vec<(String, f64)> {
    let growth = |(name, now): (&String, &f64)| {
        (name.clone(), now - before.get(name).copied().unwrap_or_default() * scale)
    };
    let mut grown: Vec<_> = now.iter().map(growth).filter(|(_, by)| *by >= 1.0).collect();
    grown.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    grown.truncate(NAMED);
    grown
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.differences.is_empty() {
            writeln!(f, "The baseline was counted elsewhere: {}.", self.differences.join("; "))?;
            writeln!(
                f,
                "So it is scaled by {:.3}, as the bare server here says, and {:.0} % are allowed.\n",
                self.scale,
                100.0 * self.allowed()
            )?;
        }
        writeln!(f, "| operation | instructions | baseline | change |")?;
        writeln!(f, "|---|--:|--:|--:|")?;
        for row in &self.rows {
            let expected = row.expected.map_or("none".to_owned(), |count| format!("{count:.0}"));
            let change = row.change().map_or("-".to_owned(), |by| format!("{:+.2} %", by * 100.0));
            let (name, count) = (row.operation.name(), row.instructions);
            let verdict = if self.failed(row) { " FAILED" } else { "" };
            writeln!(f, "| {name} | {count:.0} | {expected} | {change}{verdict} |")?;
        }
        for row in self.rows.iter().filter(|row| self.failed(row)) {
            writeln!(f, "\n{} takes more, and most of it these functions:", row.operation.name())?;
            list(f, &row.grown)?;
            if !row.grown_callers.is_empty() {
                writeln!(f, "and with what they call:")?;
                list(f, &row.grown_callers)?;
            }
        }
        if !self.passed() {
            writeln!(f, "\nIf that is as it should be: make instructions-bless")?;
        }
        Ok(())
    }
}

fn list(f: &mut fmt::Formatter<'_>, functions: &[(String, f64)]) -> fmt::Result {
    functions.iter().try_for_each(|(name, by)| writeln!(f, "{by:>+10.1}  {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::callgrind::Profile;
    use crate::environment::Environment;

    /// What is counted when GetProduct takes this much in one function, and the bare server that much.
    fn counted(rustc: &str, get_product: u64, bare: u64) -> Baseline {
        let mut baseline = Baseline::new(Environment::of(rustc));
        let operations = Operation::value_variants()
            .iter()
            .filter(|operation| matches!(operation, Operation::GetProduct | Operation::BareHyper));
        for operation in operations {
            let count = if operation.is_reference() { bare } else { get_product };
            let counts =
                [("hotshelf::catalog::get".to_owned(), count * operation.repeats() as u64)];
            let counts = BTreeMap::from(counts);
            let profile = Profile { own: counts.clone(), with_callees: counts };
            baseline.insert(*operation, &profile);
        }
        baseline
    }

    #[test]
    fn more_than_three_percent_fails_and_names_the_function() {
        let before = counted("1", 1_000, 500);
        assert!(Report::new(&before, &counted("1", 1_029, 500)).passed());
        let report = Report::new(&before, &counted("1", 1_040, 500));
        assert!(!report.passed());
        assert!(report.to_string().contains("+40.0  hotshelf::catalog::get"), "{report}");
    }

    #[test]
    fn what_it_is_compared_with_may_grow() {
        assert!(Report::new(&counted("1", 1_000, 500), &counted("1", 1_000, 900)).passed());
    }

    #[test]
    fn elsewhere_only_the_ratio_to_the_bare_server_counts() {
        let before = counted("1", 1_000, 500);
        assert!(Report::new(&before, &counted("2", 1_400, 700)).passed());
        assert!(Report::new(&before, &counted("2", 1_090, 500)).passed());
        let report = Report::new(&before, &counted("2", 1_400, 500));
        assert!(!report.passed());
        assert!(report.to_string().contains("1, here 2"), "{report}");
    }

    #[test]
    fn an_operation_without_a_baseline_fails() {
        let before = Baseline::new(Environment::of("1"));
        assert!(!Report::new(&before, &counted("1", 1_000, 500)).passed());
    }
}
