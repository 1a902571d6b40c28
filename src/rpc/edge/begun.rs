//! Which version of HTTP a connection speaks: clients of HTTP/2 begin with its preface (RFC 9113, 3.4), also without TLS.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// No request of HTTP/1.1 begins like this.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A socket whose first bytes have been looked at. They are read again.
#[derive(Debug)]
pub(super) struct Begun<S> {
    socket: S,
    first: [u8; PREFACE.len()],
    /// How many of them there are, and how many have been read again.
    count: usize,
    read: usize,
}

impl<S: AsyncRead + Unpin> Begun<S> {
    /// Reads until it is certain whether the socket begins with the preface. `None` when it ends before its first byte.
    pub(super) async fn read(mut socket: S) -> io::Result<Option<Self>> {
        let (mut first, mut count) = ([0; PREFACE.len()], 0);
        while count < PREFACE.len() && first[..count] == PREFACE[..count] {
            match socket.read(&mut first[count..]).await? {
                0 => break,
                more => count += more,
            }
        }
        Ok((count > 0).then_some(Self { socket, first, count, read: 0 }))
    }

    pub(super) fn is_http2(&self) -> bool {
        self.count == PREFACE.len() && self.first == *PREFACE
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Begun<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read < self.count {
            let unread = &self.first[self.read..self.count];
            let taken = unread.len().min(buffer.remaining());
            buffer.put_slice(&unread[..taken]);
            self.read += taken;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Begun<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
