//! The requests of hot reads, received by hand: tonic's own way allocates buffers, boxes and maps for each call, which
//! cost more than the read (gRPC over HTTP/2: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>).

use std::future::poll_fn;
use std::pin::Pin;

use bytes::{Bytes, BytesMut};
use http_body::Body;
use prost::Message;
use tonic::Status;

use super::status;
use crate::entry::PREFIX;

/// Receives the one message of a unary request; `limit` is its largest size in bytes.
///
/// # Errors
/// RESOURCE_EXHAUSTED past the limit, UNIMPLEMENTED for a compressed one, INVALID_ARGUMENT for what is no message.
pub(super) async fn receive<M, B>(body: B, limit: usize) -> Result<M, Status>
where
    M: Message + Default,
    B: Body<Data = Bytes, Error: std::fmt::Display> + Unpin,
{
    let frame = receive_frame(body, limit).await?;
    M::decode(&frame[PREFIX..]).map_err(|error| status::malformed(&error.to_string()))
}

/// Receives the same, as a frame: behind its prefix.
///
/// # Errors
/// As [`receive`], but for what only the message's type can tell.
pub(super) async fn receive_frame<B>(mut body: B, limit: usize) -> Result<Bytes, Status>
where
    B: Body<Data = Bytes, Error: std::fmt::Display> + Unpin,
{
    let first = next(&mut body).await?.unwrap_or_default();
    // Nearly always all of it.
    if body.is_end_stream() {
        return checked(first, limit);
    }
    let mut received = BytesMut::from(first);
    while received.len() <= limit + PREFIX
        && let Some(more) = next(&mut body).await?
    {
        received.extend_from_slice(&more);
    }
    checked(received.freeze(), limit)
}

/// The next bytes; `None` at the end.
async fn next<B>(body: &mut B) -> Result<Option<Bytes>, Status>
where
    B: Body<Data = Bytes, Error: std::fmt::Display> + Unpin,
{
    match poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
        // Trailers of a request mean nothing, and nothing comes after them.
        Some(Ok(frame)) => Ok(frame.into_data().ok()),
        Some(Err(error)) => Err(Status::cancelled(format!("the request broke off: {error}"))),
        None => Ok(None),
    }
}

fn checked(received: Bytes, limit: usize) -> Result<Bytes, Status> {
    let Some(([compressed, length @ ..], message)) = received.split_first_chunk::<PREFIX>() else {
        return Err(status::malformed("it ended before its message"));
    };
    let length = u32::from_be_bytes(*length) as usize;
    match compressed {
        0 if length > limit => Err(status::request_too_large()),
        0 if length != message.len() => {
            Err(status::malformed("its length is not what its prefix says"))
        }
        0 => Ok(received),
        1 => Err(status::compressed()),
        _ => Err(status::malformed("its compression flag is neither 0 nor 1")),
    }
}
