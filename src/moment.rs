//! Moments of the monotonic clock in eight bytes, which also name what was before this machine ran.
//!
//! An `Instant` takes sixteen, each of its differences costs a carry, and where another machine's clock or an old row
//! points to, it may have no name for.

use std::ops::Add;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};

/// A moment: nanoseconds after this machine started or before it, 292 years at most. Arithmetic stops there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(i64);

impl Moment {
    /// Before everything.
    pub const NEVER: Self = Self(i64::MIN);
    /// After everything.
    pub const FOREVER: Self = Self(i64::MAX);

    /// This one.
    ///
    /// # Panics
    /// Where the machine has no monotonic clock.
    #[must_use]
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Unix has this clock");
        Self(now.tv_sec() * 1_000_000_000 + now.tv_nsec())
    }

    /// What another machine's wall clock calls `wall`; now, if that is yet to come.
    #[must_use]
    pub fn of_wall(wall: SystemTime) -> Self {
        Self::now().before(SystemTime::now().duration_since(wall).unwrap_or_default())
    }

    /// What the wall clock calls a moment of the past.
    #[must_use]
    pub fn wall(self) -> SystemTime {
        let now = SystemTime::now();
        now.checked_sub(self.elapsed()).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// How long ago it was; zero, if it is yet to come.
    #[must_use]
    pub fn elapsed(self) -> Duration {
        Self::now().since(self)
    }

    /// How long after `earlier` it is; zero, if it is not.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        let nanos = self.0.saturating_sub(earlier.0);
        Duration::from_nanos(nanos.try_into().unwrap_or_default())
    }

    /// So long before this one.
    #[must_use]
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(duration)))
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }
}

fn nanos(duration: Duration) -> i64 {
    duration.as_nanos().try_into().unwrap_or(i64::MAX)
}

/// A moment that threads share.
#[derive(Debug)]
pub struct AtomicMoment(AtomicI64);

impl AtomicMoment {
    /// This one to begin with.
    #[must_use]
    pub const fn new(moment: Moment) -> Self {
        Self(AtomicI64::new(moment.0))
    }

    /// Which it is. Whoever sees it sees what was written before it was stored.
    #[must_use]
    pub fn load(&self) -> Moment {
        Moment(self.0.load(Ordering::Acquire))
    }

    /// Makes it another.
    pub fn store(&self, moment: Moment) {
        self.0.store(moment.0, Ordering::Release);
    }

    /// Makes it this one, unless it is later already.
    pub fn advance(&self, moment: Moment) {
        self.0.fetch_max(moment.0, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_ordered_and_as_far_apart_as_they_were() {
        let (now, second) = (Moment::now(), Duration::from_secs(1));
        assert!(now.before(second) < now && now < now + second);
        assert_eq!((now + second).since(now.before(second)), 2 * second);
        assert_eq!(now.since(now + second), Duration::ZERO);
        assert!(now.before(second).elapsed() >= second);
    }

    #[test]
    fn there_is_a_moment_for_what_was_before_this_machine_and_for_what_is_out_of_reach() {
        let moon = SystemTime::UNIX_EPOCH - Duration::from_secs(14_182_940);
        let minute = Duration::from_secs(60);
        let named = Moment::of_wall(moon).wall();
        assert!(moon - minute < named && named < moon + minute, "{named:?}");
        let now = Moment::now();
        let ahead = Moment::of_wall(SystemTime::now() + Duration::from_secs(60));
        assert!(now <= ahead && ahead <= Moment::now(), "there is none to come");
        assert_eq!(now.before(Duration::MAX).before(Duration::MAX), Moment::NEVER);
        assert!(now + Duration::MAX > now && Moment::NEVER + Duration::from_secs(1) < now);
    }
}
