//! What a connection has of its own: the address of its peer, the caller whose shares it takes, and how many streams it has
//! open.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use tonic::Status;

use super::status;
use crate::caller::{CallContext, Caller};
use crate::catalog::Error;
use crate::metrics::{PostgresShare, Shed};
use crate::product::Version;
use crate::refusals::Refusals;

/// One connection.
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

    /// What a call is told that failed. `asked` is the version that it asked for.
    pub(super) fn failed(&self, error: &Error, asked: Option<Version>) -> Status {
        match error {
            Error::OverBudget(PostgresShare::Loads) => self.refused(Shed::Loads),
            Error::OverBudget(PostgresShare::Latest) => self.refused(Shed::Latest),
            Error::OverBudget(PostgresShare::Writes) => self.refused(Shed::Writes),
            Error::OverBudget(PostgresShare::Operators) => self.refused(Shed::Operators),
            Error::ProductBusy => self.refused(Shed::Product),
            _ => {}
        }
        status::of_error(error, asked)
    }
}

/// Who makes a call, where, and until when it waits; from the extensions of its request.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub(super) connection: Arc<Connection>,
    pub(super) call: CallContext,
}

impl Origin {
    /// # Errors
    /// A defect: every request has one.
    pub(super) fn of<T>(request: &tonic::Request<T>) -> Result<Self, Status> {
        let origin = request.extensions().get::<Self>().cloned();
        origin.ok_or_else(|| status::internal("a call without an origin"))
    }
}
