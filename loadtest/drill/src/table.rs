//! Results of drills as a table in Markdown.

use std::fmt;

use checker::history::Micros;

use crate::figures::Rate;
use crate::run::DrillResult;

const HEAD: &str = "\
| fault | failed reads of cached products | failed reads | failed updates | p99 before | p99 during | slowest read | \
recovered after | loads in Postgres | most at once | violations |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|";

#[derive(Debug)]
pub struct Table<'a>(pub &'a [DrillResult]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEAD}")?;
        self.0.iter().try_for_each(|drilled| writeln!(f, "{}", Line(drilled)))
    }
}

#[derive(Debug)]
pub struct Line<'a>(pub &'a DrillResult);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DrillResult { fault, figures, .. } = self.0;
        let recovered = figures.recovered.map_or("never".to_owned(), |time| Ms(time).to_string());
        write!(
            f,
            "| {}: {} | {} | {} | {} | {} | {} | {} | {recovered} | {:.0}/s | {} | {} |",
            fault.name,
            fault.what,
            Failed(figures.cached_reads),
            Failed(figures.reads),
            Failed(figures.updates),
            Ms(figures.p99_before),
            Ms(figures.p99_during),
            Ms(figures.slowest),
            figures.database.loads_per_second,
            figures.database.most_running,
            figures.violations.len(),
        )
    }
}

struct Failed(Rate);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.0.failed, self.0.all)
    }
}

/// Milliseconds with one decimal.
struct Ms(Micros);

impl fmt::Display for Ms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{} ms", self.0 / 1_000, self.0 % 1_000 / 100)
    }
}
