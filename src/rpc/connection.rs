//! The caller of a call: a named one, or else the connection.

use std::net::SocketAddr;
use std::sync::Arc;

use tonic::Status;

use super::allowance::OverLimit;
use super::callers::{CallerLimits, Named};
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
    /// The caller of calls that name none, and its limits.
    caller: Caller,
    limits: CallerLimits,
}

impl ClientConnection {
    pub(super) fn new(
        peer: SocketAddr,
        caller: Caller,
        limits: CallerLimits,
        refusals: Arc<Refusals>,
    ) -> Arc<Self> {
        Arc::new(Self { peer, refusals, caller, limits })
    }

    /// The account of a call.
    pub(super) fn account<'a>(&'a self, named: Option<&'a Named>) -> Account<'a> {
        Account { connection: self, named }
    }
}

/// Where a call is accounted: at the caller that it names, else at its connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Account<'a> {
    connection: &'a ClientConnection,
    named: Option<&'a Named>,
}

impl<'a> Account<'a> {
    pub(super) fn caller(self) -> Caller {
        self.named.map_or(self.connection.caller, |named| named.caller)
    }

    pub(super) fn limits(self) -> &'a CallerLimits {
        self.named.map_or(&self.connection.limits, |named| &named.limits)
    }

    /// Records a refusal. Returns its status.
    #[cold]
    pub(super) fn over_limit(self, over: OverLimit) -> Status {
        self.record(over.kind);
        status::over_limit(over)
    }

    /// The status of a failed call; records it if it was refused because of a limit. `requested` is the version in the request.
    pub(super) fn failed(self, error: &Error, requested: Option<Version>) -> Status {
        match error {
            Error::OverBudget(PostgresShare::Loads) => self.record(Shed::Loads),
            Error::OverBudget(PostgresShare::Latest) => self.record(Shed::Latest),
            Error::OverBudget(PostgresShare::Writes) => self.record(Shed::Writes),
            Error::OverBudget(PostgresShare::Operators) => self.record(Shed::Operators),
            Error::ProductBusy => self.record(Shed::Product),
            _ => {}
        }
        status::of_error(error, requested)
    }

    fn record(self, reason: Shed) {
        let name = self.named.map(|named| &*named.name);
        self.connection.refusals.record(self.connection.peer, name, reason);
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

    pub(super) fn account(&self) -> Account<'_> {
        self.connection.account(self.named.as_deref())
    }

    /// See [`Account::failed`].
    pub(super) fn failed(&self, error: &Error, requested: Option<Version>) -> Status {
        self.account().failed(error, requested)
    }
}
