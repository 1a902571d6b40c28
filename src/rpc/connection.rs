//! The state of one connection: the address of its peer, the caller that its calls are accounted to, and its open streams of
//! hot keys.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use ring::digest::{SHA256, digest};
use tonic::Status;

use super::status;
use crate::caller::{CallContext, Caller};
use crate::catalog::Error;
use crate::metrics::{PostgresShare, Shed};
use crate::product::Version;
use crate::refusals::Refusals;

#[derive(Debug)]
pub(super) struct ClientConnection {
    peer: SocketAddr,
    refusals: Arc<Refusals>,
    /// The caller of calls that name none.
    caller: Caller,
    /// Open streams of hot keys.
    pub(super) watching: AtomicUsize,
}

impl ClientConnection {
    pub(super) fn new(peer: SocketAddr, caller: Caller, refusals: Arc<Refusals>) -> Arc<Self> {
        Arc::new(Self { peer, refusals, caller, watching: AtomicUsize::new(0) })
    }

    /// The caller that a call is accounted to.
    pub(super) fn caller(&self, named: Option<&Named>) -> Caller {
        named.map_or(self.caller, |named| named.caller)
    }

    /// Records that this connection was refused something.
    pub(super) fn refused(&self, reason: Shed) {
        self.refusals.record(self.peer, None, reason);
    }

    /// The status of a failed call; records it if it was refused because of a limit. `requested` is the version in the request.
    pub(super) fn failed(
        &self,
        named: Option<&Named>,
        error: &Error,
        requested: Option<Version>,
    ) -> Status {
        let name = named.map(|named| &*named.name);
        let refused = |reason| self.refusals.record(self.peer, name, reason);
        match error {
            Error::OverBudget(PostgresShare::Loads) => refused(Shed::Loads),
            Error::OverBudget(PostgresShare::Latest) => refused(Shed::Latest),
            Error::OverBudget(PostgresShare::Writes) => refused(Shed::Writes),
            Error::OverBudget(PostgresShare::Operators) => refused(Shed::Operators),
            Error::ProductBusy => refused(Shed::Product),
            _ => {}
        }
        status::of_error(error, requested)
    }
}

/// Characters of a name that are kept for the log.
const MAX_NAME_CHARS: usize = 100;

/// A caller that is known by name. It is the same caller on every connection.
#[derive(Debug)]
pub(super) struct Named {
    /// From a token, a certificate, or the metadata that a proxy sets; truncated.
    pub(super) name: Box<str>,
    pub(super) caller: Caller,
}

impl Named {
    pub(super) fn new(name: &str) -> Arc<Self> {
        let digest = digest(&SHA256, name.as_bytes());
        let (first, _) =
            digest.as_ref().split_first_chunk().expect("a SHA-256 digest has 32 bytes");
        let caller = Caller::of_identity(u64::from_be_bytes(*first));
        let name = name.chars().take(MAX_NAME_CHARS).collect::<String>().into();
        Arc::new(Self { name, caller })
    }
}

/// The connection, the caller and the deadline of a call. `reads.rs` puts it into the extensions of the request.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub(super) connection: Arc<ClientConnection>,
    pub(super) named: Option<Arc<Named>>,
    pub(super) call: CallContext,
}

impl Origin {
    /// # Errors
    /// INTERNAL when the request has none, which is a defect.
    pub(super) fn of<T>(request: &tonic::Request<T>) -> Result<Self, Status> {
        let origin = request.extensions().get::<Self>().cloned();
        origin.ok_or_else(|| status::internal("a request has no origin in its extensions"))
    }

    /// See [`ClientConnection::failed`].
    pub(super) fn failed(&self, error: &Error, requested: Option<Version>) -> Status {
        self.connection.failed(self.named.as_deref(), error, requested)
    }
}
