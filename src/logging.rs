//! The log, written to standard error. It does not block the service:
//!
//! - A dedicated thread writes the lines. Its queue is bounded, so a full pipe does not block callers; lines that do not fit
//!   are dropped and counted.
//! - Lines from one place in the source are rate-limited (`repeats.rs`), so a client that provokes warnings cannot fill the
//!   disk.

mod json;
mod repeats;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::convert::Infallible;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::Level;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::metrics::Metrics;
use json::JsonLines;
use repeats::Repeats;

/// Queued lines, of a few hundred bytes each. Too high: memory while standard error is not read. Too low: a short pause of
/// the reader loses lines.
const QUEUED_LINES: usize = 8_192;
/// How often suppressed and dropped lines are reported.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object in each line.
    Json,
}

/// The log of the process. Dropping it flushes the queue, and waits at most one second for standard error to take the lines.
#[derive(Debug)]
pub struct Log {
    repeats: Arc<Repeats>,
    writer: NonBlocking,
    format: LogFormat,
    /// Flushes the queue on drop.
    _worker: WorkerGuard,
}

impl Log {
    /// Starts to log panics, and the events that pass `filter`.
    ///
    /// # Panics
    /// When the process has a global subscriber already.
    #[must_use]
    pub fn start(filter: Targets, format: LogFormat, colours: bool) -> Self {
        let (writer, worker) = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(QUEUED_LINES)
            .thread_name("log")
            .finish(std::io::stderr());
        let repeats = Arc::new(Repeats::default());
        let text =
            || tracing_subscriber::fmt::layer().with_ansi(colours).with_writer(writer.clone());
        let text = (format == LogFormat::Text).then(text);
        let json = (format == LogFormat::Json).then(|| JsonLines(writer.clone()));
        let lines = tracing_subscriber::registry().with(filter).with(text).with(json);
        lines.with(repeats.layer()).init();
        log_panics();
        Self { repeats, writer, format, _worker: worker }
    }

    /// Writes a plain line, after all events so far.
    ///
    /// `level` is for the log in JSON.
    pub fn write_line(&self, level: Level, line: &str) {
        // One write, because each write is one line of the queue.
        let line = match self.format {
            LogFormat::Text => format!("hotshelf: {line}\n"),
            LogFormat::Json => json::plain(level, line),
        };
        // Never fails: the queue takes the line or drops it.
        let _ = self.writer.clone().write_all(line.as_bytes());
    }

    /// Reports suppressed lines; runs until it is dropped.
    pub async fn report_loop(&self) -> Infallible {
        loop {
            tokio::time::sleep(REPORT_INTERVAL).await;
            self.repeats.report(Instant::now());
        }
    }

    /// Counts the lines that were dropped because the queue was full; runs until it is dropped.
    pub async fn count_loop(&self, metrics: &Metrics) -> Infallible {
        let (counter, mut counted) = (self.writer.error_counter(), 0);
        loop {
            let dropped = counter.dropped_lines();
            metrics.log_lines_dropped.add((), (dropped - counted) as u64);
            counted = dropped;
            tokio::time::sleep(REPORT_INTERVAL).await;
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.repeats.report_all();
    }
}

/// Replaces the standard hook, which writes to standard error itself and blocks while the pipe is full.
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
