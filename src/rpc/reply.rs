//! What goes back to the caller: stored bytes as they are, or whatever tonic made.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http::header::{CACHE_STATUS, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Response};
use http_body::{Body as HttpBody, Frame};
use tonic::Status;
use tonic::body::Body;

use super::allowance::Room;
use super::shed::CallPlace;
use crate::entry::Entry;

/// Bytes on their way to a caller.
#[derive(Debug)]
pub(super) enum Chunk {
    /// A stored product's, where they are.
    Stored {
        entry: Entry,
        /// How many of them have been written.
        sent: usize,
    },
    /// Those that were made for the call.
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
    // An answer that is not read takes memory, too.
    _held: Option<Retained>,
}

enum Content {
    /// One message with its prefix, until it has been taken; then the trailers of success.
    Message(Option<Chunk>),
    /// What tonic made; empty at the end.
    Tonic(Body),
}

/// What a call holds until its answer is sent.
#[derive(Debug)]
#[expect(dead_code, reason = "they give back what they hold when they are dropped")]
pub(super) enum Retained {
    /// One of the places of unary calls.
    CallPlace(CallPlace),
    /// One of the streams.
    Stream(Room),
}

impl Reply {
    /// The response with one message.
    pub(super) fn message(
        message: impl Into<Chunk>,
        headers: HeaderMap,
        place: CallPlace,
    ) -> Response<Self> {
        let content = Content::Message(Some(message.into()));
        let mut response = Response::new(Self { content, _held: Some(Retained::CallPlace(place)) });
        *response.headers_mut() = headers;
        response
    }

    /// What tonic made.
    pub(super) fn tonic(body: Body, held: Option<Retained>) -> Self {
        Self { content: Content::Tonic(body), _held: held }
    }

    /// Whether its trailers, if they are what comes next, are those of success.
    pub(super) fn succeeds(&self) -> bool {
        matches!(self.content, Content::Message(_))
    }
}

/// The headers of a message that came from where `cache_status` says (RFC 9211).
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
