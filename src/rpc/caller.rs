//! What a connection has of its own: the address of its peer, and how many streams it has open.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use crate::metrics::Shed;
use crate::refusals::Refusals;

/// One connection; among the extensions of its requests for streams.
#[derive(Debug)]
pub(super) struct Caller {
    peer: SocketAddr,
    refusals: Arc<Refusals>,
    /// Its open streams of hot keys.
    pub(super) watching: AtomicUsize,
}

impl Caller {
    pub(super) fn new(peer: SocketAddr, refusals: Arc<Refusals>) -> Arc<Self> {
        Arc::new(Self { peer, refusals, watching: AtomicUsize::new(0) })
    }

    /// It was refused something.
    pub(super) fn refused(&self, reason: Shed) {
        self.refusals.note(self.peer, reason);
    }
}
