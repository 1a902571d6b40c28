//! Runs the calls of a connection: in the task of the connection, or in tasks of their own.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures_util::future::CatchUnwind;
use futures_util::stream::FuturesUnordered;
use futures_util::task::AtomicWaker;
use futures_util::{FutureExt, StreamExt};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::rt::Executor;
use parking_lot::Mutex;
use tokio::io::AsyncWrite;
use tokio::time::Timeout;

use super::clock::TurnClock;
use super::io::Outgoing;
use crate::drain::Drain;
use crate::metrics::Method;
use crate::rpc::call::{CallBody, IncomingCall};

/// The tower service of a connection. It is always ready; `poll_ready` is not called.
pub(in crate::rpc) trait CallHandler:
    tower::Service<
        IncomingCall<Incoming>,
        Response = Response<CallBody>,
        Error = Infallible,
        Future: Send,
    > + Send
    + 'static
{
}

impl<S> CallHandler for S where
    S: tower::Service<
            IncomingCall<Incoming>,
            Response = Response<CallBody>,
            Error = Infallible,
            Future: Send,
        > + Send
        + 'static
{
}

/// Where a call continues after its first poll returned Pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Placement {
    /// In the task of its connection: when it is woken it has next to nothing left to do.
    Connection,
    /// In a task of its own, so that it does not delay the other calls of its connection.
    Own,
    /// In a task of its own, without a limit of time.
    OwnLasting,
}

impl Placement {
    fn of(method: Method) -> Self {
        match method {
            Method::GetProduct => Self::Connection,
            method if method.is_lasting() => Self::OwnLasting,
            _ => Self::Own,
        }
    }
}

/// Splits a service into hyper's service, hyper's executor, and the driver that runs the calls.
///
/// hyper passes the future that the service returns to the executor at once, before it calls the service again. So the service
/// can leave the placement of that call for the executor in [`Accepting::next`].
pub(super) fn driven<S>(
    service: S,
    max_call_time: Duration,
    drain: Drain,
    clock: TurnClock,
) -> (ConnectionService<S>, InlineExecutor, Driver) {
    let accepting =
        Arc::new(Mutex::new(Accepting { next: Placement::Own, calls: Vec::new(), accepted: 0 }));
    let service = RefCell::new(service);
    let service = ConnectionService { service, accepting: Arc::clone(&accepting) };
    let executor = InlineExecutor(Arc::clone(&accepting));
    let (waiting, busy) = (FuturesUnordered::new(), Arc::default());
    (service, executor, Driver { drain, max_call_time, clock, accepting, waiting, busy })
}

/// hyper's view of the tower service of one connection.
#[derive(Debug)]
pub(super) struct ConnectionService<S> {
    // A RefCell, because hyper calls through `&self` and tower needs `&mut`. Cloning the service for each call instead would
    // update the reference counts in it.
    service: RefCell<S>,
    accepting: Arc<Mutex<Accepting>>,
}

impl<S: CallHandler> hyper::service::Service<Request<Incoming>> for ConnectionService<S> {
    type Response = S::Response;
    type Error = Infallible;
    type Future = S::Future;

    fn call(&self, request: Request<Incoming>) -> S::Future {
        let call = IncomingCall::new(request);
        self.accepting.lock().next = Placement::of(call.method);
        self.service.borrow_mut().call(call)
    }
}

/// hyper's executor: it queues the calls of a connection for the driver.
#[derive(Clone, Debug)]
pub(super) struct InlineExecutor(Arc<Mutex<Accepting>>);

/// The calls that hyper has accepted. Its lock is never contended, because only the task of the connection uses it.
#[derive(Debug)]
struct Accepting {
    /// Where the call belongs that is passed to the executor next.
    next: Placement,
    /// Calls that the driver has not polled yet.
    calls: Vec<AcceptedCall>,
    /// Calls accepted so far.
    accepted: u64,
}

/// Tells whether a connection is idle. Used by the task of the connection only.
#[derive(Clone, Debug)]
pub(super) struct Activity {
    accepting: Arc<Mutex<Accepting>>,
    busy: Arc<Busy>,
}

/// Each waiting call holds one reference, so the reference count is the number of waiting calls.
#[derive(Debug, Default)]
struct Busy;

impl Activity {
    /// Calls accepted so far.
    pub(super) fn accepted(&self) -> u64 {
        self.accepting.lock().accepted
    }

    /// Whether any call has no response yet, or its response is not sent yet.
    pub(super) fn is_busy(&self) -> bool {
        // Two references are those of `self` and the driver.
        Arc::strong_count(&self.busy) > 2
    }
}

/// Polls each call once in the task of its connection. A call that is pending then continues by its [`Placement`].
///
/// A hot read finishes in that poll and costs no task. A read that waits for a load stays in the connection's task: only its
/// response is left to send, and the responses of loads that complete together are sent together. hyper accepts all calls of
/// one socket read before the first of them is polled, and their responses are sent when all of them have been polled.
///
/// Dropping the driver drops the queued calls: each of them refers to [`Accepting`], which holds them, so that cycle would
/// leak.
#[derive(Debug)]
pub(super) struct Driver {
    drain: Drain,
    max_call_time: Duration,
    clock: TurnClock,
    accepting: Arc<Mutex<Accepting>>,
    waiting: FuturesUnordered<WaitingCall>,
    busy: Arc<Busy>,
}

