//! The bytes of a connection, as hyper's HTTP/2 server sees them.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

pin_project! {
    /// A socket that coalesces small responses into one write, and says when its peer begins to speak.
    ///
    /// When the connection is made h2 asks once whether writes are vectored. If they are, it queues each DATA
    /// frame above 256 bytes by itself: a system call for every response. If not, frames up to 1 KiB are
    /// copied together, and dozens of responses leave in one write. When it writes it asks again; then yes is
    /// the better answer, which sends what is larger without a copy.
    pub(super) struct Coalescing<S> {
        #[pin]
        socket: S,
        made: AtomicBool,
        preface: Preface,
    }
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

impl<S> Coalescing<S> {
    pub(super) fn new(socket: S) -> Self {
        Self { socket, made: AtomicBool::new(false), preface: Preface::default() }
    }

    /// Notified when the peer has begun to speak.
    pub(super) fn spoke(&self) -> Arc<Notify> {
        Arc::clone(&self.preface.came)
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

impl<S: AsyncRead> AsyncRead for Coalescing<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.project();
        let before = buffer.filled().len();
        ready!(this.socket.poll_read(cx, buffer))?;
        this.preface.note(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite> AsyncWrite for Coalescing<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.project().socket.poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.project().socket.poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.made.swap(true, Ordering::Relaxed) && self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().socket.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().socket.poll_shutdown(cx)
    }
}
