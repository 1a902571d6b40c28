//! Measures how late a sleeping thread wakes: evidence of a busy machine, independent of the code under test.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const SLEEP: Duration = Duration::from_millis(10);
/// A machine whose threads wake later than this is too busy for assertions in tenths of a second.
const TOO_LONG: Duration = Duration::from_millis(250);

/// Measures until it is dropped.
pub struct StallMeter {
    longest: Arc<AtomicU64>,
    stopped: Arc<AtomicBool>,
}

impl StallMeter {
    pub fn start() -> Self {
        let (longest, stopped) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (meter, end) = (Arc::clone(&longest), Arc::clone(&stopped));
        std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let began = Instant::now();
                std::thread::sleep(SLEEP);
                let late = began.elapsed().saturating_sub(SLEEP).as_micros();
                meter.fetch_max(late.try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
            }
        });
        Self { longest, stopped }
    }

    /// The evidence that the machine is too busy, if it is.
    pub fn too_long(&self) -> Option<String> {
        let longest = self.longest();
        (longest > TOO_LONG).then(|| format!("a thread that slept was {longest:?} late"))
    }

    /// The longest delay until now.
    pub fn longest(&self) -> Duration {
        Duration::from_micros(self.longest.load(Ordering::Relaxed))
    }
}

impl Drop for StallMeter {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}