type BoxedCall = Pin<Box<dyn Future<Output = ()> + Send>>;

struct AcceptedCall {
    call: BoxedCall,
    placement: Placement,
}

/// A panic ends its own call and not the connection, as in a task of its own.
type WaitingCall = CatchUnwind<AssertUnwindSafe<Timeout<BoxedCall>>>;

/// The waker that the connection and its calls get. It records a wake during a turn instead of passing it to tokio: h2 wakes
/// its own task whenever a call has taken its request, and tokio would schedule the task again and wake another worker for it.
#[derive(Debug, Default)]
struct TurnWaker {
    task: AtomicWaker,
    state: AtomicU8,
}

/// No turn is running: a wake is passed to tokio.
const IDLE: u8 = 0;
const RUNNING: u8 = 1;
/// Woken during the turn: another turn follows.
const WOKEN: u8 = 2;
/// Turns in a row before the task yields to others. More would be of no use: tokio's coop budget makes the reads of a task
/// that does not yield return Pending.
const MAX_TURNS: usize = 16;

impl<F> Executor<F> for InlineExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, call: F) {
        let call = Box::pin(call);
        let mut accepting = self.0.lock();
        let placement = accepting.next;
        accepting.accepted += 1;
        accepting.calls.push(AcceptedCall { call, placement });
    }
}

impl Driver {
    /// To be called once, because [`Activity::is_busy`] counts on one activity for each driver.
    pub(super) fn activity(&self) -> Activity {
        Activity { accepting: Arc::clone(&self.accepting), busy: Arc::clone(&self.busy) }
    }

    /// Polls a connection and its calls until the connection ends, and sends what they write.
    pub(super) async fn drive<C: Future>(
        &mut self,
        mut connection: Pin<&mut C>,
        outgoing: &Outgoing<impl AsyncWrite + Unpin>,
    ) -> C::Output {
        let (mut running, turn) = (Vec::new(), Arc::<TurnWaker>::default());
        let waker = Waker::from(Arc::clone(&turn));
        poll_fn(|task| {
            turn.task.register(task.waker());
            let mut cx = Context::from_waker(&waker);
            for _ in 0..MAX_TURNS {
                turn.begin();
                self.clock.tick();
                let polled = connection.as_mut().poll(&mut cx);
                if polled.is_ready() {
                    return polled;
                }
                std::mem::swap(&mut running, &mut self.accepting.lock().calls);
                let ran = !running.is_empty();
                running.drain(..).for_each(|accepted| self.run(accepted));
                if self.poll_waiting(&mut cx) || ran {
                    continue;
                }
                outgoing.send(&mut cx);
                if turn.ends() {
                    return Poll::Pending;
                }
            }
            outgoing.send(&mut cx);
            task.waker().wake_by_ref();
            Poll::Pending
        })
        .await
    }

    fn run(&mut self, AcceptedCall { mut call, placement }: AcceptedCall) {
        // A pending call is polled again in its placement, which registers a waker.
        let mut cx = Context::from_waker(Waker::noop());
        let polled = catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(&mut cx)));
        if let Ok(Poll::Pending) = polled {
            self.place(call, placement);
        }
    }

    fn place(&mut self, call: BoxedCall, placement: Placement) {
        let busy = Arc::clone(&self.busy);
        let call: BoxedCall = Box::pin(async move {
            let _busy = busy;
            call.await;
        });
        // Once the time to make the response, and once to send it. A client that does not read its response would otherwise
        // keep it in memory: only dropping this future frees it.
        let limited = |call| tokio::time::timeout(self.max_call_time * 2, call);
        match placement {
            Placement::Connection => {
                self.waiting.push(AssertUnwindSafe(limited(call)).catch_unwind());
            }
            Placement::Own => drop(self.drain.spawn(limited(call))),
            Placement::OwnLasting => drop(self.drain.spawn(call)),
        }
    }

    /// Polls the waiting calls that have been woken. Returns whether any has ended.
    fn poll_waiting(&mut self, cx: &mut Context<'_>) -> bool {
        let mut any = false;
        while let Poll::Ready(Some(_)) = self.waiting.poll_next_unpin(cx) {
            any = true;
        }
        any
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Dropped outside of the lock, because dropping a call may run any code.
        let calls = std::mem::take(&mut self.accepting.lock().calls);
        drop(calls);
    }
}

impl Wake for TurnWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(WOKEN, Ordering::AcqRel) == IDLE {
            self.task.wake();
        }
    }
}

impl TurnWaker {
    /// Wakes before this need no other turn: the turn that starts now serves them.
    fn begin(&self) {
        self.state.store(RUNNING, Ordering::Release);
    }

    /// Ends the turn, unless there was a wake during it. Returns whether it has ended; from then on wakes are passed to tokio.
    fn ends(&self) -> bool {
        let ended = self.state.compare_exchange(RUNNING, IDLE, Ordering::AcqRel, Ordering::Relaxed);
        ended.is_ok()
    }
}

impl std::fmt::Debug for AcceptedCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AcceptedCall").field("placement", &self.placement).finish_non_exhaustive()
    }
}
