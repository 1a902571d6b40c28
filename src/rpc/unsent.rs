//! The bytes of answers that wait to be sent: how many there may be, of a connection and of all.
//!
//! A batch is a copy of its products, which lives until its caller reads it. A connection that holds much already, of
//! what is left, gets no more: so a few that do not read cannot take it all from the others. The answer of GetProduct is
//! no copy: its bytes are the cache's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tonic::Status;

use super::status;
use crate::metrics::Metrics;

/// A connection that holds more than this part of what is free gets no more.
const MOST: usize = 8;

/// The bytes of all connections.
#[derive(Debug)]
pub(super) struct Unsent {
    held: AtomicUsize,
    limit: usize,
}

/// Those of one connection.
#[derive(Debug)]
pub(super) struct Share {
    held: AtomicUsize,
    all: Arc<Unsent>,
}

/// Room for an answer; until dropped.
#[derive(Debug)]
pub(super) struct Room {
    bytes: usize,
    share: Arc<Share>,
}

impl Unsent {
    pub(super) fn new(limit: usize, metrics: &Arc<Metrics>) -> Arc<Self> {
        let unsent = Arc::new(Self { held: AtomicUsize::new(0), limit });
        let help = "Bytes of batches that were answered and are not sent.";
        metrics.gauge("hotshelf.unsent.bytes", help, &unsent, |unsent| {
            unsent.held.load(Ordering::Relaxed) as u64
        });
        unsent
    }

    /// The share of another connection.
    pub(super) fn share(self: &Arc<Self>) -> Arc<Share> {
        Arc::new(Share { held: AtomicUsize::new(0), all: Arc::clone(self) })
    }
}

impl Share {
    /// Room for an answer of so many bytes, which are copied only then.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED, at once.
    pub(super) fn take(self: &Arc<Self>, bytes: usize) -> Result<Room, Status> {
        if bytes > self.all.limit {
            return Err(status::response_too_large());
        }
        let own = self.held.fetch_add(bytes, Ordering::Relaxed);
        let room = |held: usize| {
            let free = self.all.limit - held;
            (bytes <= free && own <= free / MOST).then_some(held + bytes)
        };
        match self.all.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room) {
            Ok(_) => Ok(Room { bytes, share: Arc::clone(self) }),
            Err(_) => {
                self.held.fetch_sub(bytes, Ordering::Relaxed);
                Err(status::too_many_unsent_bytes())
            }
        }
    }
}

impl Room {
    /// `message`, which holds this room for as long as anybody has its bytes: also while they wait in a connection's
    /// buffer, when the call has long ended.
    pub(super) fn holds(self, message: Vec<u8>) -> Bytes {
        Bytes::from_owner(Held { message, _room: self })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.share.all.held.fetch_sub(self.bytes, Ordering::Relaxed);
        self.share.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Bytes in their room.
struct Held {
    message: Vec<u8>,
    _room: Room,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 1_000;

    fn held(unsent: &Arc<Unsent>) -> usize {
        unsent.held.load(Ordering::Relaxed)
    }

    /// As many answers as there is room for.
    fn fill(share: &Arc<Share>, bytes: usize) -> Vec<Bytes> {
        let answer = |room: Room| room.holds(vec![0; bytes]);
        std::iter::from_fn(|| share.take(bytes).ok().map(answer)).collect()
    }

    #[test]
    fn whoever_does_not_read_leaves_room_for_who_comes_next() {
        let unsent = Unsent::new(LIMIT, &Metrics::new());
        let first = fill(&unsent.share(), 10);
        assert_eq!(first.len(), 12, "a ninth, and what passes it");
        let greedy: Vec<_> = (0..9).map(|_| fill(&unsent.share(), 10)).collect();
        assert!(held(&unsent) < LIMIT * 3 / 4);
        assert!(unsent.share().take(LIMIT / 4).is_ok(), "whoever holds nothing");
        drop((first, greedy));
        assert_eq!(held(&unsent), 0);
    }

    #[test]
    fn the_last_who_has_the_bytes_gives_their_room_back() {
        let unsent = Unsent::new(LIMIT, &Metrics::new());
        let share = unsent.share();
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
        let unsent = Unsent::new(LIMIT, &Metrics::new());
        std::thread::scope(|scope| {
            for share in [unsent.share(), unsent.share(), unsent.share()] {
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
}
