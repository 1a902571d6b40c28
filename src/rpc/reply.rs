//! What goes back to the caller: stored bytes as they are, or whatever tonic made.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CACHE_STATUS, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Response};
use http_body::{Body as HttpBody, Frame};
use tonic::Status;
use tonic::body::Body;

/// The body of a response.
pub(super) enum Reply {
    /// One message with its prefix, then the trailers of success.
    Message(Bytes),
    /// The trailers of success.
    Success,
    /// What tonic made; empty at the end.
    Tonic(Body),
}

impl Reply {
    /// The response with one message, which came from where `cache_status` says (RFC 9211).
    pub(super) fn message(message: Bytes, cache_status: &'static str) -> Response<Self> {
        let mut headers = HeaderMap::with_capacity(2);
        headers.insert(CONTENT_TYPE, tonic::metadata::GRPC_CONTENT_TYPE);
        headers.insert(CACHE_STATUS, HeaderValue::from_static(cache_status));
        let mut response = Response::new(Self::Message(message));
        *response.headers_mut() = headers;
        response
    }
}

impl Default for Reply {
    fn default() -> Self {
        Self::Tonic(Body::empty())
    }
}

impl HttpBody for Reply {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let frame = match this {
            Self::Tonic(body) => return Pin::new(body).poll_frame(cx),
            Self::Message(message) => {
                let message = std::mem::take(message);
                *this = Self::Success;
                Frame::data(message)
            }
            Self::Success => {
                *this = Self::default();
                Frame::trailers(success())
            }
        };
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Tonic(body) if body.is_end_stream())
    }
}

fn success() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
    trailers
}
