//! Limits the lines of one kind, so that a caller that provokes a warning with each packet does not fill the disk.
//!
//! A kind is the place in the source that logs. The text does not count: it may hold what a caller chose. What an operator
//! asked for by RUST_LOG, debug and trace, is not limited.

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

/// Lines of one kind in one window. Too high: more log under attack. Too low: parts of a real story are left out, such as
/// the restarts of a background task.
const LINES: u32 = 20;
const WINDOW: Duration = Duration::from_secs(10);
/// There are as many kinds as places that log. More would be made up; they count as one.
const MAX_KINDS: usize = 1_024;
/// As much of a line as a report quotes.
const QUOTED: usize = 120;

/// A place in the source. Records of the `log` crate share callsites, so their target and line belong to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Callsite(Option<Identifier>, u64);

#[derive(Debug)]
struct Kind {
    began: Instant,
    lines: u32,
    left_out: u64,
    /// Left out in windows that are over, and not reported yet.
    due: u64,
    /// The first line of the window.
    like: String,
}

/// The kinds of lines so far.
#[derive(Debug, Default)]
pub(super) struct Repeats(Mutex<HashMap<Callsite, Kind>>);

/// Leaves lines out of a subscriber's log.
pub(super) struct RepeatsLayer(Arc<Repeats>);

impl Repeats {
    pub(super) fn layer(self: &Arc<Self>) -> RepeatsLayer {
        RepeatsLayer(Arc::clone(self))
    }

    fn admits(&self, mut place: Callsite, now: Instant, like: impl FnOnce() -> String) -> bool {
        let mut kinds = self.0.lock();
        if kinds.len() >= MAX_KINDS && !kinds.contains_key(&place) {
            place = Callsite(None, 0);
        }
        let kind = kinds.entry(place).or_insert_with(|| Kind::new(now));
        if now.saturating_duration_since(kind.began) >= WINDOW {
            kind.due += std::mem::take(&mut kind.left_out);
            (kind.began, kind.lines) = (now, 0);
        }
        kind.lines = kind.lines.saturating_add(1);
        match kind.lines {
            1 => kind.like = like(),
            2..=LINES => {}
            _ => {
                kind.left_out += 1;
                return false;
            }
        }
        true
    }

    /// One line for each kind of which lines were left out in a window that is over.
    pub(super) fn report(&self, now: Instant) {
        self.report_if(|kind| now.saturating_duration_since(kind.began) >= WINDOW);
    }

    /// The same, also for windows that are not over: nothing is logged after this.
    pub(super) fn report_all(&self) {
        self.report_if(|_| true);
    }

    fn report_if(&self, over: impl Fn(&Kind) -> bool) {
        let due = |kind: &mut Kind| {
            if over(kind) {
                kind.due += std::mem::take(&mut kind.left_out);
            }
            let lines = std::mem::take(&mut kind.due);
            (lines > 0).then(|| (lines, kind.like.clone()))
        };
        // Not under the lock: a report is an event, too.
        let reports: Vec<_> = self.0.lock().values_mut().filter_map(due).collect();
        for (lines, like) in reports {
            tracing::warn!(lines, like, "lines of one kind were left out of the log");
        }
    }
}

impl Kind {
    fn new(began: Instant) -> Self {
        Self { began, lines: 0, left_out: 0, due: 0, like: String::new() }
    }
}

impl<S: Subscriber> Layer<S> for RepeatsLayer {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        // Reports are one for each kind and window.
        if *metadata.level() > Level::INFO || metadata.target() == module_path!() {
            return true;
        }
        let mut record = LogRecord::default();
        if metadata.target() == "log" {
            event.record(&mut record);
        }
        let place = Callsite(Some(metadata.callsite()), record.0.finish());
        let like = || {
            let mut quote = Quote(format!("{}: ", metadata.target()));
            event.record(&mut quote);
            quote.0
        };
        self.0.admits(place, Instant::now(), like)
    }
}

/// Where a record of the `log` crate comes from.
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

/// The beginning of a line's message.
struct Quote(String);

impl Visit for Quote {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            // A String takes all that is written to it.
            let _ = write!(self.0, "{value:?}");
            self.0.truncate(self.0.floor_char_boundary(QUOTED));
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

    /// What `work` logs, with all levels on.
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
    fn lines_of_one_kind_are_limited_and_counted_whatever_they_say() {
        let written = logged(|repeats| {
            for attempt in 0..10_000 {
                tracing::warn!("a packet of {attempt} that was not asked for");
            }
            tracing::warn!("something else");
            repeats.report(Instant::now());
            assert_eq!(repeats.0.lock().len(), 2);
            repeats.report(Instant::now() + WINDOW);
        });
        assert_eq!(written.lines_with("that was not asked for"), 20 + 1);
        assert_eq!(written.lines_with("something else"), 1);
        let report = "left out of the log lines=9980 like=\"hotshelf::logging::repeats::tests: a packet of 0";
        assert_eq!(written.lines_with(report), 1);
    }

    #[test]
    fn a_flood_that_goes_on_is_reported_for_each_window() {
        let repeats = Repeats::default();
        let (began, place) = (Instant::now(), Callsite(None, 1));
        let admitted = |at: Duration| {
            let admits = || repeats.admits(place.clone(), began + at, String::new);
            (0..100).filter(|_| admits()).count()
        };
        assert_eq!(admitted(Duration::ZERO), 20);
        assert_eq!(admitted(WINDOW / 2), 0);
        assert_eq!(admitted(WINDOW), 20);
        let due = repeats.0.lock()[&place].due;
        assert_eq!(due, 180);
    }

    #[test]
    fn what_an_operator_asked_for_is_not_limited() {
        let written = logged(|_| {
            for _ in 0..100 {
                tracing::debug!("a detail");
            }
        });
        assert_eq!(written.lines_with("a detail"), 100);
    }

    #[test]
    fn made_up_kinds_take_bounded_memory() {
        let repeats = Repeats::default();
        for made_up in 0..10_000 {
            repeats.admits(Callsite(None, made_up + 1), Instant::now(), String::new);
        }
        assert_eq!(repeats.0.lock().len(), MAX_KINDS + 1);
    }
}
