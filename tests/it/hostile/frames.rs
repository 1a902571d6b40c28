//! HTTP/2 as bytes, for clients that no library can be.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Timeout of a connect or a write.
const TIMEOUT: Duration = Duration::from_millis(500);

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// One frame, valid or not.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// SETTINGS with one setting.
pub fn setting(name: u16, value: u32) -> Vec<u8> {
    let mut payload = name.to_be_bytes().to_vec();
    payload.extend(value.to_be_bytes());
    frame(SETTINGS, 0, 0, &payload)
}

/// Request headers in HPACK (RFC 7541), without the dynamic table and without Huffman coding.
pub fn headers(method: &str, path: &str) -> Vec<u8> {
    let mut block = Vec::new();
    field(&mut block, ":method", method);
    field(&mut block, ":scheme", "http");
    field(&mut block, ":path", path);
    field(&mut block, ":authority", "localhost");
    field(&mut block, "content-type", "application/grpc");
    field(&mut block, "te", "trailers");
    block
}

/// A literal field with a literal name; both shorter than 127 bytes.
pub fn field(block: &mut Vec<u8>, name: &str, value: &str) {
    block.push(0);
    for text in [name, value] {
        block.push(u8::try_from(text.len()).unwrap());
        block.extend(text.as_bytes());
    }
}

/// A message in a gRPC frame in a DATA frame that ends the stream.
pub fn body(stream: u32, message: &[u8]) -> Vec<u8> {
    frame(DATA, END_STREAM, stream, &crate::harness::framed(message))
}

/// A socket whose drop resets the connection.
pub struct Socket(TcpStream);

impl Socket {
    /// `None` when the server does not accept the connection.
    pub async fn connect(port: u16) -> Option<Self> {
        let connecting = TcpStream::connect(("127.0.0.1", port));
        let stream = tokio::time::timeout(TIMEOUT, connecting).await.ok()?.ok()?;
        stream.set_zero_linger().ok()?;
        Some(Self(stream))
    }

    /// A connection that has sent the preface and `settings`.
    pub async fn greeted(port: u16, settings: &[u8]) -> Option<Self> {
        let mut socket = Self::connect(port).await?;
        socket.send(&[PREFACE, settings].concat()).await;
        Some(socket)
    }

    /// Returns whether all bytes were sent: the server may have closed the connection, rightly.
    pub async fn send(&mut self, bytes: &[u8]) -> bool {
        self.send_within(TIMEOUT, bytes).await
    }

    pub async fn send_within(&mut self, timeout: Duration, bytes: &[u8]) -> bool {
        let sent = tokio::time::timeout(timeout, self.0.write_all(bytes)).await;
        sent.is_ok_and(|sent| sent.is_ok())
    }

    /// Waits until the server has ended `count` streams, and returns how many of them by RST_STREAM; `None` when it closes
    /// the connection first, or at the timeout.
    pub async fn ended(&mut self, count: usize, timeout: Duration) -> Option<usize> {
        use tokio::io::AsyncReadExt;
        let (mut answered, mut reset) = (0, 0);
        let all = async {
            while answered + reset < count {
                let mut head = [0; 9];
                self.0.read_exact(&mut head).await?;
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
                let mut payload = vec![0; usize::try_from(length).unwrap()];
                self.0.read_exact(&mut payload).await?;
                reset += usize::from(head[3] == RST_STREAM);
                answered += usize::from(head[3] == HEADERS && head[4] & END_STREAM != 0);
            }
            std::io::Result::Ok(())
        };
        tokio::time::timeout(timeout, all).await.ok()?.ok()?;
        Some(reset)
    }

    /// Whether the server closes the connection within `timeout`.
    pub async fn hung_up(&mut self, timeout: Duration) -> bool {
        use tokio::io::AsyncReadExt;
        let mut buffer = [0; 4096];
        let end = async { while !matches!(self.0.read(&mut buffer).await, Ok(0) | Err(_)) {} };
        tokio::time::timeout(timeout, end).await.is_ok()
    }
}
