//! What callers may make the process hold, of one kind: bytes of answers that wait to be sent, bytes of requests that are not
//! complete, streams. How much a connection may hold, and how much all of them.
//!
//! A connection that holds much already, of what is left, gets no more: so a few cannot take it all from the others.
//!
//! A batch is a copy of its products, which lives until its caller reads it. The answer of GetProduct is no copy: its bytes
//! are the cache's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tonic::Status;

use super::connection::ClientConnection;
use super::status;
use crate::metrics::{Metrics, Shed};

/// A connection that holds more than this part of what is free gets no more.
const MOST: usize = 8;

/// What all connections hold.
#[derive(Debug)]
pub(super) struct Allowance {
    held: AtomicUsize,
    limit: usize,
    kind: Shed,
}

/// What one connection holds.
#[derive(Debug)]
pub(super) struct Share {
    held: AtomicUsize,
    all: Arc<Allowance>,
    connection: Arc<ClientConnection>,
}

/// Part of a share; until dropped.
#[derive(Debug)]
pub(super) struct Room {
    amount: usize,
    share: Arc<Share>,
}

impl Allowance {
    /// `kind` is how refusals are counted; the gauge says what is held.
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

    /// The share of another connection.
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
    /// Room for so much.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED, at once.
    pub(super) fn take(self: &Arc<Self>, amount: usize) -> Result<Room, Status> {
        self.hold(amount)?;
        Ok(Room { amount, share: Arc::clone(self) })
    }

    fn hold(&self, amount: usize) -> Result<(), Status> {
        let own = self.held.fetch_add(amount, Ordering::Relaxed);
        let hold = |held: usize| {
            let free = self.all.limit - held;
            (amount <= free && own <= free / MOST).then(|| held + amount)
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

impl Room {
    /// Becomes as large as this, if it is smaller.
    ///
    /// # Errors
    /// As [`Share::take`]; it stays as it is then.
    pub(super) fn grow_to(&mut self, amount: usize) -> Result<(), Status> {
        let more = amount.saturating_sub(self.amount);
        if more > 0 {
            self.share.hold(more)?;
            self.amount += more;
        }
        Ok(())
    }

    /// `message`, which holds this room for as long as its bytes are referred to: also while they wait in a connection's
    /// buffer, when the call has long ended.
    pub(super) fn holds(self, message: Vec<u8>) -> Bytes {
        Bytes::from_owner(HeldMessage { message, _room: self })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.share.all.held.fetch_sub(self.amount, Ordering::Relaxed);
        self.share.held.fetch_sub(self.amount, Ordering::Relaxed);
    }
}

/// Bytes in their room.
struct HeldMessage {
    message: Vec<u8>,
    _room: Room,
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

    /// As many answers as there is room for.
    fn fill(share: &Arc<Share>, bytes: usize) -> Vec<Bytes> {
        let answer = |room: Room| room.holds(vec![0; bytes]);
        std::iter::from_fn(|| share.take(bytes).ok().map(answer)).collect()
    }

    #[test]
    fn a_connection_that_does_not_read_leaves_room_for_the_next() {
        let unsent = unsent();
        let first = fill(&share(&unsent), 10);
        assert_eq!(first.len(), 12, "a ninth, and what passes it");
        let greedy: Vec<_> = (0..9).map(|_| fill(&share(&unsent), 10)).collect();
        assert!(held(&unsent) < LIMIT * 3 / 4);
        assert!(share(&unsent).take(LIMIT / 4).is_ok(), "a connection that holds nothing");
        drop((first, greedy));
        assert_eq!(held(&unsent), 0);
    }

    #[test]
    fn room_is_given_back_with_the_last_reference_to_the_bytes() {
        let unsent = unsent();
        let share = share(&unsent);
        let answer = share.take(600).expect("free").holds(vec![7; 600]);
        let rest = answer.slice(500..);
        drop(answer);
        assert!(share.take(600).is_err());
        assert_eq!(held(&unsent), 600);
        drop(rest);
        assert!(share.take(LIMIT).is_ok(), "alone, one answer may be as large as all");
        assert_eq!((held(&unsent), share.held.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn the_bound_holds_however_many_take_at_once() {
        let unsent = unsent();
        std::thread::scope(|scope| {
            for share in [share(&unsent), share(&unsent), share(&unsent)] {
                scope.spawn(move || {
                    for _ in 0..20_000 {
                        let room = share.take(300);
                        assert!(held(&share.all) <= LIMIT);
                        drop(room);
                    }
                });
            }
        });
        assert_eq!(held(&unsent), 0);
    }

    #[test]
    fn room_that_may_not_grow_stays_as_it_is() {
        let unsent = unsent();
        let share = share(&unsent);
        let mut room = share.take(100).expect("free");
        room.grow_to(50).expect("it is that large");
        room.grow_to(400).expect("free");
        assert!(room.grow_to(700).is_err(), "it holds more than an eighth of what is free");
        assert_eq!(held(&unsent), 400);
        drop(room);
        assert_eq!(held(&unsent), 0);
    }
}
