//! Response bodies: the stored bytes of a product without a copy, or the body that tonic made.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http::header::{CACHE_STATUS, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};

use super::allowance::Reservation;
use super::shed::CallPlace;
use crate::entry::{Entry, PREFIX};
use crate::product::Version;

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

impl Chunk {
    /// The stored product without the gRPC prefix.
    pub(super) fn message(entry: Entry) -> Self {
        Self::Stored { entry, sent: PREFIX }
    }

    /// Without a copy where possible.
    pub(super) fn into_bytes(mut self) -> Bytes {
        self.copy_to_bytes(self.remaining())
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

    fn copy_to_bytes(&mut self, length: usize) -> Bytes {
        match self {
            Self::Made(bytes) => bytes.copy_to_bytes(length),
            Self::Stored { entry, sent } => {
                let copy = Bytes::copy_from_slice(&entry.frame()[*sent..*sent + length]);
                *sent += length;
                copy
            }
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
    /// Kept until the body is dropped, because a response that is not read takes memory.
    retained: Option<Retained>,
}

enum Content {
    /// One message with its prefix; once it is taken, the trailers of success follow.
    Message(Option<Chunk>),
    /// A body made by tonic. An empty one also marks the end of [`Self::Message`].
    Tonic(Body),
    /// The one part of a response in another protocol than gRPC; empty once it is taken.
    Whole(Option<Chunk>, Code),
    /// A stream in another protocol than gRPC.
    Stream(Body, FinalCode),
}

/// The status of a stream in another protocol than gRPC; CANCELLED until the stream has ended.
#[derive(Clone, Debug)]
pub(super) struct FinalCode(Arc<AtomicI32>);

impl Default for FinalCode {
    fn default() -> Self {
        Self(Arc::new(AtomicI32::new(Code::Cancelled as i32)))
    }
}

impl FinalCode {
    pub(super) fn set(&self, code: Code) {
        self.0.store(code as i32, Ordering::Relaxed);
    }

    fn get(&self) -> Code {
        Code::from_i32(self.0.load(Ordering::Relaxed))
    }
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
            Response::new(Self { content, retained: Some(Retained::CallPlace(place)) });
        *response.headers_mut() = headers;
        response
    }

    /// The whole body of a response in another protocol than gRPC.
    pub(super) fn whole(
        chunk: impl Into<Option<Chunk>>,
        code: Code,
        retained: Option<Retained>,
    ) -> Self {
        Self { content: Content::Whole(chunk.into(), code), retained }
    }

    pub(super) fn into_retained(self) -> Option<Retained> {
        self.retained
    }

    /// A stream in another protocol than gRPC. `body` retains what the call holds.
    pub(super) fn stream(body: Body, code: FinalCode) -> Self {
        Self { content: Content::Stream(body, code), retained: None }
    }

    /// The status of a response in another protocol than gRPC, as far as it is known.
    pub(super) fn code(&self) -> Option<Code> {
        match &self.content {
            Content::Message(_) | Content::Tonic(_) => None,
            Content::Whole(_, code) => Some(*code),
            Content::Stream(_, code) => Some(code.get()),
        }
    }

    pub(super) fn tonic(body: Body, retained: Option<Retained>) -> Self {
        Self { content: Content::Tonic(body), retained }
    }

    /// The version of the stored product that is the message.
    pub(super) fn version(&self) -> Option<Version> {
        match &self.content {
            Content::Message(Some(Chunk::Stored { entry, .. }))
            | Content::Whole(Some(Chunk::Stored { entry, .. }), _) => {
                Some(entry.revision().version)
            }
            _ => None,
        }
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
            Content::Stream(body, _) => {
                return Pin::new(body).poll_frame(cx).map_ok(|frame| frame.map_data(Chunk::Made));
            }
            Content::Whole(chunk, _) => match chunk.take() {
                Some(chunk) => Frame::data(chunk),
                None => return Poll::Ready(None),
            },
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
        match &self.content {
            Content::Message(_) => false,
            Content::Tonic(body) | Content::Stream(body, _) => body.is_end_stream(),
            Content::Whole(chunk, _) => chunk.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(chunk, _) => {
                SizeHint::with_exact(chunk.as_ref().map_or(0, |chunk| chunk.remaining() as u64))
            }
            _ => SizeHint::default(),
        }
    }
}

fn success() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
    trailers
}
