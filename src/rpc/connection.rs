//! What a connection has of its own: the address of its peer, the caller whose shares it takes, and how many streams it has
//! open.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use crate::caller::Caller;
use crate::metrics::Shed;
use crate::refusals::Refusals;

/// One connection; among the extensions of its requests for streams.
#[derive(Debug)]
pub(super) struct Connection {
    peer: SocketAddr,
    refusals: Arc<Refusals>,
    /// Whose calls they are, as far as the connection tells.
    pub(super) caller: Caller,
    /// Its open streams of hot keys.
    pub(super) watching: AtomicUsize,
}

impl Connection {
    pub(super) fn new(peer: SocketAddr, caller: Caller, refusals: Arc<Refusals>) -> Arc<Self> {
        Arc::new(Self { peer, refusals, caller, watching: AtomicUsize::new(0) })
    }

    /// It was refused something.
    pub(super) fn refused(&self, reason: Shed) {
        self.refusals.note(self.peer, reason);
    }
}
