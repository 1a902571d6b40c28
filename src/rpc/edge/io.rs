//! The socket of a connection, with a write buffer that is flushed once per turn.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Size of the write buffer. Too small: more system calls for a large response. Too large: more memory for each connection
/// that sends one, without a gain in time.
const MAX_BUFFERED: usize = 64 * 1024;
/// A larger buffer is freed after a flush of less than this, so that idle connections do not keep it.
const RETAINED_BUFFER: usize = 16 * 1024;

/// hyper's end of a socket: it buffers writes.
///
/// h2 asks once, when the connection is made, whether writes are vectored. If not, it copies frames of up to 1 KiB together, and
/// writes and flushes each larger one separately: one system call and one packet for every 16 KiB of a response. So a flush
/// does nothing here; the driver of the connection calls [`Outgoing::send`] once per turn.
pub(super) struct BufferedSocket<S> {
    shared: Arc<Mutex<Socket<S>>>,
    /// Whether h2 has called `is_write_vectored`, which is false only the first time.
    vectored_asked: AtomicBool,
}

/// The driver's end of a socket: it sends the buffer.
pub(super) struct Outgoing<S>(Arc<Mutex<Socket<S>>>);

// Its lock is never contended, because only the task of the connection uses it.
struct Socket<S> {
    socket: S,
    buffer: Vec<u8>,
    /// How much of `buffer` has been written to the socket.
    sent: usize,
    /// A failed write, which the next read returns.
    write_error: Option<io::Error>,
}

/// Splits a socket into hyper's end and the driver's.
pub(super) fn buffered<S>(socket: S) -> (BufferedSocket<S>, Outgoing<S>) {
    let socket = Socket { socket, buffer: Vec::new(), sent: 0, write_error: None };
    let shared = Arc::new(Mutex::new(socket));
    let outgoing = Outgoing(Arc::clone(&shared));
    (BufferedSocket { shared, vectored_asked: AtomicBool::new(false) }, outgoing)
}

impl<S: AsyncWrite + Unpin> Outgoing<S> {
    /// Sends as much of the buffer as the socket takes. The task of `cx` is woken when it takes more.
    pub(super) fn send(&self, cx: &mut Context<'_>) {
        let mut socket = self.0.lock();
        if let Poll::Ready(Err(error)) = socket.poll_send(cx) {
            // For h2 these bytes are written, and it only waits to read: so the next read returns the error.
            socket.write_error = Some(error);
            cx.waker().wake_by_ref();
        }
    }
}

impl<S: AsyncWrite + Unpin> Socket<S> {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.buffer.len() {
            let unsent = &self.buffer[self.sent..];
            match ready!(Pin::new(&mut self.socket).poll_write(cx, unsent))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.sent += sent,
            }
        }
        if self.buffer.len() < RETAINED_BUFFER && self.buffer.capacity() > RETAINED_BUFFER {
            self.buffer = Vec::new();
        }
        self.buffer.clear();
        self.sent = 0;
        // A TLS socket has a buffer of its own.
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    /// Copies as much of `parts` as fits into the buffer, which it sends first when it is full.
    fn poll_buffer(
        &mut self,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.buffer.len() >= MAX_BUFFERED {
            ready!(self.poll_send(cx))?;
        }
        let before = self.buffer.len();
        for part in parts {
            let free = MAX_BUFFERED - self.buffer.len();
            self.buffer.extend_from_slice(&part[..part.len().min(free)]);
        }
        Poll::Ready(Ok(self.buffer.len() - before))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for BufferedSocket<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut socket = self.shared.lock();
        if let Some(error) = socket.write_error.take() {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut socket.socket).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for BufferedSocket<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.shared.lock().poll_buffer(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.shared.lock().poll_buffer(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.vectored_asked.swap(true, Ordering::Relaxed)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut socket = self.shared.lock();
        ready!(socket.poll_send(cx))?;
        Pin::new(&mut socket.socket).poll_shutdown(cx)
    }
}
