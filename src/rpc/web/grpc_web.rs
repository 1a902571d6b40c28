//! gRPC-Web: gRPC with its trailers in the body, for browsers. tonic-web translates both ways.

use std::sync::Arc;

use futures_util::StreamExt;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Body as _;
use http_body::Frame;
use http_body_util::{BodyExt, BodyStream, StreamBody};
use hyper::body::Incoming;
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_web::GrpcWebLayer;
use tower::{Layer, ServiceExt};

use super::forms::essence;
use super::{Exchange, Named};
use crate::rpc::call::{Call, Protocol};
use crate::rpc::protocol::RequestHead;
use crate::rpc::reads::Reads;
use crate::rpc::reply::{FinalCode, Reply};

pub(super) async fn answer(exchange: Exchange, mut request: Request<Incoming>) -> Response<Reply> {
    // tonic-web does not know parameters of content types.
    let essence = essence(request.headers()).to_ascii_lowercase();
    if let Ok(essence) = HeaderValue::from_str(&essence) {
        let headers = request.headers_mut();
        // The response has the encoding of the request, unless the client asks for the other one.
        let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
        if !accept.is_some_and(|accept| accept.starts_with("application/grpc-web")) {
            headers.insert(ACCEPT, essence.clone());
        }
        headers.insert(CONTENT_TYPE, essence);
    }
    let code = FinalCode::default();
    let observed = code.clone();
    // Once: a refusal is counted.
    let named = exchange.named(request.headers());
    let caller = named.as_ref().ok().cloned().flatten();
    let inner = exchange.clone();
    let grpc = move |request: Request<Body>| {
        let (exchange, code, named) = (inner.clone(), observed.clone(), named.clone());
        async move {
            let answer = exchange.in_time(grpc(&exchange, named, request)).await;
            Ok(observe(answer.unwrap_or_else(Status::into_http), code))
        }
    };
    let is_text = essence.starts_with("application/grpc-web-text");
    let service = GrpcWebLayer::new().layer(tower::service_fn(grpc));
    let answer: Result<_, std::convert::Infallible> = service.oneshot(request).await;
    answer.unwrap_or_default().map(|body| match is_text {
        true => Reply::stream(held(body, exchange, caller), code),
        false => Reply::stream(body, code),
    })
}

/// Counts the text among the bytes that are not sent: it is a copy that tonic-web makes.
fn held(body: Body, exchange: Exchange, named: Option<Arc<Named>>) -> Body {
    let frames = BodyStream::new(body).map(move |frame| {
        frame?.into_data().map_or_else(Ok::<_, Status>, |text| {
            Ok(Frame::data(exchange.hold(named.as_deref(), text)?))
        })
    });
    Body::new(StreamBody::new(frames))
}

async fn grpc(
    exchange: &Exchange,
    named: Result<Option<Arc<Named>>, Status>,
    request: Request<Body>,
) -> Result<Response<Reply>, Status> {
    let Exchange { reads, method, deadline, span, .. } = exchange.clone();
    let encoding = RequestHead::of(&request).encoding;
    let call = Call { method, protocol: Protocol::Grpc, encoding, deadline, span, request };
    let answer = match named {
        Ok(named) => Reads::grpc(reads, call, named).await,
        Err(refused) => reads.refuse(call, refused).await,
    };
    let Ok(response) = answer;
    Ok(response)
}

/// Notes the status of the call, which tonic-web moves from the trailers into the body.
fn observe(response: Response<Reply>, code: FinalCode) -> Response<Body> {
    note(response.headers(), &code);
    response.map(|reply| {
        if reply.is_end_stream() {
            return Body::empty();
        }
        let frames = reply.map_frame(move |frame| {
            if let Some(trailers) = frame.trailers_ref() {
                note(trailers, &code);
            }
            frame.map_data(crate::rpc::reply::Chunk::into_bytes)
        });
        Body::new(frames)
    })
}

fn note(headers: &HeaderMap, code: &FinalCode) {
    if let Some(status) = headers.get(Status::GRPC_STATUS) {
        code.set(Code::from_bytes(status.as_bytes()));
    }
}
