//! Limits repeated log lines, so that a client that provokes a warning with each packet cannot fill the disk.
//!
//! Lines are counted by callsite. The text is not part of the key, because clients can choose parts of it. Debug and trace
//! lines, which an operator enables with RUST_LOG, are not limited.

use std::collections::HashMap;
use std::fmt::{Debug, Write};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Lines of one callsite in one window. Too high: more log under attack. Too low: lines of a real incident are suppressed,
/// such as the restarts of a background task.
const MAX_LINES: u32 = 20;
const WINDOW: Duration = Duration::from_secs(10);
/// Bounds the memory. The program has fewer callsites; further ones share one counter.
const MAX_CALLSITES: usize = 1_024;
/// A report quotes at most this many bytes of a line.
const MAX_QUOTE: usize = 120;

/// A place in the source. All records of the `log` crate share a few callsites, so the hash of their target and line is part
/// of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Callsite(Option<Identifier>, u64);

#[derive(Debug)]
struct Window {
    began: Instant,
    lines: u32,
    suppressed: u64,
    /// Suppressed in earlier windows and not reported yet.
    unreported: u64,
    /// Quotes the first line of the window.
    example: String,
}

/// The current window of each callsite.
#[derive(Debug, Default)]
pub(super) struct Repeats(Mutex<HashMap<Callsite, Window>>);

/// Suppresses the lines of a subscriber that are above the limit.
pub(super) struct RepeatsLayer(Arc<Repeats>);

impl Repeats {
    pub(super) fn layer(self: &Arc<Self>) -> RepeatsLayer {
        RepeatsLayer(Arc::clone(self))
    }

    fn admits(&self, mut site: Callsite, now: Instant, quote: impl FnOnce() -> String) -> bool {
        let mut windows = self.0.lock();
        if windows.len() >= MAX_CALLSITES && !windows.contains_key(&site) {
            site = Callsite(None, 0);
        }
        let window = windows.entry(site.clone()).or_insert_with(|| Window::new(now));
        if now.saturating_duration_since(window.began) >= WINDOW {
            window.unreported += std::mem::take(&mut window.suppressed);
            (window.began, window.lines) = (now, 0);
        }
        window.lines = window.lines.saturating_add(1);
        if window.lines > MAX_LINES {
            window.suppressed += 1;
            return false;
        }
        if window.lines == 1 {
            drop(windows);
            // Without the lock, because formatting a field may take long, or log.
            let example = quote();
            if let Some(window) = self.0.lock().get_mut(&site) {
                window.example = example;
            }
        }
        true
    }

    /// Logs one line for each callsite that had lines suppressed in a window that is over.
    pub(super) fn report(&self, now: Instant) {
        self.report_if(|window| now.saturating_duration_since(window.began) >= WINDOW);
    }

    /// Also reports windows that are not over; called when nothing more will be logged.
    pub(super) fn report_all(&self) {
        self.report_if(|_| true);
    }

    fn report_if(&self, over: impl Fn(&Window) -> bool) {
        let report = |window: &mut Window| {
            if over(window) {
                window.unreported += std::mem::take(&mut window.suppressed);
            }
            let lines = std::mem::take(&mut window.unreported);
            (lines > 0).then(|| (lines, window.example.clone()))
        };
        // Collected first, so that nothing is logged under the lock.
        let reports: Vec<_> = self.0.lock().values_mut().filter_map(report).collect();
        for (lines, like) in reports {
            tracing::warn!(lines, like, "repeated lines were left out of the log");
        }
    }
}

impl Window {
    fn new(began: Instant) -> Self {
        Self { began, lines: 0, suppressed: 0, unreported: 0, example: String::new() }
    }
}

impl<S: Subscriber> Layer<S> for RepeatsLayer {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        // The reports below are limited to one for each callsite and window.
        if *metadata.level() > Level::INFO || metadata.target() == module_path!() {
            return true;
        }
        let mut record = LogRecord::default();
        if metadata.target() == "log" {
            event.record(&mut record);
        }
        let site = Callsite(Some(metadata.callsite()), record.0.finish());
        let quote = || {
            let mut quote = Quote(format!("{}: ", metadata.target()));
            event.record(&mut quote);
            quote.0
        };
        self.0.admits(site, Instant::now(), quote)
    }
}

