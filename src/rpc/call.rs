//! The one tower layer around every call. It reads the head of the request once, ends the call at its deadline, and counts it.
//!
//! A call is counted when its future and its body have been dropped, so that a call that the client cancels is counted too, as
//! CANCELLED. A call that passes its deadline gets DEADLINE_EXCEEDED; tonic's own timeout answers with CANCELLED.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use http::{HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::PerConnection;
use super::protocol::{Encoding, RequestHead};
use super::reply::{Chunk, Reply};
use super::{status, traced, web};
use crate::caller::SpanKey;
use crate::metrics::{Method, Metrics};
use crate::moment::Moment;

/// A request, and the method that its path names.
#[derive(Debug)]
pub(super) struct IncomingCall<B> {
    pub(super) method: Method,
    pub(super) request: Request<B>,
}

/// A request with its head read.
#[derive(Debug)]
pub(super) struct Call<B> {
    pub(super) method: Method,
    pub(super) protocol: Protocol,
    pub(super) encoding: Encoding,
    pub(super) deadline: Deadline,
    pub(super) span: SpanKey,
    pub(super) request: Request<B>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Grpc,
    /// Any other: see `web.rs`, which applies the deadline itself, so that its error has the form of the protocol.
    Web {
        malformed_timeout: bool,
    },
}

/// Until when the caller waits. Eight bytes, unlike an `Option<Instant>`, because a call is moved often.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline(Moment);

impl<B> IncomingCall<B> {
    pub(super) fn new(request: Request<B>) -> Self {
        let method = match Method::of_path(request.uri().path()) {
            // A preflight of CORS is no call of the method.
            _ if *request.method() == http::Method::OPTIONS => Method::Other,
            Method::Other => web::method(&request),
            method => method,
        };
        Self { method, request }
    }
}

impl Deadline {
    /// For streams: they last until their clients end them.
    const NONE: Self = Self(Moment::FOREVER);

    /// `None` when there is no deadline.
    pub(super) fn instant(self) -> Option<Instant> {
        self.remaining().and_then(|remaining| Instant::now().checked_add(remaining))
    }

    /// This one, or `timeout` after `began` if that is earlier.
    pub(super) fn at_most(self, began: Moment, timeout: Duration) -> Self {
        Self(self.0.min(began + timeout))
    }

    pub(super) fn remaining(self) -> Option<Duration> {
        (self.0 != Moment::FOREVER).then(|| self.0.since(Moment::now()))
    }
}

/// Puts [`CallService`] around a service.
#[derive(Clone, Debug)]
pub(super) struct CallLayer {
    pub(super) metrics: PerConnection<Metrics>,
    /// Bounds the deadlines of unary calls.
    pub(super) max_call_time: Duration,
}

impl<S> Layer<S> for CallLayer {
    type Service = CallService<S>;

    fn layer(&self, inner: S) -> CallService<S> {
        CallService { inner, layer: self.clone() }
    }
}

#[derive(Clone, Debug)]
pub(super) struct CallService<S> {
    inner: S,
    layer: CallLayer,
}

/// Counts one call when it is dropped.
struct Observer {
    metrics: PerConnection<Metrics>,
    method: Method,
    began: Moment,
    /// CANCELLED until the status is known.
    code: Code,
    span: SpanKey,
}

impl Observer {
    fn record_status(&mut self, headers: &HeaderMap) {
        if let Some(status) = headers.get(Status::GRPC_STATUS) {
            self.code = Code::from_bytes(status.as_bytes());
        }
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        let code = u8::try_from(self.code as i32).unwrap_or(u8::MAX);
        self.metrics.call_handled(self.method, code, self.began.elapsed());
        if self.span.is_some() {
            traced::end(&self.metrics.traces, self.span, self.code);
        }
    }
}

