//! Response bodies: the stored bytes of a product without a copy, or the body that tonic made.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http::header::{CACHE_STATUS, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Response};
use http_body::{Body as HttpBody, Frame};
use tonic::Status;
use tonic::body::Body;

use super::allowance::Reservation;
use super::shed::CallPlace;
use crate::entry::Entry;

/// Bytes of a response.
#[derive(Debug)]
pub(super) enum Chunk {
    /// The frame of a stored product, shared with the cache.
    Stored {
        entry: Entry,
        /// How many of its bytes have been written.
        sent: usize,
    },
    /// Bytes that were made for this call.
    Made(Bytes),
}

impl From<Entry> for Chunk {
    fn from(entry: Entry) -> Self {
        Self::Stored { entry, sent: 0 }
    }
}

impl From<Bytes> for Chunk {
    fn from(bytes: Bytes) -> Self {
        Self::Made(bytes)
    }
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.chunk().len()
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Self::Stored { entry, sent } => &entry.frame()[*sent..],
            Self::Made(bytes) => bytes,
        }
    }

    fn advance(&mut self, written: usize) {
        match self {
            Self::Stored { sent, .. } => *sent += written,
            Self::Made(bytes) => bytes.advance(written),
        }
    }
}

/// The body of a response.
#[derive(Default)]
pub(super) struct Reply {
    content: Content,
    // Kept until the body is dropped, because a response that is not read takes memory.
    _retained: Option<Retained>,
}

enum Content {
    /// One message with its prefix; once it is taken, the trailers of success follow.
    Message(Option<Chunk>),
    /// A body made by tonic. An empty one also marks the end of [`Self::Message`].
    Tonic(Body),
}

/// What a call holds until its response is sent.
#[derive(Debug)]
#[expect(dead_code, reason = "held for the release on drop")]
pub(super) enum Retained {
    CallPlace(CallPlace),
    Stream(Reservation),
}

impl Reply {
    /// A response with one message and the status OK.
    pub(super) fn message(
        message: impl Into<Chunk>,
        headers: HeaderMap,
        place: CallPlace,
    ) -> Response<Self> {
        let content = Content::Message(Some(message.into()));
        let mut response =
            Response::new(Self { content, _retained: Some(Retained::CallPlace(place)) });
        *response.headers_mut() = headers;
        response
    }

    pub(super) fn tonic(body: Body, retained: Option<Retained>) -> Self {
        Self { content: Content::Tonic(body), _retained: retained }
    }

    /// Whether the next trailers are those of success.
    pub(super) fn succeeds(&self) -> bool {
        matches!(self.content, Content::Message(_))
    }
}

/// The headers of a response with a message. `cache_status` names the tier that served it (RFC 9211).
pub(super) fn headers(cache_status: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(2);
    headers.insert(CONTENT_TYPE, tonic::metadata::GRPC_CONTENT_TYPE);
    headers.insert(CACHE_STATUS, HeaderValue::from_static(cache_status));
    headers
}

impl Default for Content {
    fn default() -> Self {
        Self::Tonic(Body::empty())
    }
}

impl HttpBody for Reply {
    type Data = Chunk;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Status>>> {
        let content = &mut self.get_mut().content;
        let frame = match content {
            Content::Tonic(body) => {
                return Pin::new(body).poll_frame(cx).map_ok(|frame| frame.map_data(Chunk::Made));
            }
            Content::Message(message) => match message.take() {
                Some(message) => Frame::data(message),
                None => {
                    *content = Content::default();
                    Frame::trailers(success())
                }
            },
        };
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        matches!(&self.content, Content::Tonic(body) if body.is_end_stream())
    }
}

fn success() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
    trailers
}
