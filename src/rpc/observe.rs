//! The metrics layer: counts calls as they begin and end, and how they end. It records when the call's last
//! part is dropped, so that a call which its caller gave up is counted too, as CANCELLED.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame};
use pin_project_lite::pin_project;
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::Local;
use super::reply::Chunk;
use super::shed::PlacedBody;
use crate::metrics::{Method, Metrics};
use crate::moment::Moment;

/// Puts [`ObserveService`] around a service.
#[derive(Clone, Debug)]
pub(super) struct ObserveLayer(pub(super) Local<Metrics>);

impl<S> Layer<S> for ObserveLayer {
    type Service = ObserveService<S>;

    fn layer(&self, inner: S) -> ObserveService<S> {
        ObserveService { inner, metrics: Arc::clone(&self.0) }
    }
}

/// Counts calls.
#[derive(Clone, Debug)]
pub(super) struct ObserveService<S> {
    inner: S,
    metrics: Local<Metrics>,
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

impl<S, B> Service<Request<B>> for ObserveService<S>
where
    S: Service<Request<B>, Response = Response<PlacedBody>, Error = Infallible>,
{
    type Response = Response<ObservedBody>;
    type Error = Infallible;
    type Future = ObserveFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> ObserveFuture<S::Future> {
        let method = Method::of_path(request.uri().path());
        self.metrics.call_started(method);
        let metrics = Arc::clone(&self.metrics);
        let observer = Observer { metrics, method, began: Moment::now(), code: Code::Cancelled };
        ObserveFuture { call: self.inner.call(request), observer: Some(observer) }
    }
}

pin_project! {
    /// A call that is counted.
    pub(super) struct ObserveFuture<F> {
        #[pin]
        call: F,
        observer: Option<Observer>,
    }
}

impl<F: Future<Output = Result<Response<PlacedBody>, Infallible>>> Future for ObserveFuture<F> {
    type Output = Result<Response<ObservedBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Ok(response) = ready!(this.call.poll(cx));
        // An error before the first byte has its status in the headers.
        if let Some(observer) = this.observer
            && response.body().is_end_stream()
        {
            // What is refused with an HTTP status has none: its sender takes it for this.
            observer.code = Code::Unknown;
            observer.note_status(response.headers());
        }
        let observer = this.observer.take();
        Poll::Ready(Ok(response.map(|body| ObservedBody { body, observer })))
    }
}

pin_project! {
    /// A response whose trailers say how the call ended.
    pub(super) struct ObservedBody {
        #[pin]
        body: PlacedBody,
        observer: Option<Observer>,
    }
}

impl HttpBody for ObservedBody {
    type Data = Chunk;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Status>>> {
        let this = self.project();
        let succeeds = this.body.succeeds();
        let frame = ready!(this.body.poll_frame(cx));
        match (&frame, &mut *this.observer) {
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
        self.body.is_end_stream()
    }
}
