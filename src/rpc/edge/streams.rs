//! Where the calls of a connection run.

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
use crate::rpc::call::{Arrival, CallBody};

/// A tower service that answers calls, and is always ready.
pub(in crate::rpc) trait Answers:
    tower::Service<
        Arrival<Incoming>,
        Response = Response<CallBody>,
        Error = Infallible,
        Future: Send,
    > + Send
    + 'static
{
}

impl<S> Answers for S where
    S: tower::Service<
            Arrival<Incoming>,
            Response = Response<CallBody>,
            Error = Infallible,
            Future: Send,
        > + Send
        + 'static
{
}

/// Where a call goes on that has to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StreamState {
    /// In its connection's task: there is next to nothing left to do.
    ClientConnection,
    /// In a task of its own, where it delays nobody.
    Task,
    /// The same, and it may last as long as it likes.
    LastingTask,
}

impl StreamState {
    fn of(method: Method) -> Self {
        match method {
            Method::GetProduct => Self::ClientConnection,
            method if method.is_lasting() => Self::LastingTask,
            _ => Self::Task,
        }
    }
}

/// The service of one connection, and where its calls run.
///
/// hyper calls the service, and gives what that returned to the executor at once: so the one can tell the other
/// where the call belongs.
pub(super) fn driven<S>(
    service: S,
    longest: Duration,
    drain: Drain,
    clock: TurnClock,
) -> (Calls<S>, Inline, Driver) {
    let accepting = Arc::new(Mutex::new(Accepting {
        place: StreamState::Task,
        calls: Vec::new(),
        accepted: 0,
    }));
    let calls = Calls { service: RefCell::new(service), accepting: Arc::clone(&accepting) };
    let inline = Inline(Arc::clone(&accepting));
    let (waiting, busy) = (FuturesUnordered::new(), Arc::default());
    (calls, inline, Driver { drain, longest, clock, accepting, waiting, busy })
}

/// The calls of one connection.
#[derive(Debug)]
pub(super) struct Calls<S> {
    // hyper would share it, tower would have it cloned for each call, and every reference counted up and down.
    service: RefCell<S>,
    accepting: Arc<Mutex<Accepting>>,
}

impl<S: Answers> hyper::service::Service<Request<Incoming>> for Calls<S> {
    type Response = S::Response;
    type Error = Infallible;
    type Future = S::Future;

    fn call(&self, request: Request<Incoming>) -> S::Future {
        let arrival = Arrival::new(request);
        self.accepting.lock().place = StreamState::of(arrival.method);
        self.service.borrow_mut().call(arrival)
    }
}

/// Takes the calls of a connection, for its driver.
#[derive(Clone, Debug)]
pub(super) struct Inline(Arc<Mutex<Accepting>>);

/// What the connection has accepted, and where the next call belongs. Its lock is never contended: the connection's
/// task alone uses it.
#[derive(Debug)]
struct Accepting {
    place: StreamState,
    calls: Vec<Accepted>,
    /// How many there have been.
    accepted: u64,
}

/// What the calls of a connection do, for its own task to ask.
#[derive(Clone, Debug)]
pub(super) struct Activity {
    accepting: Arc<Mutex<Accepting>>,
    busy: Arc<Busy>,
}

/// Referred to by each call that waits.
#[derive(Debug, Default)]
struct Busy;

impl Activity {
    /// How many calls there have been.
    pub(super) fn accepted(&self) -> u64 {
        self.accepting.lock().accepted
    }

    /// Whether any call is not answered, or its answer not sent.
    pub(super) fn is_busy(&self) -> bool {
        // This, and the driver's.
        Arc::strong_count(&self.busy) > 2
    }
}

/// Runs calls in their connection's own task, each until it has to wait; then most get tasks of their own.
///
/// A hot read is done by then, and spares the scheduler. A read that waits for a load stays: it has only to be answered,
/// and those of a connection whose loads land together are answered together. All that came in one read are accepted
/// before the first of them runs, and what they answer is sent when all of them have run.
///
/// With its driver, whatever a connection still waited for is gone: each call refers to where the next is accepted, so
/// there they would keep themselves for ever.
#[derive(Debug)]
pub(super) struct Driver {
    drain: Drain,
    longest: Duration,
    clock: TurnClock,
    accepting: Arc<Mutex<Accepting>>,
    waiting: FuturesUnordered<Waiting>,
    busy: Arc<Busy>,
}

type Call = Pin<Box<dyn Future<Output = ()> + Send>>;