impl<S, B> Service<IncomingCall<B>> for CallService<S>
where
    S: Service<Call<B>, Response = Response<Reply>, Error = Infallible>,
{
    type Response = Response<CallBody>;
    type Error = Infallible;
    type Future = CallFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, IncomingCall { method, request }: IncomingCall<B>) -> CallFuture<S::Future> {
        let CallLayer { metrics, max_call_time } = &self.layer;
        metrics.call_started(method);
        let span = match metrics.traces.is_on() {
            true => traced::begin(&metrics.traces, method, &request),
            false => SpanKey::NONE,
        };
        let (metrics, began) = (Arc::clone(metrics), Moment::now());
        let observer = Some(Observer { metrics, method, began, code: Code::Cancelled, span });
        let RequestHead { is_grpc, encoding, timeout } = RequestHead::of(&request);
        let (protocol, timeout) = match timeout {
            Ok(timeout) if is_grpc => (Protocol::Grpc, timeout),
            Err(_) if is_grpc => {
                let refusal = status::malformed("its grpc-timeout is malformed").into_http();
                let response = Some(Box::new(refusal));
                return CallFuture { state: CallState::Refused { response }, observer };
            }
            timeout => {
                (Protocol::Web { malformed_timeout: timeout.is_err() }, timeout.ok().flatten())
            }
        };
        // `max_call_time` is for unary calls only.
        let deadline = match (timeout, method.is_lasting()) {
            (None, true) => Deadline::NONE,
            (Some(timeout), true) => Deadline(began + timeout),
            (timeout, false) => Deadline(
                began + timeout.map_or(*max_call_time, |timeout| timeout.min(*max_call_time)),
            ),
        };
        let call = Call { method, protocol, encoding, deadline, span, request };
        let call = self.inner.call(call);
        let deadline = if is_grpc { deadline } else { Deadline::NONE };
        CallFuture { state: CallState::Admitted { call, deadline, timer: None }, observer }
    }
}

pin_project! {
    pub(super) struct CallFuture<F> {
        #[pin]
        state: CallState<F>,
        observer: Option<Observer>,
    }
}

pin_project! {
    #[project = CallStateProjection]
    enum CallState<F> {
        Admitted {
            #[pin]
            call: F,
            deadline: Deadline,
            // Set when the first poll returns Pending, because most calls finish at once. Boxed, because a call is
            // moved often.
            timer: Option<Pin<Box<Sleep>>>,
        },
        // The grpc-timeout is malformed.
        Refused { response: Option<Box<Response<Reply>>> },
    }
}

impl<F: Future<Output = Result<Response<Reply>, Infallible>>> Future for CallFuture<F> {
    type Output = Result<Response<CallBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let traced = this.observer.as_ref().filter(|observer| observer.span.is_some());
        let response = match traced {
            None => ready!(this.state.poll_response(cx)),
            Some(Observer { metrics, span, .. }) => {
                let span = metrics.traces.call(*span);
                let response = ready!(span.log().in_scope(|| this.state.poll_response(cx)));
                traced::record_response(&span, &response);
                response
            }
        };
        let mut observer = this.observer.take();
        // A response without a body has its status in the headers ("Trailers-Only").
        if let Some(observer) = &mut observer
            && response.body().is_end_stream()
        {
            // gRPC clients report a response without any status as UNKNOWN.
            observer.code = response.body().code().unwrap_or(Code::Unknown);
            observer.record_status(response.headers());
        }
        Poll::Ready(Ok(response.map(|reply| CallBody { reply, observer })))
    }
}

impl<F: Future<Output = Result<Response<Reply>, Infallible>>> CallState<F> {
    fn poll_response(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Response<Reply>> {
        let (call, deadline, timer) = match self.project() {
            CallStateProjection::Admitted { call, deadline, timer } => (call, deadline, timer),
            CallStateProjection::Refused { response } => {
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

/// A response body that passes the status in its trailers to the observer.
#[derive(Default)]
pub(super) struct CallBody {
    reply: Reply,
    observer: Option<Observer>,
}

impl HttpBody for CallBody {
    type Data = Chunk;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Status>>> {
        let Self { reply, observer } = self.get_mut();
        let succeeds = reply.succeeds();
        let frame = ready!(Pin::new(&mut *reply).poll_frame(cx));
        match (&frame, observer) {
            (Some(Ok(frame)), Some(observer)) => match frame.trailers_ref() {
                Some(_) if succeeds => observer.code = Code::Ok,
                Some(trailers) => observer.record_status(trailers),
                None => observer.code = reply.code().unwrap_or(observer.code),
            },
            (Some(Err(status)), Some(observer)) => observer.code = status.code(),
            (None, Some(observer)) => observer.code = reply.code().unwrap_or(observer.code),
            _ => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.reply.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.reply.size_hint()
    }
}