/// Hashes the target and the line of a record of the `log` crate.
#[derive(Default)]
struct LogRecord(DefaultHasher);

impl Visit for LogRecord {
    fn record_debug(&mut self, _: &Field, _: &dyn Debug) {}

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "log.target" {
            value.hash(&mut self.0);
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "log.line" {
            value.hash(&mut self.0);
        }
    }
}

/// The beginning of an event's message.
struct Quote(String);

impl Visit for Quote {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            // Writing to a String never fails.
            let _ = write!(self.0, "{value:?}");
            self.0.truncate(self.0.floor_char_boundary(MAX_QUOTE));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Written {
        fn lines_with(&self, word: &str) -> usize {
            String::from_utf8_lossy(&self.0.lock()).lines().filter(|l| l.contains(word)).count()
        }
    }

    /// The lines that `work` logs, with all levels on.
    fn logged(work: impl FnOnce(&Repeats)) -> Written {
        let (written, repeats) = (Written::default(), Arc::new(Repeats::default()));
        let writer = written.clone();
        let lines =
            tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || writer.clone());
        let subscriber = tracing_subscriber::registry().with(lines).with(repeats.layer());
        tracing::subscriber::with_default(subscriber, || work(&repeats));
        written
    }

    #[test]
    fn lines_of_one_callsite_are_limited_and_counted_whatever_their_text() {
        let written = logged(|repeats| {
            for attempt in 0..10_000 {
                tracing::warn!("an unexpected packet: {attempt}");
            }
            tracing::warn!("something else");
            repeats.report(Instant::now());
            assert_eq!(repeats.0.lock().len(), 2);
            repeats.report(Instant::now() + WINDOW);
        });
        assert_eq!(written.lines_with("an unexpected packet"), 20 + 1);
        assert_eq!(written.lines_with("something else"), 1);
        let report = "left out of the log lines=9980 like=\"hotshelf::logging::repeats::tests: an unexpected packet: 0";
        assert_eq!(written.lines_with(report), 1);
    }

    #[test]
    fn a_lasting_flood_is_reported_for_each_window() {
        let repeats = Repeats::default();
        let (began, site) = (Instant::now(), Callsite(None, 1));
        let admitted = |at: Duration| {
            let admits = || repeats.admits(site.clone(), began + at, String::new);
            (0..100).filter(|_| admits()).count()
        };
        assert_eq!(admitted(Duration::ZERO), 20);
        assert_eq!(admitted(WINDOW / 2), 0);
        assert_eq!(admitted(WINDOW), 20);
        let unreported = repeats.0.lock()[&site].unreported;
        assert_eq!(unreported, 180);
    }

    /// Formatting the fields of an event may take long, or log.
    #[test]
    fn a_line_is_quoted_without_the_lock() {
        let (repeats, now) = (Repeats::default(), Instant::now());
        let quote = || {
            let free = repeats.0.try_lock().is_some();
            assert!(free, "a field that logs would wait for this line for ever");
            "quoted".to_owned()
        };
        assert!(repeats.admits(Callsite(None, 1), now, quote));
        assert_eq!(repeats.0.lock()[&Callsite(None, 1)].example, "quoted");
    }

    #[test]
    fn debug_lines_are_not_limited() {
        let written = logged(|_| {
            for _ in 0..100 {
                tracing::debug!("a detail");
            }
        });
        assert_eq!(written.lines_with("a detail"), 100);
    }

    #[test]
    fn any_number_of_callsites_takes_bounded_memory() {
        let repeats = Repeats::default();
        for number in 0..10_000 {
            repeats.admits(Callsite(None, number + 1), Instant::now(), String::new);
        }
        assert_eq!(repeats.0.lock().len(), MAX_CALLSITES + 1);
    }
}
