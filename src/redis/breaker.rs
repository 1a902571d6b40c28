//! Circuit breakers: what has failed too often is not asked any more until a probe says that it answers again.
//!
//! A leaky bucket decides: each failure fills it by as much as ten answers in time drain, so it trips after a few
//! failures in a row, and also when a tenth of the commands fails for long. Late answers are failures, too, but those
//! that were late together are one: it may have been us who stood still.
//! There is no clock in it: the probes come from a loop, one at a time, and no caller ever is one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::metrics::{BreakerMove, BreakerState, Metrics, RedisDependency};

/// What a failure adds; an answer in time takes away 1.
const FAILURE: u32 = 10;
/// Five failures in a row. Too high: more callers wait for what is down. Too low: a hiccup sends reads to Postgres.
const TRIPS_AT: u32 = 5 * FAILURE;
/// After a probe that was answered three failures trip it again.
const ON_TRIAL: u32 = 2 * FAILURE;

/// The breaker in front of one dependency.
#[derive(Debug)]
pub(super) struct Breaker {
    dependency: RedisDependency,
    state: AtomicU8,
    level: AtomicU32,
    /// When an answer last came late.
    late: Mutex<Option<Instant>>,
    metrics: Arc<Metrics>,
}

/// How a command went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was answered.
    InTime,
    /// It was answered, but not soon enough.
    Late,
    /// It was not answered, or by one that cannot serve.
    Failed,
}

impl Outcome {
    /// Of somebody who waits for no answer that could come late.
    pub(super) fn of<T, E>(reply: &Result<T, E>) -> Self {
        if reply.is_ok() { Self::InTime } else { Self::Failed }
    }
}

impl Breaker {
    pub(super) fn new(dependency: RedisDependency, metrics: Arc<Metrics>) -> Self {
        let state = AtomicU8::new(BreakerState::Closed as u8);
        Self { dependency, state, level: AtomicU32::new(0), late: Mutex::new(None), metrics }
    }

    /// Whether callers may ask.
    pub(super) fn admits(&self) -> bool {
        self.state.load(Ordering::Acquire) == BreakerState::Closed as u8
    }

    /// Takes in how a caller's command went, which `began` then.
    pub(super) fn record(&self, outcome: Outcome, began: Instant) {
        match outcome {
            Outcome::InTime => self.drain(),
            Outcome::Late if !self.is_first_late(began) => {}
            Outcome::Late | Outcome::Failed => self.fill(),
        }
    }

    fn drain(&self) {
        // No store while all is well, so that cores do not take the line from each other.
        if self.level.load(Ordering::Relaxed) > 0 {
            let drained = |level: u32| level.checked_sub(1);
            let _ = self.level.fetch_update(Ordering::Relaxed, Ordering::Relaxed, drained);
        }
    }

    fn fill(&self) {
        if self.level.fetch_add(FAILURE, Ordering::Relaxed) + FAILURE >= TRIPS_AT {
            self.go(BreakerState::Closed, BreakerState::Open);
        }
    }

    /// Whether this is the first late answer among those that were waited for at the same time.
    fn is_first_late(&self, began: Instant) -> bool {
        let mut late = self.late.lock();
        let first = late.is_none_or(|last| began >= last);
        if first {
            *late = Some(Instant::now());
        }
        first
    }

    /// A probe is sent. Only one may be under way.
    pub(super) fn probing(&self) {
        self.go(BreakerState::Open, BreakerState::HalfOpen);
    }

    /// Takes in how the probe went.
    pub(super) fn probed(&self, outcome: Outcome, began: Instant) {
        if self.admits() {
            self.record(outcome, began);
        } else if outcome == Outcome::InTime {
            self.level.store(ON_TRIAL, Ordering::Relaxed);
            self.go(BreakerState::HalfOpen, BreakerState::Closed);
        } else {
            self.go(BreakerState::HalfOpen, BreakerState::Open);
        }
    }

    fn go(&self, from: BreakerState, to: BreakerState) {
        let (from, next) = (from as u8, to as u8);
        let moved = self.state.compare_exchange(from, next, Ordering::AcqRel, Ordering::Relaxed);
        if moved.is_ok() {
            self.metrics.breaker_moves.inc(BreakerMove::of(self.dependency, to));
            tracing::debug!(dependency = ?self.dependency, ?to, "a circuit breaker moved");
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
    fn every_fifth_answer_failing_trips_it_and_every_twentieth_does_not() {
        let (often, rarely) = (breaker(), breaker());
        for command in 0..1_000 {
            often.record(if command % 5 > 0 { InTime } else { Failed }, now());
            rarely.record(if command % 20 > 0 { InTime } else { Failed }, now());
        }
        assert!(!often.admits());
        assert!(rarely.admits());
    }

    #[test]
    fn answers_that_are_late_together_are_one_failure() {
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
    fn only_a_probe_that_was_answered_closes_it() {
        let breaker = tripped();
        (0..1_000).for_each(|_| breaker.record(InTime, now()));
        assert!(!breaker.admits(), "late answers of before");
        breaker.probing();
        assert!(!breaker.admits(), "callers do not probe");
        breaker.probed(Failed, now());
        assert!(!breaker.admits());
        breaker.probing();
        breaker.probed(InTime, now());
        assert!(breaker.admits());
    }

    #[test]
    fn after_a_probe_it_is_on_trial() {
        let breaker = tripped();
        breaker.probing();
        breaker.probed(InTime, now());
        (0..2).for_each(|_| breaker.record(Failed, now()));
        assert!(breaker.admits());
        breaker.record(Failed, now());
        assert!(!breaker.admits());
    }

    #[test]
    fn every_move_is_counted_once() {
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
