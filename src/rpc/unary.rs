//! Receives the request of a unary call without tonic, which allocates buffers, boxes and maps for each call; those cost more
//! than a hot read. The format is that of <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>.

use std::future::poll_fn;
use std::io::Read;
use std::pin::Pin;
use std::task::Poll;

use bytes::Bytes;
use flate2::read::GzDecoder;
use http_body::Body;
use prost::Message;
use tonic::Status;

use super::allowance::Reservation;
use super::connection::Account;
use super::protocol::Encoding;
use super::status;
use crate::entry::{PREFIX, prefix};

/// Approximate bytes that an incomplete request holds besides its own: stream, call, timers.
const OVERHEAD: usize = 4_096;

/// Receives a request.
#[derive(Debug)]
pub(super) struct Receiver<'a> {
    /// Size of the largest message in bytes, before and after decompression.
    pub(super) limit: usize,
    /// Bounds the bytes that incomplete requests hold.
    pub(super) account: Account<'a>,
}

impl Receiver<'_> {
    /// Receives the one message of a unary request. `head` is the size of the request's head, which is held meanwhile.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED above a limit of the account, CANCELLED when the request breaks off.
    pub(super) async fn receive<B>(&self, mut body: B, head: usize) -> Result<Received, Status>
    where
        B: Body<Data = Bytes, Error: std::fmt::Display> + Unpin,
    {
        let mut incomplete =
            Incomplete { account: &self.account, overhead: OVERHEAD + head, reserved: None };
        let first = incomplete.next(&mut body, 0).await?.unwrap_or_default();
        // Nearly always the whole request.
        if body.is_end_stream() {
            return Ok(Received { bytes: first, limit: self.limit });
        }
        // Copied, because a slice would keep the whole read buffer of the connection alive.
        let mut received = first.to_vec();
        while received.len() <= self.limit + PREFIX
            && let Some(more) = incomplete.next(&mut body, received.capacity()).await?
        {
            received.extend_from_slice(&more);
        }
        Ok(Received { bytes: received.into(), limit: self.limit })
    }
}

/// A complete request. It is decompressed after the call has taken its place, so that the calls that do that are limited.
pub(super) struct Received {
    bytes: Bytes,
    limit: usize,
}

impl Received {
    /// A message that came otherwise than in the body, within the same limit.
    pub(super) fn replaced_by(self, bytes: Bytes) -> Self {
        Self { bytes, ..self }
    }

    /// # Errors
    /// RESOURCE_EXHAUSTED for a message that is too large, UNIMPLEMENTED for an unknown compression, INVALID_ARGUMENT for a
    /// malformed message.
    pub(super) fn message<M: Message + Default>(self, encoding: Encoding) -> Result<M, Status> {
        let frame = self.frame(encoding)?;
        M::decode(&frame[PREFIX..]).map_err(|error| status::malformed(&error.to_string()))
    }

    /// The bytes of a request without frames: a message, compressed by its `content-encoding`.
    ///
    /// # Errors
    /// As [`Self::message`].
    pub(super) fn unframed(self, encoding: Encoding) -> Result<Bytes, Status> {
        match encoding {
            _ if self.bytes.len() > self.limit => Err(status::request_too_large()),
            Encoding::Identity => Ok(self.bytes),
            Encoding::Gzip => Ok(decompressed(&self.bytes, self.limit)?.slice(PREFIX..)),
            Encoding::Other => Err(status::unknown_encoding()),
        }
    }

    /// The uncompressed frame, the gRPC prefix included.
    ///
    /// # Errors
    /// As [`Self::message`], but the message is not decoded.
    pub(super) fn frame(self, encoding: Encoding) -> Result<Bytes, Status> {
        checked(self.bytes, encoding, self.limit)
    }
}

/// A request that is being received.
struct Incomplete<'a> {
    account: &'a Account<'a>,
    /// Bytes that it holds besides those received.
    overhead: usize,
    /// Taken only when the request has to wait, because most requests arrive in one piece.
    reserved: Option<Reservation>,
}

impl Incomplete<'_> {
    /// The next bytes, or `None` at the end. While it waits, `held` bytes are reserved.
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
            // Trailers of a request have no meaning in gRPC, and end it.
            Some(Ok(frame)) => Ok(frame.into_data().ok()),
            Some(Err(error)) => Err(Status::cancelled(format!("the request broke off: {error}"))),
            None => Ok(None),
        }
    }

    fn wait(&mut self, held: usize) -> Result<(), Status> {
        let amount = self.overhead + held;
        let account = self.account;
        let reserved = match &mut self.reserved {
            Some(reserved) => reserved.grow_to(amount),
            None => account
                .limits()
                .requests
                .take(amount)
                .map(|reserved| self.reserved = Some(reserved)),
        };
        reserved.map_err(|over| account.over_limit(over))
    }
}

/// Checks the prefix of a complete request and decompresses the message.
fn checked(received: Bytes, encoding: Encoding, limit: usize) -> Result<Bytes, Status> {
    let Some(([compressed, length @ ..], message)) = received.split_first_chunk::<PREFIX>() else {
        return Err(status::malformed("it ended before its message"));
    };
    let length = u32::from_be_bytes(*length) as usize;
    match compressed {
        0 | 1 if length > limit => Err(status::request_too_large()),
        0 | 1 if length != message.len() => {
            Err(status::malformed("its length does not match its prefix"))
        }
        0 => Ok(received),
        1 => match encoding {
            Encoding::Gzip => decompressed(message, limit),
            Encoding::Identity => {
                Err(status::malformed("it is compressed but names no grpc-encoding"))
            }
            Encoding::Other => Err(status::unknown_encoding()),
        },
        _ => Err(status::malformed("its compression flag is neither 0 nor 1")),
    }
}

/// Decompresses at most one byte more than `limit`, because a few bytes can expand to gigabytes.
fn decompressed(message: &[u8], limit: usize) -> Result<Bytes, Status> {
    let mut frame = vec![0; PREFIX];
    let mut decoder = GzDecoder::new(message).take(limit as u64 + 1);
    if let Err(error) = decoder.read_to_end(&mut frame) {
        return Err(status::malformed(&format!("it is not valid gzip: {error}")));
    }
    let length = frame.len() - PREFIX;
    if length > limit {
        return Err(status::request_too_large());
    }
    frame[..PREFIX].copy_from_slice(&prefix(length));
    Ok(frame.into())
}
