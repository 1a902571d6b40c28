//! Load shedding: past the limit of calls in flight the next one is refused at once, with a hint when to try
//! again. Health checks always pass: an instance that is busy must not look dead.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use http_body::{Body as HttpBody, Frame};
use pin_project_lite::pin_project;
use tonic::Status;
use tower::{Layer, Service};

use super::connection::Connection;
use super::reply::{Chunk, Reply};
use super::status;
use super::{Local, local};
use crate::metrics::{Method, Metrics, Shed};

/// Puts [`ShedService`] around a service.
#[derive(Clone, Debug)]
pub(super) struct ShedLayer {
    places: Local<Places>,
    connection: Option<Arc<Connection>>,
}

/// How many calls are in flight. A semaphore would take a lock for each, to see whether somebody waits; nobody does.
#[derive(Debug)]
struct Places {
    taken: AtomicUsize,
    limit: usize,
}

/// The place of a call in flight.
#[derive(Debug)]
pub(super) struct Place(Local<Places>);

impl Place {
    fn take(places: &Local<Places>) -> Option<Self> {
        // The place gives itself back, also when there was none.
        let place = Self(Arc::clone(places));
        (places.taken.fetch_add(1, Ordering::Relaxed) < places.limit).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ShedLayer {
    pub(super) fn new(limit: usize, metrics: &Arc<Metrics>) -> Self {
        let places = Arc::new(Places { taken: AtomicUsize::new(0), limit });
        let help = "Unary calls in flight.";
        metrics.gauge("hotshelf.calls.in.flight", help, &places, |places| {
            places.taken.load(Ordering::Relaxed).min(places.limit) as u64
        });
        Self { places: local(&places), connection: None }
    }

    /// The same limit for another connection.
    pub(super) fn of_connection(&self, connection: Arc<Connection>) -> Self {
        Self { places: local(&self.places), connection: Some(connection) }
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
    S: Service<Request<B>, Response = Response<Reply>, Error = Infallible>,
{
    type Response = Response<PlacedBody>;
    type Error = Infallible;
    type Future = ShedFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> ShedFuture<S::Future> {
        let method = Method::of_path(request.uri().path());
        // Streams have limits of their own.
        let place = match method.is_lasting() || method == Method::HealthCheck {
            true => None,
            false => match Place::take(&self.shed.places) {
                Some(place) => Some(place),
                None => {
                    if let Some(connection) = &self.shed.connection {
                        connection.refused(Shed::Calls);
                    }
                    return ShedFuture::Refused;
                }
            },
        };
        ShedFuture::Admitted { call: self.inner.call(request), place }
    }
}

pin_project! {
    /// A call that was admitted, or one that was not.
    #[project = ShedProjection]
    pub(super) enum ShedFuture<F> {
        Admitted {
            #[pin]
            call: F,
            place: Option<Place>,
        },
        Refused,
    }
}

impl<F: Future<Output = Result<Response<Reply>, Infallible>>> Future for ShedFuture<F> {
    type Output = Result<Response<PlacedBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (response, place) = match self.project() {
            ShedProjection::Admitted { call, place } => {
                let Ok(response) = ready!(call.poll(cx));
                (response, place.take())
            }
            ShedProjection::Refused => (status::too_many_requests().into_http(), None),
        };
        Poll::Ready(Ok(response.map(|body| PlacedBody { body, _place: place })))
    }
}

/// A response that holds its call's place until it is sent: one that nobody reads takes memory, too.
#[derive(Default)]
pub(super) struct PlacedBody {
    body: Reply,
    _place: Option<Place>,
}

impl PlacedBody {
    /// See [`Reply::succeeds`].
    pub(super) fn succeeds(&self) -> bool {
        self.body.succeeds()
    }
}

impl HttpBody for PlacedBody {
    type Data = Chunk;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}
