//! A client of HTTP/1.1 or HTTP/2 for requests that are not gRPC.

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// A connection.
pub enum Http {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

/// A complete response.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|why| panic!("{why}: {self:?}"))
    }

    /// A header; empty when it is absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The reason in the details of a `google.rpc.Status` or of a Connect error; empty when there is none.
    pub fn reason(&self) -> String {
        let json = self.json();
        let detail = &json["details"][0];
        let info = if detail["debug"].is_object() { &detail["debug"] } else { detail };
        info["reason"].as_str().unwrap_or_default().to_owned()
    }
}

impl Http {
    pub async fn connect(version: Version, port: u16) -> Self {
        let socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        socket.set_nodelay(true).unwrap();
        Self::over(version, socket).await
    }

    pub async fn over(
        version: Version,
        socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Self {
        let io = TokioIo::new(socket);
        match version {
            Version::HTTP_2 => {
                let (sender, connection) =
                    http2::handshake(TokioExecutor::new(), io).await.unwrap();
                tokio::spawn(connection);
                Self::Two(sender)
            }
            _ => {
                let (sender, connection) = http1::handshake(io).await.unwrap();
                tokio::spawn(connection);
                Self::One(sender)
            }
        }
    }

    /// Sends `METHOD PATH` with headers and a body.
    pub async fn send(&mut self, line: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let response = self.begin(line, headers, body).await;
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Reply { status: head.status, headers: head.headers, body }
    }

    /// The same, without waiting for the body.
    pub async fn begin(
        &mut self,
        line: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> http::Response<Incoming> {
        let (method, path) = line.split_once(' ').unwrap();
        let mut request = Request::builder().method(method);
        request = match self {
            Self::One(_) => request.uri(path).header("host", "localhost"),
            Self::Two(_) => request.uri(format!("http://localhost{path}")),
        };
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body))).unwrap();
        match self {
            Self::One(sender) => {
                sender.ready().await.unwrap();
                sender.send_request(request).await.unwrap()
            }
            Self::Two(sender) => {
                sender.ready().await.unwrap();
                sender.send_request(request).await.unwrap()
            }
        }
    }

    pub async fn get(&mut self, path: &str) -> Reply {
        self.send(&format!("GET {path}"), &[], &[]).await
    }

    /// Sends JSON.
    pub async fn json(&mut self, line: &str, body: &str) -> Reply {
        self.send(line, &[("content-type", "application/json")], body.as_bytes()).await
    }
}
