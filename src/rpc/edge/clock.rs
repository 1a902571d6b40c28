//! The clock of a connection's keepalive. For each call hyper asks three times what time it is, and once whether a ping is
//! due; within a turn of the connection the answers need not change.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};
use pin_project_lite::pin_project;
use tokio::task::coop::unconstrained;
use tokio::time;

/// Stands still between two ticks.
#[derive(Clone, Debug)]
pub(super) struct TurnClock {
    made: time::Instant,
    /// How many nanoseconds later it is.
    later: Arc<AtomicU64>,
}

impl TurnClock {
    /// A clock that shows when it was made.
    pub(super) fn new() -> Self {
        Self { made: time::Instant::now(), later: Arc::default() }
    }

    /// A turn begins.
    pub(super) fn tick(&self) {
        let later = self.made.elapsed().as_nanos();
        self.later.store(later.try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn time(&self) -> time::Instant {
        self.made + Duration::from_nanos(self.later.load(Ordering::Relaxed))
    }
}

impl Timer for TurnClock {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(Instant::from(time::Instant::now()) + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        let sleep = time::sleep_until(deadline.into());
        Box::pin(TurnSleep { sleep, clock: self.clone(), wakes: None })
    }

    fn now(&self) -> Instant {
        self.time().into()
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn Sleep>>, deadline: Instant) {
        match sleep.as_mut().downcast_mut_pin::<TurnSleep>() {
            Some(sleep) => sleep.reset(deadline),
            None => *sleep = self.sleep_until(deadline),
        }
    }
}

pin_project! {
    /// tokio's, which takes its waker anew at every poll; this one asks it only when the answer may be another.
    struct TurnSleep {
        #[pin]
        sleep: time::Sleep,
        clock: TurnClock,
        // Whom it wakes, once it has been polled.
        wakes: Option<Waker>,
    }
}

impl Sleep for TurnSleep {}

impl TurnSleep {
    fn reset(self: Pin<&mut Self>, deadline: Instant) {
        let this = self.project();
        this.sleep.reset(deadline.into());
        // Whether it still knows whom, tokio does not say.
        *this.wakes = None;
    }
}

impl Future for TurnSleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        // It does not end before its deadline, and the turn in which it ends begins after that.
        let waits = this.clock.time() < this.sleep.deadline();
        if waits && this.wakes.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        *this.wakes = Some(cx.waker().clone());
        // Out of budget, it would not take the waker.
        Pin::new(&mut unconstrained(this.sleep)).poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;

    use tokio::task::coop::{consume_budget, has_budget_remaining};

    use super::*;

    const A_WHILE: Duration = Duration::from_millis(5);
    const HANG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn it_stands_still_within_a_turn() {
        let clock = TurnClock::new();
        let before = clock.now();
        time::sleep(A_WHILE).await;
        assert_eq!(clock.now(), before);
        clock.tick();
        assert!(clock.now() >= before + A_WHILE);
    }

    #[tokio::test]
    async fn who_has_no_budget_left_is_woken_too() {
        let clock = TurnClock::new();
        let mut sleep = clock.sleep(A_WHILE);
        let slept = poll_fn(|cx| {
            clock.tick();
            while has_budget_remaining() {
                let _ = pin!(consume_budget()).poll(cx);
            }
            sleep.as_mut().poll(cx)
        });
        time::timeout(HANG, slept).await.expect("nobody woke it");
    }
}
