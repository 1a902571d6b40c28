//! The messages in the body of a gRPC response.

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use tonic::{Code, Status};

use crate::entry::PREFIX;
use crate::rpc::reply::{Reply, Retained};

/// Reads the messages of a response one after the other. Holds what the call holds.
pub(super) struct Messages {
    reply: Reply,
    /// Received bytes that are no complete message yet.
    pending: BytesMut,
    ended: bool,
}

impl Messages {
    pub(super) fn new(reply: Reply) -> Self {
        Self { reply, pending: BytesMut::new(), ended: false }
    }

    /// What the call holds until its response is sent.
    pub(super) fn into_retained(self) -> Option<Retained> {
        self.reply.into_retained()
    }

    /// The next message; `None` at the end of a response whose status is OK. An error is the last item.
    pub(super) async fn next(&mut self) -> Option<Result<Bytes, Status>> {
        loop {
            if let Some(message) = self.complete() {
                return Some(Ok(message));
            }
            if self.ended {
                return None;
            }
            match self.reply.frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(chunk) => {
                        let bytes = chunk.into_bytes();
                        if self.pending.is_empty()
                            && let Some(message) = whole(&bytes)
                        {
                            return Some(Ok(message));
                        }
                        self.pending.extend_from_slice(&bytes);
                    }
                    Err(trailers) => {
                        self.ended = true;
                        let trailers = trailers.into_trailers().unwrap_or_default();
                        let status = Status::from_header_map(&trailers);
                        return status.filter(|status| status.code() != Code::Ok).map(Err);
                    }
                },
                Some(Err(status)) => {
                    self.ended = true;
                    return Some(Err(status));
                }
                None => self.ended = true,
            }
        }
    }

    fn complete(&mut self) -> Option<Bytes> {
        let length = PREFIX + length(&self.pending)?;
        if self.pending.len() < length {
            return None;
        }
        let mut message = self.pending.split_to(length).freeze();
        message.advance(PREFIX);
        Some(message)
    }
}

/// The message in `frame`, if that is exactly one: without a copy.
fn whole(frame: &Bytes) -> Option<Bytes> {
    (frame.len() == PREFIX + length(frame)?).then(|| frame.slice(PREFIX..))
}

/// The length of a message by its prefix.
fn length(bytes: &[u8]) -> Option<usize> {
    let [_compressed, length @ ..] = bytes.first_chunk::<PREFIX>()?;
    Some(u32::from_be_bytes(*length) as usize)
}
