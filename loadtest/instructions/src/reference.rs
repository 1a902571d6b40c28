//! What hotshelf is compared with: the server that everyone writes, and the least that any server on hyper does.

use std::convert::Infallible;
use std::io::IoSlice;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use hotshelf::proto::{GetProductRequest, Product};
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use hyper::body::Incoming;
use hyper::rt::{Executor, Read, ReadBufCursor, Write};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mini_moka::sync::Cache;
use prost::Message;
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::shelf::{PRODUCT_BYTES, PRODUCTS, entry, id};

#[allow(unreachable_pub, unused_qualifications, clippy::all, reason = "generated code")]
mod generated {
    tonic::include_proto!("hotshelf.v1.ProductService");
}

use generated::product_service_server::{ProductService, ProductServiceServer};

/// Products in a cache, cloned and encoded for each call.
struct Ordinary(Cache<i64, Product>);

#[tonic::async_trait]
impl ProductService for Ordinary {
    async fn get_product(
        &self,
        request: Request<GetProductRequest>,
    ) -> Result<Response<Product>, Status> {
        let product = self.0.get(&request.into_inner().id);
        product.map(Response::new).ok_or_else(|| Status::not_found("no such product"))
    }
}

/// The same products as hotshelf's.
pub(crate) fn products() -> Cache<i64, Product> {
    let products = Cache::new(10 * PRODUCTS as u64);
    for n in 0..PRODUCTS {
        let entry = entry(n);
        let product = entry.product().expect("not a tombstone");
        products.insert(id(n).get(), Product::decode(product).expect("hotshelf encoded it"));
    }
    products
}

/// tonic's own server, as its documentation has it.
pub(crate) fn serve_tonic(listener: TcpListener, products: Cache<i64, Product>) {
    let service = ProductServiceServer::new(Ordinary(products));
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(incoming));
}

/// hyper with a constant answer, coalesced writes, and streams that are polled at once.
pub(crate) fn serve_hyper(listener: TcpListener) {
    let answer = Bytes::from([&[0, 0, 0, 1, 44][..], &[b'x'; PRODUCT_BYTES]].concat());
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let answer = answer.clone();
            let service = service_fn(move |_: http::Request<Incoming>| {
                let response = http::Response::builder()
                    .header("content-type", HeaderValue::from_static("application/grpc"))
                    .body(Constant { answer: Some(answer.clone()), trailers: true });
                std::future::ready(response)
            });
            if socket.set_nodelay(true).is_ok() {
                let io = Coalesced(TokioIo::new(socket));
                tokio::spawn(http2::Builder::new(AtOnce).serve_connection(io, service));
            }
        }
    });
}

struct Constant {
    answer: Option<Bytes>,
    trailers: bool,
}

impl http_body::Body for Constant {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = self.answer.take().map(|answer| Ok(Frame::data(answer)));
        let frame = data.or_else(|| {
            std::mem::take(&mut self.trailers).then(|| {
                let status =
                    (http::HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"));
                Ok(Frame::trailers(HeaderMap::from_iter([status])))
            })
        });
        Poll::Ready(frame)
    }
}

/// Polls a stream once, and spawns only what has to wait.
#[derive(Clone)]
struct AtOnce;

impl<F> Executor<F> for AtOnce
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let mut stream = Box::pin(stream);
        // Whoever spawns it polls it again.
        if stream.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            TokioExecutor::new().execute(stream);
        }
    }
}

/// Says that it does not do vectored writes, so that h2 puts small frames together.
struct Coalesced(TokioIo<TcpStream>);

impl Read for Coalesced {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        pin!(&mut self.0).as_mut().poll_read(cx, buffer)
    }
}

impl Write for Coalesced {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        pin!(&mut self.0).as_mut().poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        pin!(&mut self.0).as_mut().poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        false
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        pin!(&mut self.0).as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        pin!(&mut self.0).as_mut().poll_shutdown(cx)
    }
}
