//! What a connection has of its own: the address of its peer, the caller whose shares it takes, and how many streams it has
//! open.

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

/// One connection.
#[derive(Debug)]
pub(super) struct ClientConnection {
    peer: SocketAddr,
    refusals: Arc<Refusals>,
    /// Whose calls they are that say nothing else.
    caller: Caller,
    /// Its open streams of hot keys.
    pub(super) watching: AtomicUsize,
}

impl ClientConnection {
    pub(super) fn new(peer: SocketAddr, caller: Caller, refusals: Arc<Refusals>) -> Arc<Self> {
        Arc::new(Self { peer, refusals, caller, watching: AtomicUsize::new(0) })
    }

    /// Whose shares a call takes.
    pub(super) fn caller(&self, named: Option<&Named>) -> Caller {
        named.map_or(self.caller, |named| named.caller)
    }

    /// It was refused something.
    pub(super) fn refused(&self, reason: Shed) {
        self.refusals.record(self.peer, None, reason);
    }

    /// What a call is told that failed. `asked` is the version that it asked for.
    pub(super) fn failed(
        &self,
        named: Option<&Named>,
        error: &Error,
        asked: Option<Version>,
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
        status::of_error(error, asked)
    }
}

/// The longest part of a name that is kept, for the log.
const MAX_NAME: usize = 100;

/// A caller that is known by name, on whichever connection it calls.
#[derive(Debug)]
pub(super) struct Named {
    /// From its token, its certificate, or the metadata that a proxy sets.
    pub(super) name: Box<str>,
    pub(super) caller: Caller,
}

impl Named {
    pub(super) fn new(name: &str) -> Arc<Self> {
        let digest = digest(&SHA256, name.as_bytes());
        let (first, _) = digest.as_ref().split_first_chunk().expect("SHA-256 has 32 bytes");
        let caller = Caller::of_identity(u64::from_be_bytes(*first));
        let name = name.chars().take(MAX_NAME).collect::<String>().into();
        Arc::new(Self { name, caller })
    }
}

/// The caller, the connection and the deadline of a call; from the extensions of its request.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub(super) connection: Arc<ClientConnection>,
    pub(super) named: Option<Arc<Named>>,
    pub(super) call: CallContext,
}

impl Origin {
    /// # Errors
    /// A defect: every request has one.
    pub(super) fn of<T>(request: &tonic::Request<T>) -> Result<Self, Status> {
        let origin = request.extensions().get::<Self>().cloned();
        origin.ok_or_else(|| status::internal("a call without an origin"))
    }

    /// What the call is told when it failed; see [`ClientConnection::failed`].
    pub(super) fn failed(&self, error: &Error, asked: Option<Version>) -> Status {
        self.connection.failed(self.named.as_deref(), error, asked)
    }
}
