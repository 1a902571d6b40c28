//! The comparison of counts with the baseline.

use std::collections::BTreeMap;
use std::fmt;

use clap::ValueEnum;

use crate::baseline::{Baseline, Counts};
use crate::operation::Operation;

/// An operation fails if its count exceeds the baseline by a larger share.
const ALLOWED: f64 = 0.03;
/// The same in another environment, where only ratios to the bare server are compared: another compiler or C library
/// changes even those a little.
const ALLOWED_ELSEWHERE: f64 = 0.10;
/// Functions that are listed for a failed operation.
const NAMED: usize = 8;

/// The counts of this run, compared with the baseline.
pub(crate) struct Report {
    /// Between the environments of the baseline and of this run.
    differences: Vec<String>,
    /// Factor of this environment, by the count of the bare server.
    scale: f64,
    rows: Vec<Row>,
}

struct Row {
    operation: Operation,
    instructions: f64,
    expected: Option<f64>,
    /// Functions that take more than in the baseline, and by how much: without and with their callees.
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

    /// A reference server cannot fail.
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
                "So it is scaled by {:.3}, the ratio of the bare server's counts, and {:.0} % are allowed.\n",
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
            writeln!(
                f,
                "\n{} takes more instructions, most of them in these functions:",
                row.operation.name()
            )?;
            list(f, &row.grown)?;
            if !row.grown_callers.is_empty() {
                writeln!(f, "and with their callees:")?;
                list(f, &row.grown_callers)?;
            }
        }
        if !self.passed() {
            writeln!(f, "\nIf the change is worth that, run make instructions-bless.")?;
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

    /// Counts in which GetProduct and the bare server take so many instructions in one function.
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
    fn the_count_of_a_reference_server_may_grow() {
        assert!(Report::new(&counted("1", 1_000, 500), &counted("1", 1_000, 900)).passed());
    }

    #[test]
    fn in_another_environment_only_the_ratio_to_the_bare_server_counts() {
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
