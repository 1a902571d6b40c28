//! The one layer around every call: what the head of its request says is read once, the call is ended at its deadline, and it is
//! counted as it begins and ends.
//!
//! It is counted when its last part is dropped, so that a call which its caller gave up is counted too, as CANCELLED. A call
//! that passes its deadline is answered with DEADLINE_EXCEEDED; tonic's own timeout would say CANCELLED.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use http::{HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame};
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::Local;
use super::protocol::{Encoding, RequestHead};
use super::reply::{Chunk, Reply};
use super::{protocol, status};
use crate::metrics::{Method, Metrics};
use crate::moment::Moment;

/// A request, and the method that its path names.
#[derive(Debug)]
pub(super) struct Arrival<B> {
    pub(super) method: Method,
    pub(super) request: Request<B>,
}

/// The same, and what its head says besides.
#[derive(Debug)]
pub(super) struct Call<B> {
    pub(super) method: Method,
    pub(super) encoding: Encoding,
    pub(super) deadline: Deadline,
    pub(super) request: Request<B>,
}

/// Until when a caller waits: eight bytes, because a call is moved often.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline(Moment);

impl<B> Arrival<B> {
    pub(super) fn new(request: Request<B>) -> Self {
        Self { method: Method::of_path(request.uri().path()), request }
    }
}

impl Deadline {
    /// Streams may live until their callers have enough of them.
    const NONE: Self = Self(Moment::FOREVER);

    /// On the clock; `None`: never.
    pub(super) fn instant(self) -> Option<Instant> {
        self.remaining().and_then(|remaining| Instant::now().checked_add(remaining))
    }

    fn remaining(self) -> Option<Duration> {
        (self.0 != Moment::FOREVER).then(|| self.0.since(Moment::now()))
    }
}

/// Puts [`CallService`] around a service.
#[derive(Clone, Debug)]
pub(super) struct CallLayer {
    pub(super) metrics: Local<Metrics>,
    /// The longest that any unary call may take.
    pub(super) longest: Duration,
}

impl<S> Layer<S> for CallLayer {
    type Service = CallService<S>;

    fn layer(&self, inner: S) -> CallService<S> {
        CallService { inner, layer: self.clone() }
    }
}

/// Counts calls, and ends them at their deadlines.
#[derive(Clone, Debug)]
pub(super) struct CallService<S> {
    inner: S,
    layer: CallLayer,
}

/// One call; counted when it is dropped.
struct Observer {
    metrics: Local<Metrics>,
    method: Method,
    began: Moment,
    code: Code,
}

impl Observer {
    fn note_status(&mut self, headers: &HeaderMap) {
        if let Some(status) = headers.get(Status::GRPC_STATUS) {
            self.code = Code::from_bytes(status.as_bytes());
        }
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        let code = u8::try_from(self.code as i32).unwrap_or(u8::MAX);
        self.metrics.call_handled(self.method, code, self.began.elapsed());
    }
}

impl<S, B> Service<Arrival<B>> for CallService<S>
where
    S: Service<Call<B>, Response = Response<Reply>, Error = Infallible>,
{
    type Response = Response<CallBody>;
    type Error = Infallible;
    type Future = CallFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, Arrival { method, request }: Arrival<B>) -> CallFuture<S::Future> {
        let CallLayer { metrics, longest } = &self.layer;
        metrics.call_started(method);
        let (metrics, began) = (Arc::clone(metrics), Moment::now());
        let observer = Some(Observer { metrics, method, began, code: Code::Cancelled });
        let RequestHead { is_grpc, encoding, timeout } = RequestHead::of(&request);
        let asked = match timeout {
            Ok(asked) if is_grpc => asked,
            _ => {
                let response = Some(Box::new(refusal(&request, is_grpc)));
                return CallFuture { stage: Stage::Refused { response }, observer };
            }
        };
        // Streams end by themselves at their callers' deadlines.
        let deadline = match (asked, method.is_lasting()) {
            (None, true) => Deadline::NONE,
            (Some(asked), true) => Deadline(began + asked),
            (asked, false) => Deadline(began + asked.map_or(*longest, |asked| asked.min(*longest))),
        };
        let call = self.inner.call(Call { method, encoding, deadline, request });
        CallFuture { stage: Stage::Admitted { call, deadline, timer: None }, observer }
    }
}

fn refusal<B>(request: &Request<B>, is_grpc: bool) -> Response<Reply> {
    match is_grpc {
        true => status::malformed("its grpc-timeout is none").into_http(),
        // To hyper any CONNECT that is answered with 200 is a tunnel.
        false => protocol::refusal(request),
    }
}

pin_project! {
    /// A call under way.
    pub(super) struct CallFuture<F> {
        #[pin]
        stage: Stage<F>,
        observer: Option<Observer>,
    }
}

pin_project! {
    #[project = StageProjection]
    enum Stage<F> {
        Admitted {
            #[pin]
            call: F,
            deadline: Deadline,
            // Made when the call has to wait: most are done by then. Boxed, because a call is moved often.
            timer: Option<Pin<Box<Sleep>>>,
        },
        // It is not gRPC, or its deadline cannot be read.
        Refused { response: Option<Box<Response<Reply>>> },
    }
}

impl<F: Future<Output = Result<Response<Reply>, Infallible>>> Future for CallFuture<F> {
    type Output = Result<Response<CallBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = ready!(this.stage.poll_response(cx));
        let mut observer = this.observer.take();
        // An error before the first byte has its status in the headers.
        if let Some(observer) = &mut observer
            && response.body().is_end_stream()
        {
            // What is refused with an HTTP status has none: its sender takes it for this.
            observer.code = Code::Unknown;
            observer.note_status(response.headers());
        }
        Poll::Ready(Ok(response.map(|reply| CallBody { reply, observer })))
    }
}

impl<F: Future<Output = Result<Response<Reply>, Infallible>>> Stage<F> {
    fn poll_response(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Response<Reply>> {
        let (call, deadline, timer) = match self.project() {
            StageProjection::Admitted { call, deadline, timer } => (call, deadline, timer),
            StageProjection::Refused { response } => {
                return Poll::Ready(*response.take().unwrap_or_default());
            }
        };
        if let Poll::Ready(Ok(response)) = call.poll(cx) {
            return Poll::Ready(response);
        }
        if timer.is_none() {
            let Some(remaining) = deadline.remaining() else { return Poll::Pending };
            *timer = Some(Box::pin(tokio::time::sleep(remaining)));
        }
        let Some(timer) = timer else { return Poll::Pending };
        timer.as_mut().poll(cx).map(|()| status::deadline_exceeded().into_http())
    }
}

/// A response whose trailers say how the call ended.
pub(super) struct CallBody {
    reply: Reply,
    observer: Option<Observer>,
}

impl HttpBody for CallBody {
    type Data = Chunk;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Status>>> {
        let succeeds = self.reply.succeeds();
        let frame = ready!(Pin::new(&mut self.reply).poll_frame(cx));
        match (&frame, &mut self.observer) {
            (Some(Ok(frame)), Some(observer)) => match frame.trailers_ref() {
                Some(_) if succeeds => observer.code = Code::Ok,
                Some(trailers) => observer.note_status(trailers),
                None => {}
            },
            (Some(Err(status)), Some(observer)) => observer.code = status.code(),
            _ => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.reply.is_end_stream()
    }
}
