//! Where the calls of a connection run.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::rt::Executor;
use parking_lot::Mutex;
use tokio::io::AsyncWrite;

use super::io::Outgoing;
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
    (calls, Inline(Arc::new(Connection { drain, longest, lasting, accepted: Mutex::default() })))
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

/// Runs calls in their connection's own task, each until it has to wait; then it gets a task of its own.
///
/// A hot read is done by then, and spares the scheduler. All that came in one read are accepted before the first of
/// them runs, and their answers are sent when all of them have run.
#[derive(Clone, Debug)]
pub(super) struct Inline(Arc<Connection>);

#[derive(Debug)]
struct Connection {
    drain: Drain,
    longest: Duration,
    lasting: Arc<AtomicBool>,
    // Never contended: the connection's task alone uses it.
    accepted: Mutex<Vec<Accepted>>,
}

struct Accepted {
    call: Pin<Box<dyn Future<Output = ()> + Send>>,
    lasting: bool,
}

impl<F> Executor<F> for Inline
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, call: F) {
        let lasting = self.0.lasting.load(Ordering::Relaxed);
        self.0.accepted.lock().push(Accepted { call: Box::pin(call), lasting });
    }
}

impl Inline {
    /// Drives a connection and its calls to the connection's end, and sends what they write.
    pub(super) async fn drive<C: Future>(
        &self,
        mut connection: Pin<&mut C>,
        outgoing: &Outgoing<impl AsyncWrite + Unpin>,
    ) -> C::Output {
        let mut running = Vec::new();
        poll_fn(|cx| {
            loop {
                let polled = connection.as_mut().poll(cx);
                std::mem::swap(&mut running, &mut *self.0.accepted.lock());
                if polled.is_ready() {
                    return polled;
                }
                if running.is_empty() {
                    outgoing.send(cx);
                    return polled;
                }
                running.drain(..).for_each(|accepted| self.0.run(accepted));
            }
        })
        .await
    }
}

impl Connection {
    fn run(&self, Accepted { mut call, lasting }: Accepted) {
        // Whom the waker would wake is not there yet: the first poll of the task registers again.
        let mut cx = Context::from_waker(Waker::noop());
        // A panic ends its own call, as it would in a task of its own, and not the connection.
        let polled = catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(&mut cx)));
        match polled {
            Ok(Poll::Pending) if lasting => drop(self.drain.spawn(call)),
            // Twice, because the first is for the answer to be made. A caller that does not read it holds it, and
            // nothing but the end of this future would free it.
            Ok(Poll::Pending) => {
                drop(self.drain.spawn(tokio::time::timeout(self.longest * 2, call)));
            }
            Ok(Poll::Ready(())) | Err(_) => {}
        }
    }
}

impl std::fmt::Debug for Accepted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Accepted").field("lasting", &self.lasting).finish_non_exhaustive()
    }
}
