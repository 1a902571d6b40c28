//! Callers that were refused to stay within limits: a line of the log for each reason from time to time, and the addresses
//! that were refused most, for `/callers`. No metric has addresses as labels: clients would add series without bound.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::metrics::{Metrics, Shed};

/// Between two lines for one reason. Too high: an operator hears late of it. Too low: log under overload.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// Addresses are counted for so long, and shown for as long again.
const WINDOW: Duration = Duration::from_secs(60);
/// Addresses that are counted; one more takes the place and the count of the least (the Space-Saving algorithm: Metwally et
/// al., ICDT 2005), so that those that are refused most are among them.
const MAX_ADDRESSES: usize = 256;
/// Addresses that are shown.
const SHOWN: usize = 10;

/// The refusals of one instance.
#[derive(Debug)]
pub struct Refusals {
    metrics: Arc<Metrics>,
    lines: [Mutex<Line>; Shed::COUNT],
    addresses: Mutex<Addresses>,
}

/// What the log says of one reason.
#[derive(Debug, Default)]
struct Line {
    last: Option<Instant>,
    /// Refused since then.
    refused: u64,
}

#[derive(Debug, Default)]
struct Addresses {
    began: Option<Instant>,
    current: HashMap<IpAddr, u64>,
    previous: HashMap<IpAddr, u64>,
}

impl Refusals {
    /// Of an instance with these metrics.
    #[must_use]
    pub fn new(metrics: &Arc<Metrics>) -> Arc<Self> {
        let (lines, addresses) = (Default::default(), Mutex::default());
        Arc::new(Self { metrics: Arc::clone(metrics), lines, addresses })
    }

    /// `peer` was refused a call, a stream or the connection itself.
    pub fn note(&self, peer: SocketAddr, reason: Shed) {
        self.metrics.shed.inc(reason);
        let now = Instant::now();
        self.addresses.lock().count(peer.ip().to_canonical(), now);
        let Some(refused) = self.lines[reason as usize].lock().count(now) else { return };
        let reason = reason.name();
        tracing::warn!(
            reason, %peer, refused,
            "refused to stay within limits; /callers on the admin port has the addresses that were refused most"
        );
    }

    /// A line for each of the addresses that were refused most in the last one to two minutes: how often, and which.
    #[must_use]
    pub fn most_refused(&self) -> String {
        let ranked = self.addresses.lock().ranked(Instant::now());
        ranked.iter().take(SHOWN).map(|(address, count)| format!("{count} {address}\n")).collect()
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

impl Addresses {
    fn count(&mut self, address: IpAddr, now: Instant) {
        self.turn(now);
        if self.current.len() >= MAX_ADDRESSES && !self.current.contains_key(&address) {
            let least = self.current.iter().min_by_key(|(_, count)| **count);
            let Some((least, count)) = least.map(|(least, count)| (*least, *count)) else { return };
            self.current.remove(&least);
            self.current.insert(address, count);
        }
        *self.current.entry(address).or_default() += 1;
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

    fn ranked(&mut self, now: Instant) -> Vec<(IpAddr, u64)> {
        self.turn(now);
        let mut counts = self.current.clone();
        for (address, count) in &self.previous {
            *counts.entry(*address).or_default() += count;
        }
        let mut ranked: Vec<_> = counts.into_iter().collect();
        ranked.sort_unstable_by_key(|(address, count)| (std::cmp::Reverse(*count), *address));
        ranked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(number).into()
    }

    #[test]
    fn the_most_refused_are_known_among_any_number() {
        let (mut addresses, now) = (Addresses::default(), Instant::now());
        for number in 0..100_000 {
            addresses.count(address(1_000 + number), now);
            if number % 50 == 0 {
                addresses.count(address(7), now);
            }
        }
        assert_eq!(addresses.current.len(), MAX_ADDRESSES);
        assert_eq!(addresses.ranked(now)[0].0, address(7));
    }

    #[test]
    fn addresses_that_are_not_refused_any_more_are_forgotten() {
        let (mut addresses, now) = (Addresses::default(), Instant::now());
        addresses.count(address(7), now);
        assert_eq!(addresses.ranked(now + WINDOW), [(address(7), 1)]);
        assert_eq!(addresses.ranked(now + 2 * WINDOW), []);
        addresses.count(address(7), now + 2 * WINDOW);
        assert_eq!(addresses.ranked(now + 5 * WINDOW), []);
    }

    #[test]
    fn one_line_in_an_interval_says_how_many_there_were() {
        let (mut line, now) = (Line::default(), Instant::now());
        assert_eq!(line.count(now), Some(1));
        assert_eq!((0..100).find_map(|_| line.count(now + LINE_INTERVAL / 2)), None);
        assert_eq!(line.count(now + LINE_INTERVAL), Some(101));
    }
}
