//! Load shedding: past the limit of calls in flight the next one is refused at once, with a hint when to try
//! again. Health checks always pass: an instance that is busy must not look dead.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::body::Body;
use tower::{Layer, Service};

use super::status;
use crate::metrics::{Method, Metrics, Shed};

/// Puts [`ShedService`] around a service.
#[derive(Clone, Debug)]
pub(super) struct ShedLayer {
    in_flight: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

impl ShedLayer {
    pub(super) fn new(limit: usize, metrics: Arc<Metrics>) -> Self {
        let in_flight = Arc::new(Semaphore::new(limit));
        let help = "Unary calls in flight.";
        metrics.gauge("hotshelf.calls.in.flight", help, &in_flight, move |in_flight| {
            limit.saturating_sub(in_flight.available_permits()) as u64
        });
        Self { in_flight, metrics }
    }
}

impl<S> Layer<S> for ShedLayer {
    type Service = ShedService<S>;

    fn layer(&self, inner: S) -> ShedService<S> {
        ShedService { inner, shed: self.clone() }
    }
}

/// Refuses calls past the limit.
#[derive(Clone, Debug)]
pub(super) struct ShedService<S> {
    inner: S,
    shed: ShedLayer,
}

impl<S, B> Service<Request<B>> for ShedService<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = ShedFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> ShedFuture<S::Future> {
        let permit = match Method::of_path(request.uri().path()) {
            // Streams have limits of their own.
            Method::HealthCheck
            | Method::HealthWatch
            | Method::Reflection
            | Method::StreamHotKeys => None,
            _ => match Arc::clone(&self.shed.in_flight).try_acquire_owned() {
                Ok(permit) => Some(permit),
                Err(_) => {
                    self.shed.metrics.shed.inc(Shed::Calls);
                    return ShedFuture::Refused;
                }
            },
        };
        ShedFuture::Admitted { call: self.inner.call(request), permit }
    }
}

pin_project! {
    /// A call that was admitted, or one that was not.
    #[project = ShedProjection]
    pub(super) enum ShedFuture<F> {
        Admitted {
            #[pin]
            call: F,
            permit: Option<OwnedSemaphorePermit>,
        },
        Refused,
    }
}

impl<F: Future<Output = Result<Response<Body>, Infallible>>> Future for ShedFuture<F> {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            ShedProjection::Admitted { call, permit: _permit } => call.poll(cx),
            ShedProjection::Refused => Poll::Ready(Ok(status::too_many_requests().into_http())),
        }
    }
}