struct Accepted {
    call: Call,
    place: StreamState,
}

/// A panic ends its own call, as it would in a task of its own, and not the connection.
type Waiting = CatchUnwind<AssertUnwindSafe<Timeout<Call>>>;

/// A turn of a connection's task. h2 wakes the task that it runs in whenever a call has taken its request; the scheduler
/// would take that for a reason to run it once more, and to wake another core to help.
#[derive(Debug, Default)]
struct AcceptTurn {
    task: AtomicWaker,
    state: AtomicU8,
}

const OVER: u8 = 0;
const UNDER_WAY: u8 = 1;
const WOKEN: u8 = 2;
/// After so many in a row others get theirs: tokio ends the reads of a task that does not pause.
const MOST_TURNS: usize = 16;

impl<F> Executor<F> for Inline
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, call: F) {
        let call = Box::pin(call);
        let mut accepting = self.0.lock();
        let place = accepting.place;
        accepting.accepted += 1;
        accepting.calls.push(Accepted { call, place });
    }
}

impl Driver {
    /// What its calls do. To be asked for once.
    pub(super) fn activity(&self) -> Activity {
        Activity { accepting: Arc::clone(&self.accepting), busy: Arc::clone(&self.busy) }
    }

    /// Drives a connection and its calls to the connection's end, and sends what they write.
    pub(super) async fn drive<C: Future>(
        &mut self,
        mut connection: Pin<&mut C>,
        outgoing: &Outgoing<impl AsyncWrite + Unpin>,
    ) -> C::Output {
        let (mut running, turn) = (Vec::new(), Arc::<AcceptTurn>::default());
        let waker = Waker::from(Arc::clone(&turn));
        poll_fn(|task| {
            turn.task.register(task.waker());
            let mut cx = Context::from_waker(&waker);
            for _ in 0..MOST_TURNS {
                turn.begin();
                self.clock.tick();
                let polled = connection.as_mut().poll(&mut cx);
                if polled.is_ready() {
                    return polled;
                }
                std::mem::swap(&mut running, &mut self.accepting.lock().calls);
                let ran = !running.is_empty();
                running.drain(..).for_each(|accepted| self.run(accepted));
                if self.go_on(&mut cx) || ran {
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

    fn run(&mut self, Accepted { mut call, place }: Accepted) {
        // Whom the waker would wake is not there yet: the next poll registers again.
        let mut cx = Context::from_waker(Waker::noop());
        let polled = catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(&mut cx)));
        if let Ok(Poll::Pending) = polled {
            self.wait(call, place);
        }
    }

    fn wait(&mut self, call: Call, place: StreamState) {
        let busy = Arc::clone(&self.busy);
        let call: Call = Box::pin(async move {
            let _busy = busy;
            call.await;
        });
        // Twice, because the first is for the answer to be made. A caller that does not read it holds it, and
        // nothing but the end of this future would free it.
        let limited = |call| tokio::time::timeout(self.longest * 2, call);
        match place {
            StreamState::ClientConnection => {
                self.waiting.push(AssertUnwindSafe(limited(call)).catch_unwind());
            }
            StreamState::Task => drop(self.drain.spawn(limited(call))),
            StreamState::LastingTask => drop(self.drain.spawn(call)),
        }
    }

    /// Goes on with the calls that wait no longer. Returns whether any has ended.
    fn go_on(&mut self, cx: &mut Context<'_>) -> bool {
        let mut any = false;
        while let Poll::Ready(Some(_)) = self.waiting.poll_next_unpin(cx) {
            any = true;
        }
        any
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Not under the lock: nobody knows what a call does when it is dropped.
        let accepted = std::mem::take(&mut self.accepting.lock().calls);
        drop(accepted);
    }
}

impl Wake for AcceptTurn {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(WOKEN, Ordering::AcqRel) == OVER {
            self.task.wake();
        }
    }
}

impl AcceptTurn {
    /// Whoever woke the task before this is served by what follows.
    fn begin(&self) {
        self.state.store(UNDER_WAY, Ordering::Release);
    }

    /// Whether nobody has woken the task since it began. From here on whoever does wakes it in earnest.
    fn ends(&self) -> bool {
        let ended =
            self.state.compare_exchange(UNDER_WAY, OVER, Ordering::AcqRel, Ordering::Relaxed);
        ended.is_ok()
    }
}

impl std::fmt::Debug for Accepted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Accepted").field("place", &self.place).finish_non_exhaustive()
    }
}
