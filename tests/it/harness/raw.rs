//! A bare HTTP/2 connection: for requests that no generated client sends, and for deadlines that only the server
//! enforces (tonic's client enforces them too, and reports CANCELLED).

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::Status;

/// A connection; cloned senders share it.
#[derive(Clone)]
pub struct Raw(SendRequest<Full<Bytes>>);

impl Raw {
    pub async fn connect(port: u16) -> Self {
        Self::try_connect(port).await.unwrap()
    }

    /// `Err` when the server closes the connection during the handshake.
    pub async fn try_connect(port: u16) -> Result<Self, hyper::Error> {
        let socket = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        socket.set_nodelay(true).unwrap();
        Self::over(socket).await
    }

    /// Makes the HTTP/2 handshake on an open connection.
    pub async fn over(
        socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Result<Self, hyper::Error> {
        let io = TokioIo::new(socket);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
        tokio::spawn(connection);
        Ok(Self(sender))
    }

    pub async fn call(&self, path: &str, message: &impl Message) -> Status {
        self.call_with(path, HeaderMap::new(), framed(&message.encode_to_vec())).await.unwrap()
    }

    /// Sends a message with a deadline that the server has to enforce.
    pub async fn call_within(&self, timeout: &str, path: &str, message: &impl Message) -> Status {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", timeout.parse().unwrap());
        self.call_with(path, headers, framed(&message.encode_to_vec())).await.unwrap()
    }

    /// Sends any request, also one that is not gRPC, and returns the HTTP status.
    pub async fn http(
        &self,
        method: http::Method,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> http::StatusCode {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = format!("http://127.0.0.1{path}").parse().unwrap();
        *request.headers_mut() = headers;
        self.0.clone().send_request(request).await.unwrap().status()
    }

    /// Sends any request, and returns the whole response.
    pub async fn collect(
        &self,
        method: &str,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<(http::response::Parts, Bytes), hyper::Error> {
        let request = Request::builder().method(method).uri(format!("http://127.0.0.1{path}"));
        let mut request = request.body(Full::new(body)).unwrap();
        *request.headers_mut() = headers;
        let mut sender = self.0.clone();
        sender.ready().await?;
        let (head, body) = sender.send_request(request).await?.into_parts();
        Ok((head, body.collect().await?.to_bytes()))
    }

    /// Sends any body as a gRPC request. `Err`: the connection or stream failed.
    pub async fn call_with(
        &self,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Status, hyper::Error> {
        let mut request = Request::post(format!("http://127.0.0.1{path}"));
        request = request.header("content-type", "application/grpc").header("te", "trailers");
        let mut request = request.body(Full::new(body)).unwrap();
        request.headers_mut().extend(headers);
        let mut sender = self.0.clone();
        sender.ready().await?;
        let (head, body) = sender.send_request(request).await?.into_parts();
        let collected = body.collect().await?;
        let trailers = collected.trailers().cloned().unwrap_or_default();
        let status = [&head.headers, &trailers].into_iter().find_map(Status::from_header_map);
        Ok(status.unwrap_or_else(|| Status::unknown(format!("HTTP {}", head.status))))
    }
}

/// A gRPC frame: not compressed, the length, the message.
pub fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap());
    frame.put_slice(message);
    frame.freeze()
}
