//! Deadlines: the caller's `grpc-timeout`, and a maximum of ours. A call that passes its deadline is answered
//! with DEADLINE_EXCEEDED; tonic's own timeout would say CANCELLED.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, Request, Response};
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tower::{Layer, Service};

use super::reply::Reply;
use super::status;
use crate::metrics::Method;

// A name that is no string is not parsed for each call.
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// When the caller is answered at the latest; among the extensions of a request that has a deadline of its own, or that is unary.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline(pub(super) Instant);

/// Puts [`DeadlineService`] around a service.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeadlineLayer {
    /// The longest that any unary call may take.
    pub(super) longest: Duration,
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = DeadlineService<S>;

    fn layer(&self, inner: S) -> DeadlineService<S> {
        DeadlineService { inner, longest: self.longest }
    }
}

/// Ends calls at their deadlines.
#[derive(Clone, Debug)]
pub(super) struct DeadlineService<S> {
    inner: S,
    longest: Duration,
}

impl<S, B> Service<Request<B>> for DeadlineService<S>
where
    S: Service<Request<B>, Response = Response<Reply>, Error = Infallible>,
{
    type Response = Response<Reply>;
    type Error = Infallible;
    type Future = DeadlineFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> DeadlineFuture<S::Future> {
        let Ok(asked) = timeout_of(request.headers()) else { return DeadlineFuture::Refused };
        // Streams live until the caller has enough of them, and end by themselves at its deadline.
        let timeout = match Method::of_path(request.uri().path()).is_lasting() {
            true => asked,
            false => Some(asked.map_or(self.longest, |asked| asked.min(self.longest))),
        };
        if let Some(deadline) = timeout.and_then(|timeout| Instant::now().checked_add(timeout)) {
            request.extensions_mut().insert(Deadline(deadline));
        }
        DeadlineFuture::Admitted { call: self.inner.call(request), timeout, timer: None }
    }
}

pin_project! {
    /// A call and its deadline, or one whose deadline cannot be read.
    #[project = DeadlineProjection]
    pub(super) enum DeadlineFuture<F> {
        Admitted {
            #[pin]
            call: F,
            timeout: Option<Duration>,
            // Made when the call has to wait: most are done by then.
            #[pin]
            timer: Option<Sleep>,
        },
        Refused,
    }
}

impl<F: Future<Output = Result<Response<Reply>, Infallible>>> Future for DeadlineFuture<F> {
    type Output = Result<Response<Reply>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let DeadlineProjection::Admitted { call, timeout, mut timer } = self.project() else {
            return Poll::Ready(Ok(status::malformed("its grpc-timeout is none").into_http()));
        };
        if let Poll::Ready(response) = call.poll(cx) {
            return Poll::Ready(response);
        }
        if let Some(timeout) = timeout.take() {
            timer.set(Some(tokio::time::sleep(timeout)));
        }
        let Some(timer) = timer.as_pin_mut() else { return Poll::Pending };
        timer.poll(cx).map(|()| Ok(status::deadline_exceeded().into_http()))
    }
}

/// A `grpc-timeout` that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Malformed;

/// What `grpc-timeout` says, if there is one. To ignore a malformed one would be to wait for longer than the caller does.
fn timeout_of(headers: &HeaderMap) -> Result<Option<Duration>, Malformed> {
    match headers.get(GRPC_TIMEOUT) {
        None => Ok(None),
        Some(value) => value.to_str().ok().and_then(parse).map(Some).ok_or(Malformed),
    }
}

/// At most eight digits and a unit.
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(amount * 3_600)),
        "M" => Some(Duration::from_secs(amount * 60)),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_read_as_the_protocol_writes_them() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().expect("a header"));
            timeout_of(&headers)
        };
        assert_eq!(timeout_of(&HeaderMap::new()), Ok(None));
        assert_eq!(read("20m"), Ok(Some(Duration::from_millis(20))));
        assert_eq!(read("99999999H"), Ok(Some(Duration::from_secs(99_999_999 * 3_600))));
        assert_eq!(read("7u"), Ok(Some(Duration::from_micros(7))));
        for bad in ["", "S", "20", "-1S", "123456789S", "1.5S", "1s", "+1S"] {
            assert_eq!(read(bad), Err(Malformed), "{bad:?}");
        }
    }
}
