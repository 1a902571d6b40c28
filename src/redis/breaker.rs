//! Circuit breakers: after too many failures, callers' commands are refused until a probe succeeds.
//!
//! A leaky bucket counts: a failure fills it by as much as ten replies in time drain, so the breaker trips after a few failures
//! in a row, and also when a tenth of the commands fails for long. Late replies are failures, too, but those that overlap in time
//! count as one, because a pause of this process makes them all late.
//! The breaker has no clock: a loop sends the probes, one at a time, and no caller's command serves as one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::metrics::{BreakerMove, BreakerState, Metrics, RedisDependency};

/// A failure adds this much; a reply in time subtracts 1.
const FAILURE: u32 = 10;
/// Five failures in a row. Too high: more callers wait for a failed server. Too low: a short delay sends reads to Postgres.
const TRIPS_AT: u32 = 5 * FAILURE;
/// The level after a successful probe: three failures trip the breaker again.
const AFTER_PROBE: u32 = 2 * FAILURE;

/// The breaker in front of one dependency.
#[derive(Debug)]
pub(super) struct Breaker {
    dependency: RedisDependency,
    state: AtomicU8,
    level: AtomicU32,
    /// When the last late reply that counted arrived.
    late: Mutex<Option<Instant>>,
    metrics: Arc<Metrics>,
}

/// The outcome of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    InTime,
    /// The reply took more than half of the command timeout.
    Late,
    /// There was no reply, or the server cannot serve.
    Failed,
}

impl Outcome {
    /// The outcome for a dependency where late replies do not count.
    pub(super) fn of<T, E>(reply: &Result<T, E>) -> Self {
        if reply.is_ok() { Self::InTime } else { Self::Failed }
    }
}

impl Breaker {
    pub(super) fn new(dependency: RedisDependency, metrics: Arc<Metrics>) -> Self {
        let state = AtomicU8::new(BreakerState::Closed as u8);
        Self { dependency, state, level: AtomicU32::new(0), late: Mutex::new(None), metrics }
    }

    /// Whether callers' commands may be sent.
    pub(super) fn admits(&self) -> bool {
        self.state.load(Ordering::Acquire) == BreakerState::Closed as u8
    }

    /// Records the outcome of a caller's command that was sent at `began`.
    pub(super) fn record(&self, outcome: Outcome, began: Instant) {
        match outcome {
            Outcome::InTime => self.drain(),
            Outcome::Late if !self.is_first_late(began) => {}
            Outcome::Late | Outcome::Failed => self.fill(),
        }
    }

    fn drain(&self) {
        // No store at level zero, so that cores do not invalidate each other's cache line.
        if self.level.load(Ordering::Relaxed) > 0 {
            let drained = |level: u32| level.checked_sub(1);
            let _ = self.level.fetch_update(Ordering::Relaxed, Ordering::Relaxed, drained);
        }
    }

    fn fill(&self) {
        if self.level.fetch_add(FAILURE, Ordering::Relaxed) + FAILURE >= TRIPS_AT {
            self.transition(BreakerState::Closed, BreakerState::Open);
        }
    }

    /// Whether the command was sent after the last late reply arrived, and so is late independently of it.
    fn is_first_late(&self, began: Instant) -> bool {
        let mut late = self.late.lock();
        let first = late.is_none_or(|last| began >= last);
        if first {
            *late = Some(Instant::now());
        }
        first
    }

    /// A probe is about to be sent. Only one probe may be in flight.
    pub(super) fn probing(&self) {
        self.transition(BreakerState::Open, BreakerState::HalfOpen);
    }

    /// Records the outcome of the probe that was sent at `began`.
    pub(super) fn probed(&self, outcome: Outcome, began: Instant) {
        if self.admits() {
            self.record(outcome, began);
        } else if outcome == Outcome::InTime {
            self.level.store(AFTER_PROBE, Ordering::Relaxed);
            self.transition(BreakerState::HalfOpen, BreakerState::Closed);
        } else {
            self.transition(BreakerState::HalfOpen, BreakerState::Open);
        }
    }

    fn transition(&self, from: BreakerState, to: BreakerState) {
        let (from, next) = (from as u8, to as u8);
        let moved = self.state.compare_exchange(from, next, Ordering::AcqRel, Ordering::Relaxed);
        if moved.is_ok() {
            self.metrics.breaker_moves.inc(BreakerMove::of(self.dependency, to));
            tracing::debug!(dependency = ?self.dependency, ?to, "a circuit breaker changed its state");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use Outcome::{Failed, InTime, Late};

    fn breaker() -> Breaker {
        Breaker::new(RedisDependency::Commands, Metrics::new())
    }

    fn now() -> Instant {
        Instant::now()
    }

    fn tripped() -> Breaker {
        let breaker = breaker();
        (0..5).for_each(|_| breaker.record(Failed, now()));
        assert!(!breaker.admits());
        breaker
    }

    #[test]
    fn five_failures_in_a_row_trip_it_and_four_do_not() {
        let breaker = breaker();
        (0..4).for_each(|_| breaker.record(Failed, now()));
        assert!(breaker.admits());
        breaker.record(Failed, now());
        assert!(!breaker.admits());
    }

    #[test]
    fn a_fifth_of_failed_commands_trips_it_and_a_twentieth_does_not() {
        let (often, rarely) = (breaker(), breaker());
        for command in 0..1_000 {
            often.record(if command % 5 > 0 { InTime } else { Failed }, now());
            rarely.record(if command % 20 > 0 { InTime } else { Failed }, now());
        }
        assert!(!often.admits());
        assert!(rarely.admits());
    }

    #[test]
    fn late_replies_that_overlap_are_one_failure() {
        let (together, apart) = (breaker(), breaker());
        let began = now();
        for _ in 0..1_000 {
            together.record(Late, began);
        }
        assert!(together.admits());
        for _ in 0..5 {
            apart.record(Late, now());
        }
        assert!(!apart.admits());
    }

    #[test]
    fn only_a_successful_probe_closes_it() {
        let breaker = tripped();
        (0..1_000).for_each(|_| breaker.record(InTime, now()));
        assert!(!breaker.admits(), "replies to earlier commands do not close it");
        breaker.probing();
        assert!(!breaker.admits(), "callers do not probe");
        breaker.probed(Failed, now());
        assert!(!breaker.admits());
        breaker.probing();
        breaker.probed(InTime, now());
        assert!(breaker.admits());
    }

    #[test]
    fn three_failures_after_a_probe_trip_it_again() {
        let breaker = tripped();
        breaker.probing();
        breaker.probed(InTime, now());
        (0..2).for_each(|_| breaker.record(Failed, now()));
        assert!(breaker.admits());
        breaker.record(Failed, now());
        assert!(!breaker.admits());
    }

    #[test]
    fn every_transition_is_counted_once() {
        let breaker = tripped();
        let count = |to| breaker.metrics.breaker_moves.get(BreakerMove::of(breaker.dependency, to));
        breaker.record(Failed, now());
        breaker.probing();
        breaker.probed(Failed, now());
        breaker.probing();
        breaker.probed(InTime, now());
        assert_eq!(count(BreakerState::Open), 2);
        assert_eq!(count(BreakerState::HalfOpen), 2);
        assert_eq!(count(BreakerState::Closed), 1);
    }
}
