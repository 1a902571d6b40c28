//! The log: lines to standard error that neither a reader which does not read nor a caller which provokes warnings can
//! turn against the service.
//!
//! A thread of its own writes the lines. The queue to it is bounded; lines that do not fit are dropped and counted.
//! Lines of one kind are limited (`repeats.rs`).

mod repeats;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::convert::Infallible;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::metrics::Metrics;
use repeats::Repeats;

/// Lines that wait to be written, of a few hundred bytes each. Too high: memory while the log is not read. Too low: a
/// reader that pauses loses lines.
const QUEUED_LINES: usize = 8_192;
/// Between two looks at what was left out or dropped.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The process' log. Dropping it writes out what is queued, and waits a second for a reader at most.
#[derive(Debug)]
pub struct Log {
    repeats: Arc<Repeats>,
    writer: NonBlocking,
    _written_out: WorkerGuard,
}

impl Log {
    /// From now on all events that `filter` lets pass, and panics, are written to standard error.
    ///
    /// # Panics
    /// When there is a log already.
    #[must_use]
    pub fn start(filter: EnvFilter, colours: bool) -> Self {
        let (writer, written_out) = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(QUEUED_LINES)
            .thread_name("log")
            .finish(std::io::stderr());
        let repeats = Arc::new(Repeats::default());
        let lines = tracing_subscriber::fmt::layer().with_ansi(colours).with_writer(writer.clone());
        tracing_subscriber::registry().with(filter).with(lines).with(repeats.layer()).init();
        log_panics();
        Self { repeats, writer, _written_out: written_out }
    }

    /// Writes a line of the program itself, behind the events so far.
    pub fn say(&self, line: &str) {
        // In one piece: each write is a line of the queue.
        let line = format!("hotshelf: {line}\n");
        // The queue takes it or drops it.
        let _ = self.writer.clone().write_all(line.as_bytes());
    }

    /// Reports what was left out, until it is dropped.
    pub async fn keep_reporting(&self) -> Infallible {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            self.repeats.report(Instant::now());
        }
    }

    /// Counts the lines that were dropped because the queue was full, until it is dropped.
    pub async fn keep_counting(&self, metrics: &Metrics) -> Infallible {
        let (dropped, mut counted) = (self.writer.error_counter(), 0);
        loop {
            let now = dropped.dropped_lines();
            metrics.log_lines_dropped.add((), (now - counted) as u64);
            counted = now;
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.repeats.report_all();
    }
}

/// The standard hook writes to standard error itself, and blocks while the pipe is full.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or("without a message");
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let backtrace = Backtrace::capture();
        match backtrace.status() {
            BacktraceStatus::Captured => {
                tracing::error!(reason = message, %place, %backtrace, "a thread panicked");
            }
            _ => tracing::error!(reason = message, %place, "a thread panicked"),
        }
    }));
}
