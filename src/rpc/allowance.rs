//! Bounds what all callers together hold of one resource: bytes of batch responses that are not sent yet, bytes of incomplete
//! requests, or open streams.
//!
//! A caller that holds more than a part of what is free gets no more, so that a few callers cannot take all of it.
//!
//! The response of a batch is a copy of its products and takes memory until the client has read it. The response of GetProduct
//! is not counted: its bytes belong to the cache.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use crate::metrics::{Metrics, Shed};

/// One resource, and what all callers hold of it.
#[derive(Debug)]
pub(super) struct Allowance {
    held: AtomicUsize,
    limit: usize,
    /// A caller that holds more than a `free_divisor`th of what is free gets no more.
    free_divisor: usize,
    kind: Shed,
}

/// What one caller holds of an allowance.
#[derive(Debug)]
pub(super) struct Share {
    held: AtomicUsize,
    all: Arc<Allowance>,
}

/// A limit that leaves no room for what was asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct OverLimit {
    pub(super) kind: Shed,
    /// It exceeds what all callers together may hold, so that a later attempt fails too.
    pub(super) always: bool,
}

/// An amount that is held until it is dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    amount: usize,
    share: Arc<Share>,
}

impl Allowance {
    /// Refusals are counted as `kind`; the gauge shows the amount that is held.
    pub(super) fn new(
        limit: usize,
        free_divisor: usize,
        kind: Shed,
        (gauge, help): (&'static str, &'static str),
        metrics: &Metrics,
    ) -> Arc<Self> {
        let all = Arc::new(Self { held: AtomicUsize::new(0), limit, free_divisor, kind });
        let held = |all: &Self| all.held.load(Ordering::Relaxed) as u64;
        metrics.bounded(gauge, help, &all, held, |all| all.limit as u64);
        all
    }

    /// The share of a new caller.
    pub(super) fn share(self: &Arc<Self>) -> Arc<Share> {
        Arc::new(Share { held: AtomicUsize::new(0), all: Arc::clone(self) })
    }
}

impl Share {
    /// Whether the caller holds anything.
    pub(super) fn is_used(&self) -> bool {
        self.held.load(Ordering::Relaxed) > 0
    }

    /// Reserves `amount`.
    ///
    /// # Errors
    /// Without waiting, when a limit leaves no room.
    pub(super) fn take(self: &Arc<Self>, amount: usize) -> Result<Reservation, OverLimit> {
        self.hold(amount)?;
        Ok(Reservation { amount, share: Arc::clone(self) })
    }

    fn hold(&self, amount: usize) -> Result<(), OverLimit> {
        let own = self.held.fetch_add(amount, Ordering::Relaxed);
        let hold = |held: usize| {
            let free = self.all.limit - held;
            (amount <= free && own <= free / self.all.free_divisor).then(|| held + amount)
        };
        match self.all.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, hold) {
            Ok(_) => Ok(()),
            Err(_) => {
                self.held.fetch_sub(amount, Ordering::Relaxed);
                Err(OverLimit { kind: self.all.kind, always: amount > self.all.limit })
            }
        }
    }
}

impl Reservation {
    /// Grows to `amount`, if it is smaller.
    ///
    /// # Errors
    /// As [`Share::take`]; the reservation is unchanged then.
    pub(super) fn grow_to(&mut self, amount: usize) -> Result<(), OverLimit> {
        let more = amount.saturating_sub(self.amount);
        if more > 0 {
            self.share.hold(more)?;
            self.amount += more;
        }
        Ok(())
    }

    /// Makes `message` hold this reservation until the last reference to its bytes is dropped. They may wait in the
    /// connection's buffer long after the call has ended.
    pub(super) fn attach(self, message: impl AsRef<[u8]> + Send + 'static) -> Bytes {
        Bytes::from_owner(HeldMessage { message, _reserved: self })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.share.all.held.fetch_sub(self.amount, Ordering::Relaxed);
        self.share.held.fetch_sub(self.amount, Ordering::Relaxed);
    }
}

struct HeldMessage<M> {
    message: M,
    _reserved: Reservation,
}

impl<M: AsRef<[u8]>> AsRef<[u8]> for HeldMessage<M> {
    fn as_ref(&self) -> &[u8] {
        self.message.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 1_000;

    fn unsent() -> Arc<Allowance> {
        Allowance::new(LIMIT, 8, Shed::UnsentBytes, ("test", "A test."), &Metrics::new())
    }

    fn held(unsent: &Arc<Allowance>) -> usize {
        unsent.held.load(Ordering::Relaxed)
    }

    /// As many responses as the share admits.
    fn fill(share: &Arc<Share>, bytes: usize) -> Vec<Bytes> {
        let response = |reserved: Reservation| reserved.attach(vec![0; bytes]);
        std::iter::from_fn(|| share.take(bytes).ok().map(response)).collect()
    }

    #[test]
    fn a_caller_that_does_not_read_leaves_bytes_for_others() {
        let unsent = unsent();
        let first = fill(&unsent.share(), 10);
        assert_eq!(first.len(), 12, "a ninth of the limit, and the one that exceeds it");
        let greedy: Vec<_> = (0..9).map(|_| fill(&unsent.share(), 10)).collect();
        assert!(held(&unsent) < LIMIT * 3 / 4);
        assert!(unsent.share().take(LIMIT / 4).is_ok(), "a caller that holds nothing");
        drop((first, greedy));
        assert_eq!(held(&unsent), 0);
    }

    #[test]
    fn bytes_are_released_with_their_last_reference() {
        let unsent = unsent();
        let share = unsent.share();
        let response = share.take(600).expect("free").attach(vec![7; 600]);
        let rest = response.slice(500..);
        drop(response);
        assert!(share.take(600).is_err());
        assert_eq!(held(&unsent), 600);
        drop(rest);
        assert!(share.take(LIMIT).is_ok(), "one response may take the whole allowance");
        assert_eq!((held(&unsent), share.held.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn concurrent_reservations_never_exceed_the_limit() {
        let unsent = unsent();
        std::thread::scope(|scope| {
            for share in [unsent.share(), unsent.share(), unsent.share()] {
                scope.spawn(move || {
                    for _ in 0..20_000 {
                        let reserved = share.take(300);
                        assert!(held(&share.all) <= LIMIT);
                        drop(reserved);
                    }
                });
            }
        });
        assert_eq!(held(&unsent), 0);
    }

    #[test]
    fn a_refused_growth_leaves_the_reservation_unchanged() {
        let unsent = unsent();
        let share = unsent.share();
        let mut reserved = share.take(100).expect("free");
        reserved.grow_to(50).expect("it is larger already");
        reserved.grow_to(400).expect("free");
        assert!(reserved.grow_to(700).is_err(), "it holds more than an eighth of what is free");
        assert_eq!(held(&unsent), 400);
        drop(reserved);
        assert_eq!(held(&unsent), 0);
    }
}
