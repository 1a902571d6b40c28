//! Bounds what all connections together hold of one resource: bytes of batch responses that are not sent yet, bytes of
//! incomplete requests, or open streams.
//!
//! A connection that holds more than an eighth of what is free gets no more, so that a few connections cannot take all of it.
//!
//! The response of a batch is a copy of its products and takes memory until the client has read it. The response of GetProduct
//! is not counted: its bytes belong to the cache.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tonic::Status;

use super::connection::ClientConnection;
use super::status;
use crate::metrics::{Metrics, Shed};

/// A connection that holds more than a `FREE_DIVISOR`th of what is free gets no more.
const FREE_DIVISOR: usize = 8;

/// One resource, and what all connections hold of it.
#[derive(Debug)]
pub(super) struct Allowance {
    held: AtomicUsize,
    limit: usize,
    kind: Shed,
}

/// What one connection holds of an allowance.
#[derive(Debug)]
pub(super) struct Share {
    held: AtomicUsize,
    all: Arc<Allowance>,
    connection: Arc<ClientConnection>,
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
        kind: Shed,
        (gauge, help): (&'static str, &'static str),
        metrics: &Metrics,
    ) -> Arc<Self> {
        let all = Arc::new(Self { held: AtomicUsize::new(0), limit, kind });
        metrics.gauge(gauge, help, &all, |all| all.held.load(Ordering::Relaxed) as u64);
        all
    }

    /// The share of a new connection.
    pub(super) fn share(self: &Arc<Self>, connection: &Arc<ClientConnection>) -> Arc<Share> {
        let (held, connection) = (AtomicUsize::new(0), Arc::clone(connection));
        Arc::new(Share { held, all: Arc::clone(self), connection })
    }

    fn refusal(&self, amount: usize) -> Status {
        match self.kind {
            Shed::UnsentBytes if amount > self.limit => status::response_too_large(),
            Shed::UnsentBytes => status::too_many_unsent_bytes(),
            Shed::RequestBytes => status::too_many_request_bytes(),
            _ => status::too_many_streams(),
        }
    }
}

impl Share {
    /// Reserves `amount`.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED, without waiting.
    pub(super) fn take(self: &Arc<Self>, amount: usize) -> Result<Reservation, Status> {
        self.hold(amount)?;
        Ok(Reservation { amount, share: Arc::clone(self) })
    }

    fn hold(&self, amount: usize) -> Result<(), Status> {
        let own = self.held.fetch_add(amount, Ordering::Relaxed);
        let hold = |held: usize| {
            let free = self.all.limit - held;
            (amount <= free && own <= free / FREE_DIVISOR).then(|| held + amount)
        };
        match self.all.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, hold) {
            Ok(_) => Ok(()),
            Err(_) => {
                self.held.fetch_sub(amount, Ordering::Relaxed);
                self.connection.refused(self.all.kind);
                Err(self.all.refusal(amount))
            }
        }
    }
}

impl Reservation {
    /// Grows to `amount`, if it is smaller.
    ///
    /// # Errors
    /// As [`Share::take`]; the reservation is unchanged then.
    pub(super) fn grow_to(&mut self, amount: usize) -> Result<(), Status> {
        let more = amount.saturating_sub(self.amount);
        if more > 0 {
            self.share.hold(more)?;
            self.amount += more;
        }
        Ok(())
    }

    /// Makes `message` hold this reservation until the last reference to its bytes is dropped. They may wait in the
    /// connection's buffer long after the call has ended.
    pub(super) fn attach(self, message: Vec<u8>) -> Bytes {
        Bytes::from_owner(HeldMessage { message, _reserved: self })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.share.all.held.fetch_sub(self.amount, Ordering::Relaxed);
        self.share.held.fetch_sub(self.amount, Ordering::Relaxed);
    }
}

struct HeldMessage {
    message: Vec<u8>,
    _reserved: Reservation,
}

impl AsRef<[u8]> for HeldMessage {
    fn as_ref(&self) -> &[u8] {
        &self.message
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::Caller;
    use crate::refusals::Refusals;

    const LIMIT: usize = 1_000;

    fn unsent() -> Arc<Allowance> {
        Allowance::new(LIMIT, Shed::UnsentBytes, ("test", "A test."), &Metrics::new())
    }

    fn share(all: &Arc<Allowance>) -> Arc<Share> {
        let refusals = Refusals::new(&Metrics::new());
        let address = ([127, 0, 0, 1], 1).into();
        all.share(&ClientConnection::new(address, Caller::BACKGROUND, refusals))
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
    fn a_connection_that_does_not_read_leaves_bytes_for_others() {
        let unsent = unsent();
        let first = fill(&share(&unsent), 10);
        assert_eq!(first.len(), 12, "a ninth of the limit, and the one that exceeds it");
        let greedy: Vec<_> = (0..9).map(|_| fill(&share(&unsent), 10)).collect();
        assert!(held(&unsent) < LIMIT * 3 / 4);
        assert!(share(&unsent).take(LIMIT / 4).is_ok(), "a connection that holds nothing");
        drop((first, greedy));
        assert_eq!(held(&unsent), 0);
    }

    #[test]
    fn bytes_are_released_with_their_last_reference() {
        let unsent = unsent();
        let share = share(&unsent);
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
            for share in [share(&unsent), share(&unsent), share(&unsent)] {
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
        let share = share(&unsent);
        let mut reserved = share.take(100).expect("free");
        reserved.grow_to(50).expect("it is larger already");
        reserved.grow_to(400).expect("free");
        assert!(reserved.grow_to(700).is_err(), "it holds more than an eighth of what is free");
        assert_eq!(held(&unsent), 400);
        drop(reserved);
        assert_eq!(held(&unsent), 0);
    }
}
