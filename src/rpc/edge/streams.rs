//! Where the calls of a connection run.

use std::convert::Infallible;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::rt::Executor;

use crate::drain::Drain;
use crate::metrics::Method;
use crate::rpc::observe::ObservedBody;

/// A tower service that answers calls, and is always ready.
pub(in crate::rpc) trait Answers:
    tower::Service<
        Request<Incoming>,
        Response = Response<ObservedBody>,
        Error = Infallible,
        Future: Send,
    > + Clone
    + Send
    + 'static
{
}

impl<S> Answers for S where
    S: tower::Service<
            Request<Incoming>,
            Response = Response<ObservedBody>,
            Error = Infallible,
            Future: Send,
        > + Clone
        + Send
        + 'static
{
}

/// The service of one connection, and where its calls run.
///
/// hyper calls the service, and gives what that returned to the executor at once: so the one can tell the other
/// whether the call is meant to last.
pub(super) fn pair<S>(service: S, longest: Duration, drain: Drain) -> (Calls<S>, Inline) {
    let lasting = Arc::new(AtomicBool::new(false));
    let calls = Calls { service, lasting: Arc::clone(&lasting) };
    (calls, Inline { drain, longest, lasting })
}

/// The calls of one connection.
#[derive(Debug)]
pub(super) struct Calls<S> {
    service: S,
    lasting: Arc<AtomicBool>,
}

impl<S: Answers> hyper::service::Service<Request<Incoming>> for Calls<S> {
    type Response = S::Response;
    type Error = Infallible;
    type Future = S::Future;

    fn call(&self, request: Request<Incoming>) -> S::Future {
        let lasting = Method::of_path(request.uri().path()).is_lasting();
        self.lasting.store(lasting, Ordering::Relaxed);
        self.service.clone().call(request)
    }
}

/// Polls each call once, at once, in the connection's own task; only what has to wait gets a task of its own.
///
/// A hot read is done by then, and spares the scheduler. A call that waits delays no neighbour, and the drain
/// waits for its task.
#[derive(Clone, Debug)]
pub(super) struct Inline {
    drain: Drain,
    longest: Duration,
    lasting: Arc<AtomicBool>,
}

impl<F> Executor<F> for Inline
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, call: F) {
        let mut call = Box::pin(call);
        // Whom the waker would wake is not there yet: the first poll of the task registers again.
        let mut cx = Context::from_waker(Waker::noop());
        // A panic ends its own call, as it would in a task of its own, and not the connection.
        let polled = catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(&mut cx)));
        if !matches!(polled, Ok(Poll::Pending)) {
            return;
        }
        if self.lasting.load(Ordering::Relaxed) {
            drop(self.drain.spawn(call));
        } else {
            // Twice, because the first is for the answer to be made. A caller that does not read it holds it, and
            // nothing but the end of this future would free it.
            drop(self.drain.spawn(tokio::time::timeout(self.longest * 2, call)));
        }
    }
}
