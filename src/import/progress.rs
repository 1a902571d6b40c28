//! The output of an import on standard error: a progress bar on a terminal, and the bad rows.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use indicatif::{HumanCount, ProgressBar, ProgressStyle};

/// Bad rows that are printed; further ones are only counted.
const PRINTED: u64 = 20;
/// Rows between updates of the bar.
const STRIDE: u64 = 1024;

/// A progress bar on standard error, which shows only on a terminal.
pub(super) struct Progress {
    bar: ProgressBar,
    started: Instant,
    rows: u64,
    left_out: u64,
}

impl Progress {
    pub(super) fn start() -> Self {
        let bar = ProgressBar::new_spinner().with_style(style("{spinner} {bytes}  {msg}"));
        Self { bar, started: Instant::now(), rows: 0, left_out: 0 }
    }

    /// The size of the file in bytes, if it is known.
    pub(super) fn size(&self, size: Option<u64>) {
        if let Some(size) = size {
            self.bar.set_length(size);
            self.bar.set_style(style("{wide_bar} {percent:>3}%  {msg}  {eta} left"));
        }
    }

    /// Records a row; `bytes` of the file were read so far.
    pub(super) fn row(&mut self, bytes: u64) {
        self.rows += 1;
        if self.rows.is_multiple_of(STRIDE) {
            let rate = per_second(self.rows, self.elapsed());
            self.bar.set_message(format!("{} rows, {rate}/s", HumanCount(self.rows)));
            self.bar.set_position(bytes);
        }
    }

    pub(super) fn left_out(&mut self, why: &str) {
        self.left_out += 1;
        if self.left_out <= PRINTED {
            self.print(&format!("left out: {why}"));
        } else if self.left_out == PRINTED + 1 {
            self.print("more bad rows are left out, and only counted");
        }
    }

    /// All rows were read, and Postgres writes them to the table.
    pub(super) fn merging(&self) {
        let good = HumanCount(self.rows - self.left_out);
        self.bar.set_style(style("{spinner} {msg}  {elapsed}"));
        self.bar.set_message(format!("writing {good} rows to products"));
        self.bar.enable_steady_tick(Duration::from_millis(100));
    }

    /// Rows that were read, bad ones included.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    pub(super) fn rows_left_out(&self) -> u64 {
        self.left_out
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    pub(super) fn print(&self, line: &str) {
        // A closed standard error must not fail the import.
        self.bar.suspend(|| writeln!(io::stderr(), "hotshelf: {line}").ok());
    }
}

pub(super) fn per_second(rows: u64, elapsed: Duration) -> HumanCount {
    HumanCount((rows as f64 / elapsed.as_secs_f64().max(0.001)).round() as u64)
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates above are valid")
}
