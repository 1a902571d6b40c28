//! gRPC on the admin port. Clients of gRPC begin with the preface of HTTP/2, all others speak HTTP/1.1.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures_util::future::BoxFuture;
use tokio::net::TcpStream;

/// The beginning of the preface (RFC 9113, 3.4). No method of HTTP/1.1 begins like this.
const PREFACE: &[u8; 4] = b"PRI ";
/// The pause until the rest of the preface is looked for, when only a part of it has arrived.
const PAUSE: Duration = Duration::from_millis(10);

/// Serves one connection to its end.
pub type ServeGrpc = Box<dyn Fn(TcpStream, SocketAddr) -> BoxFuture<'static, ()> + Send + Sync>;

/// What serves gRPC on the admin port. None until it is set: the admin port is open before the services exist.
#[derive(Clone, Default)]
pub struct AdminGrpc(Arc<ArcSwapOption<ServeGrpc>>);

impl AdminGrpc {
    pub fn set(&self, serve: ServeGrpc) {
        self.0.store(Some(Arc::new(serve)));
    }

    pub(super) fn get(&self) -> Option<Arc<ServeGrpc>> {
        self.0.load_full()
    }
}

/// Whether the peer begins with the preface. Waits for its first bytes, and leaves them in the socket.
pub(super) async fn begins_http2(socket: &TcpStream) -> bool {
    let mut begin = [0; PREFACE.len()];
    loop {
        match socket.peek(&mut begin).await {
            Ok(0) | Err(_) => return false,
            Ok(count) if begin[..count] != PREFACE[..count] => return false,
            Ok(count) if count == PREFACE.len() => return true,
            Ok(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

impl fmt::Debug for AdminGrpc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AdminGrpc").field(&self.0.load().is_some()).finish()
    }
}
