//! Callers that were refused to stay within limits: a line of the log for each reason from time to time, and the addresses
//! or names that were refused most, for `/callers`. No metric has them as labels: clients would add series without bound.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::metrics::{Metrics, Shed};

/// Between two lines for one reason. Too high: an operator hears late of it. Too low: log under overload.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// Callers are counted for so long, and shown for as long again.
const WINDOW: Duration = Duration::from_secs(60);
/// Callers that are counted; one more takes the place and the count of the least (the Space-Saving algorithm: Metwally et
/// al., ICDT 2005), so that those that are refused most are among them.
const MAX_CALLERS: usize = 256;
/// Callers that are shown.
const SHOWN: usize = 10;

/// The refusals of one instance.
#[derive(Debug)]
pub struct Refusals {
    metrics: Arc<Metrics>,
    lines: [Mutex<Line>; Shed::COUNT],
    callers: Mutex<Callers>,
}

/// What the log says of one reason.
#[derive(Debug, Default)]
struct Line {
    last: Option<Instant>,
    /// Refused since then.
    refused: u64,
}

#[derive(Debug, Default)]
struct Callers {
    began: Option<Instant>,
    current: HashMap<String, u64>,
    previous: HashMap<String, u64>,
}

impl Refusals {
    /// Of an instance with these metrics.
    #[must_use]
    pub fn new(metrics: &Arc<Metrics>) -> Arc<Self> {
        let (lines, callers) = (Default::default(), Mutex::default());
        Arc::new(Self { metrics: Arc::clone(metrics), lines, callers })
    }

    /// `peer` was refused a call, a stream or the connection itself; `name` is what the caller is known by, if it is.
    pub fn note(&self, peer: SocketAddr, name: Option<&str>, reason: Shed) {
        self.metrics.shed.inc(reason);
        let now = Instant::now();
        let caller = name.map_or_else(|| peer.ip().to_canonical().to_string(), str::to_owned);
        self.callers.lock().count(&caller, now);
        let Some(refused) = self.lines[reason as usize].lock().count(now) else { return };
        let reason = reason.name();
        tracing::warn!(
            reason, %peer, caller, refused,
            "refused to stay within limits; /callers on the admin port has those that were refused most"
        );
    }

    /// A line for each of the callers that were refused most in the last one to two minutes: how often, and which.
    #[must_use]
    pub fn most_refused(&self) -> String {
        let ranked = self.callers.lock().ranked(Instant::now());
        ranked
            .iter()
            .take(SHOWN)
            .map(|(caller, count)| format!("{count} {}\n", caller.escape_debug()))
            .collect()
    }
}

impl Line {
    /// How many were refused since the last line, when it is time for another.
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
        self.turn(now);
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

    /// Forgets what is over.
    fn turn(&mut self, now: Instant) {
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
        self.turn(now);
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
    fn the_most_refused_are_known_among_any_number() {
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
    fn callers_that_are_not_refused_any_more_are_forgotten() {
        let (mut callers, now) = (Callers::default(), Instant::now());
        callers.count("shop", now);
        assert_eq!(callers.ranked(now + WINDOW), [("shop".to_owned(), 1)]);
        assert_eq!(callers.ranked(now + 2 * WINDOW), []);
        callers.count("shop", now + 2 * WINDOW);
        assert_eq!(callers.ranked(now + 5 * WINDOW), []);
    }

    #[test]
    fn one_line_in_an_interval_says_how_many_there_were() {
        let (mut line, now) = (Line::default(), Instant::now());
        assert_eq!(line.count(now), Some(1));
        assert_eq!((0..100).find_map(|_| line.count(now + LINE_INTERVAL / 2)), None);
        assert_eq!(line.count(now + LINE_INTERVAL), Some(101));
    }
}
