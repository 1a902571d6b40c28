//! Reports callers that were refused because a limit was reached: one rate-limited log line for each reason, and the most
//! refused addresses or names on `/callers`. They are not metric labels, because clients could create series without bound.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::metrics::{Metrics, Shed};

/// Minimum time between two log lines for one reason. Too high: the operator sees an overload late. Too low: overload fills
/// the log.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// Length of a counting window. `/callers` shows the current window and the one before it.
const WINDOW: Duration = Duration::from_secs(60);
/// Callers counted at once. A further caller replaces the one with the lowest count and takes over that count (Space-Saving:
/// Metwally et al., ICDT 2005), so the most refused callers are always among those counted.
const MAX_CALLERS: usize = 256;
/// Callers listed on `/callers`.
const SHOWN: usize = 10;

/// The refusals of one instance.
#[derive(Debug)]
pub struct Refusals {
    metrics: Arc<Metrics>,
    log: [Mutex<LogLimit>; Shed::COUNT],
    callers: Mutex<Callers>,
}

/// Limits the log lines for one reason.
#[derive(Debug, Default)]
struct LogLimit {
    last: Option<Instant>,
    /// Refused since `last`.
    refused: u64,
}

#[derive(Debug, Default)]
struct Callers {
    began: Option<Instant>,
    current: HashMap<String, u64>,
    previous: HashMap<String, u64>,
}

impl Refusals {
    #[must_use]
    pub fn new(metrics: &Arc<Metrics>) -> Arc<Self> {
        let (log, callers) = (Default::default(), Mutex::default());
        Arc::new(Self { metrics: Arc::clone(metrics), log, callers })
    }

    /// Records that `peer` was refused a call, a stream or the connection itself. `name` is the caller's identity, if known;
    /// otherwise it is counted by address.
    pub fn record(&self, peer: SocketAddr, name: Option<&str>, reason: Shed) {
        self.metrics.shed.inc(reason);
        let now = Instant::now();
        let caller = name.map_or_else(|| peer.ip().to_canonical().to_string(), str::to_owned);
        self.callers.lock().count(&caller, now);
        let Some(refused) = self.log[reason as usize].lock().count(now) else { return };
        let reason = reason.name();
        tracing::warn!(
            reason, %peer, caller, refused,
            "refused to stay within limits; /callers on the admin port lists the most refused"
        );
    }

    /// The callers refused most in the last one to two minutes, one line each: the count and the caller. Names are escaped,
    /// because clients choose them.
    #[must_use]
    pub fn most_refused(&self) -> String {
        self.ranked().iter().map(|(count, caller)| format!("{count} {caller}\n")).collect()
    }

    /// The same as pairs of count and escaped name.
    #[must_use]
    pub fn ranked(&self) -> Vec<(u64, String)> {
        let ranked = self.callers.lock().ranked(Instant::now());
        let shown = ranked.into_iter().take(SHOWN);
        shown.map(|(caller, count)| (count, caller.escape_debug().to_string())).collect()
    }
}

impl LogLimit {
    /// Counts a refusal. Returns how many there were since the last line when another line is due.
    fn count(&mut self, now: Instant) -> Option<u64> {
        self.refused += 1;
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < LINE_INTERVAL) {
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.refused))
    }
}

impl Callers {
    fn count(&mut self, caller: &str, now: Instant) {
        self.rotate(now);
        if let Some(count) = self.current.get_mut(caller) {
            *count += 1;
            return;
        }
        let mut count = 0;
        if self.current.len() >= MAX_CALLERS {
            let least = self.current.iter().min_by_key(|(_, count)| **count);
            let Some((least, of_least)) = least.map(|(least, count)| (least.clone(), *count))
            else {
                return;
            };
            self.current.remove(&least);
            count = of_least;
        }
        self.current.insert(caller.to_owned(), count + 1);
    }

    /// Drops counts of windows that are over.
    fn rotate(&mut self, now: Instant) {
        let age = now.saturating_duration_since(*self.began.get_or_insert(now));
        if age >= WINDOW {
            self.previous = std::mem::take(&mut self.current);
            self.began = Some(now);
        }
        if age >= 2 * WINDOW {
            self.previous.clear();
        }
    }

    fn ranked(&mut self, now: Instant) -> Vec<(String, u64)> {
        self.rotate(now);
        let mut counts = self.current.clone();
        for (caller, count) in &self.previous {
            *counts.entry(caller.clone()).or_default() += count;
        }
        let mut ranked: Vec<_> = counts.into_iter().collect();
        ranked.sort_unstable_by(|(a, of_a), (b, of_b)| of_b.cmp(of_a).then_with(|| a.cmp(b)));
        ranked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(number: u32) -> String {
        std::net::Ipv4Addr::from_bits(number).to_string()
    }

    #[test]
    fn the_most_refused_caller_is_found_among_any_number() {
        let (mut callers, now) = (Callers::default(), Instant::now());
        for number in 0..100_000 {
            callers.count(&caller(1_000 + number), now);
            if number % 50 == 0 {
                callers.count(&caller(7), now);
            }
        }
        assert_eq!(callers.current.len(), MAX_CALLERS);
        assert_eq!(callers.ranked(now)[0].0, caller(7));
    }

    #[test]
    fn counts_are_dropped_after_two_windows() {
        let (mut callers, now) = (Callers::default(), Instant::now());
        callers.count("storefront", now);
        assert_eq!(callers.ranked(now + WINDOW), [("storefront".to_owned(), 1)]);
        assert_eq!(callers.ranked(now + 2 * WINDOW), []);
        callers.count("storefront", now + 2 * WINDOW);
        assert_eq!(callers.ranked(now + 5 * WINDOW), []);
    }

    #[test]
    fn one_line_in_an_interval_has_the_count_since_the_last_line() {
        let (mut log, now) = (LogLimit::default(), Instant::now());
        assert_eq!(log.count(now), Some(1));
        assert_eq!((0..100).find_map(|_| log.count(now + LINE_INTERVAL / 2)), None);
        assert_eq!(log.count(now + LINE_INTERVAL), Some(101));
    }
}
