//! The bytes of a connection, as hyper's HTTP/2 server sees them.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

/// Most bytes that are written together. Too small: more system calls for a large answer. Too large: more memory for
/// each connection that has them, and no less time.
const TOGETHER: usize = 64 * 1024;
/// What a connection takes for more than this it gives back when it has written less.
const RETAINED_BUFFER: usize = 16 * 1024;

/// A socket that gathers what is written, and says when its peer begins to speak.
///
/// When the connection is made h2 asks once whether writes are vectored. If not, it copies frames up to 1 KiB together.
/// Each larger one it writes and flushes by itself, which would be a system call and a packet for every 16 KiB of an
/// answer. So a flush does nothing here: whoever drives the connection sends what a turn of it has written.
pub(super) struct Coalescing<S> {
    shared: Arc<Mutex<Socket<S>>>,
    made: AtomicBool,
    preface: Preface,
}

/// What a connection has written.
pub(super) struct Outgoing<S>(Arc<Mutex<Socket<S>>>);

// Never contended: the connection's task alone uses it.
struct Socket<S> {
    socket: S,
    gathered: Vec<u8>,
    /// How much of it has been written.
    sent: usize,
    /// Why nothing more can be written.
    broken: Option<io::Error>,
}

/// The client's first bytes (RFC 9113, 3.4): who has sent that many has begun to speak HTTP/2, or has been
/// found out not to.
const PREFACE_BYTES: usize = 24;

/// Whether the client's preface has come.
#[derive(Debug, Default)]
struct Preface {
    read: usize,
    came: Arc<Notify>,
}

/// The two ends of what a connection writes: hyper's, and that of whoever drives it.
pub(super) fn gathering<S>(socket: S) -> (Coalescing<S>, Outgoing<S>) {
    let socket = Socket { socket, gathered: Vec::new(), sent: 0, broken: None };
    let shared = Arc::new(Mutex::new(socket));
    let outgoing = Outgoing(Arc::clone(&shared));
    (Coalescing { shared, made: AtomicBool::new(false), preface: Preface::default() }, outgoing)
}

impl<S> Coalescing<S> {
    /// Notified when the peer has begun to speak.
    pub(super) fn spoke(&self) -> Arc<Notify> {
        Arc::clone(&self.preface.came)
    }
}

impl<S: AsyncWrite + Unpin> Outgoing<S> {
    /// Sends what has been written, as far as the socket takes it; it wakes the task of `cx` when it takes more.
    pub(super) fn send(&self, cx: &mut Context<'_>) {
        let mut socket = self.0.lock();
        if let Poll::Ready(Err(error)) = socket.poll_send(cx) {
            // h2 has written it, and waits only to read.
            socket.broken = Some(error);
            cx.waker().wake_by_ref();
        }
    }
}

impl<S: AsyncWrite + Unpin> Socket<S> {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.gathered.len() {
            let unsent = &self.gathered[self.sent..];
            match ready!(Pin::new(&mut self.socket).poll_write(cx, unsent))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.sent += sent,
            }
        }
        if self.gathered.len() < RETAINED_BUFFER && self.gathered.capacity() > RETAINED_BUFFER {
            self.gathered = Vec::new();
        }
        self.gathered.clear();
        self.sent = 0;
        // TLS has buffers of its own.
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    /// Takes as much as there is room for, once there is any.
    fn poll_gather(
        &mut self,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.gathered.len() >= TOGETHER {
            ready!(self.poll_send(cx))?;
        }
        let before = self.gathered.len();
        for part in parts {
            let room = TOGETHER - self.gathered.len();
            self.gathered.extend_from_slice(&part[..part.len().min(room)]);
        }
        Poll::Ready(Ok(self.gathered.len() - before))
    }
}

impl Preface {
    fn note(&mut self, bytes: usize) {
        if self.read < PREFACE_BYTES {
            self.read += bytes;
            if self.read >= PREFACE_BYTES {
                self.came.notify_one();
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Coalescing<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        {
            let mut socket = self.shared.lock();
            if let Some(error) = socket.broken.take() {
                return Poll::Ready(Err(error));
            }
            ready!(Pin::new(&mut socket.socket).poll_read(cx, buffer))?;
        }
        self.preface.note(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Coalescing<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.shared.lock().poll_gather(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.shared.lock().poll_gather(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.made.swap(true, Ordering::Relaxed)
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
