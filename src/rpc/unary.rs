//! The requests of hot reads, received by hand: tonic's own way allocates buffers, boxes and maps for each call, which
//! cost more than the read (gRPC over HTTP/2: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>).

use std::future::poll_fn;
use std::io::Read;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use flate2::read::GzDecoder;
use http_body::Body;
use prost::Message;
use tonic::Status;

use super::allowance::{Room, Share};
use super::protocol::Encoding;
use super::status;
use crate::entry::{PREFIX, prefix};

/// What a request costs that is not complete, besides its bytes: its stream, its call, its timers.
const COST: usize = 4_096;

/// Receives the requests of a connection.
#[derive(Debug)]
pub(super) struct Receiver {
    /// The largest message in bytes.
    pub(super) limit: usize,
    /// What requests that are not complete may hold.
    pub(super) share: Arc<Share>,
}

impl Receiver {
    /// Receives the one message of a unary request.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED past the limits, UNIMPLEMENTED for a compressed one, INVALID_ARGUMENT for what is no message.
    pub(super) async fn message<M, B>(&self, body: B, encoding: Encoding) -> Result<M, Status>
    where
        M: Message + Default,
        B: Body<Data = Bytes, Error: std::fmt::Display> + Unpin,
    {
        let frame = self.frame(body, encoding, 0).await?;
        M::decode(&frame[PREFIX..]).map_err(|error| status::malformed(&error.to_string()))
    }

    /// Receives the same, as a frame: behind its prefix. `head` is how many bytes of its head are kept meanwhile.
    ///
    /// # Errors
    /// As [`Self::message`], but for what only the message's type can tell.
    pub(super) async fn frame<B>(
        &self,
        mut body: B,
        encoding: Encoding,
        head: usize,
    ) -> Result<Bytes, Status>
    where
        B: Body<Data = Bytes, Error: std::fmt::Display> + Unpin,
    {
        let mut incomplete = Incomplete { share: &self.share, cost: COST + head, room: None };
        let first = incomplete.next(&mut body, 0).await?.unwrap_or_default();
        // Nearly always all of it.
        if body.is_end_stream() {
            return checked(first, encoding, self.limit);
        }
        // Copied: a part would keep all of the buffer that the connection read it into.
        let mut received = first.to_vec();
        while received.len() <= self.limit + PREFIX
            && let Some(more) = incomplete.next(&mut body, received.capacity()).await?
        {
            received.extend_from_slice(&more);
        }
        checked(received.into(), encoding, self.limit)
    }
}

/// A request that is being received.
struct Incomplete<'a> {
    share: &'a Arc<Share>,
    /// What it holds besides its bytes.
    cost: usize,
    /// Taken when it has to wait: most requests come at once.
    room: Option<Room>,
}

impl Incomplete<'_> {
    /// The next bytes, when `held` bytes have come; `None` at the end.
    async fn next<B>(&mut self, body: &mut B, held: usize) -> Result<Option<Bytes>, Status>
    where
        B: Body<Data = Bytes, Error: std::fmt::Display> + Unpin,
    {
        let frame = poll_fn(|cx| match Pin::new(&mut *body).poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(Ok(frame)),
            Poll::Pending => match self.wait(held) {
                Ok(()) => Poll::Pending,
                Err(refused) => Poll::Ready(Err(refused)),
            },
        });
        match frame.await? {
            // Trailers of a request mean nothing, and nothing comes after them.
            Some(Ok(frame)) => Ok(frame.into_data().ok()),
            Some(Err(error)) => Err(Status::cancelled(format!("the request broke off: {error}"))),
            None => Ok(None),
        }
    }

    fn wait(&mut self, held: usize) -> Result<(), Status> {
        let amount = self.cost + held;
        match &mut self.room {
            Some(room) => room.grow_to(amount),
            None => {
                self.room = Some(self.share.take(amount)?);
                Ok(())
            }
        }
    }
}

/// A whole request, not compressed.
fn checked(received: Bytes, encoding: Encoding, limit: usize) -> Result<Bytes, Status> {
    let Some(([compressed, length @ ..], message)) = received.split_first_chunk::<PREFIX>() else {
        return Err(status::malformed("it ended before its message"));
    };
    let length = u32::from_be_bytes(*length) as usize;
    match compressed {
        0 | 1 if length > limit => Err(status::request_too_large()),
        0 | 1 if length != message.len() => {
            Err(status::malformed("its length is not what its prefix says"))
        }
        0 => Ok(received),
        1 => match encoding {
            Encoding::Gzip => decompressed(message, limit),
            Encoding::Identity => Err(status::malformed("it is compressed and names no encoding")),
            Encoding::Other => Err(status::unknown_encoding()),
        },
        _ => Err(status::malformed("its compression flag is neither 0 nor 1")),
    }
}

/// No more than one byte past the limit is ever made of a message: a few bytes can become gigabytes.
fn decompressed(message: &[u8], limit: usize) -> Result<Bytes, Status> {
    let mut frame = vec![0; PREFIX];
    let mut decoder = GzDecoder::new(message).take(limit as u64 + 1);
    if let Err(error) = decoder.read_to_end(&mut frame) {
        return Err(status::malformed(&format!("it is no gzip: {error}")));
    }
    let length = frame.len() - PREFIX;
    if length > limit {
        return Err(status::request_too_large());
    }
    frame[..PREFIX].copy_from_slice(&prefix(length));
    Ok(frame.into())
}
