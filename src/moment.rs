//! Moments of the monotonic clock in eight bytes, which can also lie before the start of this machine.
//!
//! An `Instant` takes sixteen bytes, its differences need a carry, and it cannot represent the moments before the start of the
//! machine that other clocks and old rows refer to.

use std::ops::Add;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds since this machine started, negative before that, at most 292 years. Arithmetic saturates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(i64);

impl Moment {
    /// Before everything.
    pub const NEVER: Self = Self(i64::MIN);
    /// After everything.
    pub const FOREVER: Self = Self(i64::MAX);

    /// # Panics
    /// When the machine has no monotonic clock.
    #[must_use]
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Unix has this clock");
        Self(now.tv_sec() * 1_000_000_000 + now.tv_nsec())
    }

    /// The moment of a wall-clock time; now, if the time is in the future.
    #[must_use]
    pub fn of_wall(wall: SystemTime) -> Self {
        Self::now().before(SystemTime::now().duration_since(wall).unwrap_or_default())
    }

    /// The wall-clock time of a moment in the past.
    #[must_use]
    pub fn wall(self) -> SystemTime {
        let now = SystemTime::now();
        now.checked_sub(self.elapsed()).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// The time since this moment; zero if it is in the future.
    #[must_use]
    pub fn elapsed(self) -> Duration {
        Self::now().since(self)
    }

    /// The time from `earlier` to this moment; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        let nanos = self.0.saturating_sub(earlier.0);
        Duration::from_nanos(nanos.try_into().unwrap_or_default())
    }

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
    #[must_use]
    pub const fn new(moment: Moment) -> Self {
        Self(AtomicI64::new(moment.0))
    }

    /// Acquire, paired with the release of the stores: what was written before a store is visible after its load.
    #[must_use]
    pub fn load(&self) -> Moment {
        Moment(self.0.load(Ordering::Acquire))
    }

    pub fn store(&self, moment: Moment) {
        self.0.store(moment.0, Ordering::Release);
    }

    /// Stores `moment` if it is later than the current one.
    pub fn advance(&self, moment: Moment) {
        self.0.fetch_max(moment.0, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_ordered_and_keep_their_distances() {
        let (now, second) = (Moment::now(), Duration::from_secs(1));
        assert!(now.before(second) < now && now < now + second);
        assert_eq!((now + second).since(now.before(second)), 2 * second);
        assert_eq!(now.since(now + second), Duration::ZERO);
        assert!(now.before(second).elapsed() >= second);
    }

    #[test]
    fn moments_before_the_start_of_the_machine_exist_and_others_saturate() {
        let moon = SystemTime::UNIX_EPOCH - Duration::from_secs(14_182_940);
        let minute = Duration::from_secs(60);
        let named = Moment::of_wall(moon).wall();
        assert!(moon - minute < named && named < moon + minute, "{named:?}");
        let now = Moment::now();
        let ahead = Moment::of_wall(SystemTime::now() + Duration::from_secs(60));
        assert!(now <= ahead && ahead <= Moment::now(), "a future time becomes now");
        assert_eq!(now.before(Duration::MAX).before(Duration::MAX), Moment::NEVER);
        assert!(now + Duration::MAX > now && Moment::NEVER + Duration::from_secs(1) < now);
    }
}
