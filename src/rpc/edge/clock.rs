//! The clock of a connection's keepalive. For each call hyper reads the time three times and polls the ping's timer once. Both
//! are cheap here, because the time stands still within a turn (one poll of the connection by its driver).

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

/// A clock that advances only at [`Self::tick`].
#[derive(Clone, Debug)]
pub(super) struct TurnClock {
    origin: time::Instant,
    /// Nanoseconds since `origin`.
    offset: Arc<AtomicU64>,
}

impl TurnClock {
    pub(super) fn new() -> Self {
        Self { origin: time::Instant::now(), offset: Arc::default() }
    }

    /// Advances the clock; called when a turn begins.
    pub(super) fn tick(&self) {
        let offset = self.origin.elapsed().as_nanos();
        self.offset.store(offset.try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn time(&self) -> time::Instant {
        self.origin + Duration::from_nanos(self.offset.load(Ordering::Relaxed))
    }
}

impl Timer for TurnClock {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(Instant::from(time::Instant::now()) + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        let sleep = time::sleep_until(deadline.into());
        Box::pin(TurnSleep { sleep, clock: self.clone(), registered: None })
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
    /// tokio's timer registers its waker at every poll; this one polls it only when the result may have changed.
    struct TurnSleep {
        #[pin]
        sleep: time::Sleep,
        clock: TurnClock,
        // The waker that `sleep` holds.
        registered: Option<Waker>,
    }
}

impl Sleep for TurnSleep {}

impl TurnSleep {
    fn reset(self: Pin<&mut Self>, deadline: Instant) {
        let this = self.project();
        this.sleep.reset(deadline.into());
        // tokio does not document whether a reset keeps the waker.
        *this.registered = None;
    }
}

impl Future for TurnSleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        // `sleep` cannot end before its deadline. When it does end it wakes the task, which starts a turn after the deadline.
        let waits = this.clock.time() < this.sleep.deadline();
        if waits && this.registered.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        *this.registered = Some(cx.waker().clone());
        // Unconstrained, because a task without coop budget would return Pending and not register the waker.
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
    async fn time_stands_still_within_a_turn() {
        let clock = TurnClock::new();
        let before = clock.now();
        time::sleep(A_WHILE).await;
        assert_eq!(clock.now(), before);
        clock.tick();
        assert!(clock.now() >= before + A_WHILE);
    }

    #[tokio::test]
    async fn a_task_without_coop_budget_is_woken() {
        let clock = TurnClock::new();
        let mut sleep = clock.sleep(A_WHILE);
        let slept = poll_fn(|cx| {
            clock.tick();
            while has_budget_remaining() {
                let _ = pin!(consume_budget()).poll(cx);
            }
            sleep.as_mut().poll(cx)
        });
        time::timeout(HANG, slept).await.expect("woken before the timeout");
    }
}
