//! The protocols beside gRPC on the same port: gRPC-Web, Connect, and JSON over HTTP by the `google.api.http` annotations of the
//! proto.
//!
//! Each request becomes a gRPC message, `Reads` answers it as it answers gRPC, and the response gets the form of the protocol. So
//! limits, shares, policies and errors are the same. GetProduct is answered from the cache's entry, without the detour.

mod conditional;
mod connect;
mod cross_site;
mod errors;
mod forms;
mod grpc_web;
mod messages;
mod plain;
mod price;
mod product_json;
mod query;
mod rest;
mod rest_writes;
mod types;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes};
use http::header::{CONTENT_TYPE, ORIGIN, TE};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use tonic::{Code, Status};
use tower::{Layer, ServiceExt};
use tower_http::cors::CorsLayer;

use super::call::{Call, Deadline, Protocol};
use super::callers::Named;
use super::convert::KeepCurrency;
use super::protocol::{self, Encoding};
use super::reads::{Reads, RequestBody, call_place};
use super::reply::Reply;
use super::shed::CallPlace;
use super::status;
use super::unary::Received;
use crate::caller::SpanKey;
use crate::catalog::Answer;
use crate::entry::{PREFIX, prefix};
use crate::metrics::{Method, Metrics};
use crate::openapi;
use crate::proto::GetProductRequest;
use forms::Form;
use messages::Messages;
use types::Types;

/// Settings of the protocols beside gRPC.
#[derive(Clone, Debug)]
pub struct WebOptions {
    /// Whether they are served.
    pub enabled: bool,
    /// The origins whose pages may call, such as `https://shop.example`.
    pub cors_origins: Vec<String>,
    /// For how long a shared HTTP cache may serve a product without asking. Zero: not at all.
    pub shared_max_age: Duration,
}

/// What all connections share.
#[derive(Debug)]
pub(super) struct Web {
    types: Types,
    /// `None`: no page of another origin may call.
    cors: Option<CorsLayer>,
    origins: Vec<HeaderValue>,
    shared_max_age: Duration,
    openapi: Bytes,
    metrics: Arc<Metrics>,
}

impl Web {
    pub(super) fn new(options: &WebOptions, metrics: &Arc<Metrics>) -> Option<Arc<Self>> {
        let origins = options.cors_origins.iter();
        let origins: Vec<_> =
            origins.filter_map(|origin| HeaderValue::from_str(origin).ok()).collect();
        let web = || {
            let cors = (!origins.is_empty()).then(|| cross_site::cors(origins.clone()));
            let (types, shared_max_age) = (Types::new(), options.shared_max_age);
            let openapi = openapi::document().into();
            let (origins, metrics) = (origins.clone(), Arc::clone(metrics));
            Arc::new(Self { types, cors, origins, shared_max_age, openapi, metrics })
        };
        options.enabled.then(web)
    }
}

/// The method of a request whose path is none of gRPC.
pub(super) fn method<B>(request: &Request<B>) -> Method {
    let route = rest::Route::of(request.uri().path());
    route.and_then(|route| route.method(request.method()).ok()).unwrap_or(Method::Other)
}

/// Answers a request that is not gRPC.
pub(super) async fn serve(
    reads: Arc<Reads>,
    call: Call<Incoming>,
    malformed_timeout: bool,
) -> Result<Response<Reply>, Infallible> {
    let Some(web) = reads.shared.web.clone() else {
        return Ok(protocol::refusal(&call.request));
    };
    let Call { method, deadline, span, request, .. } = call;
    let cors = web.cors.as_ref().filter(|_| request.headers().contains_key(ORIGIN)).cloned();
    let exchange = Exchange { reads, web, method, deadline, span };
    let Some(cors) = cors else { return Ok(exchange.answer(request, malformed_timeout).await) };
    let answer = move |request| {
        let exchange = exchange.clone();
        async move { Ok(exchange.answer(request, malformed_timeout).await) }
    };
    let is_preflight = request.method() == http::Method::OPTIONS;
    let answered = cors.layer(tower::service_fn(answer)).oneshot(request).await;
    answered.map(|response| match is_preflight {
        true => response.map(|_| Reply::whole(None, Code::Ok, None)),
        false => response,
    })
}

/// One call in another protocol than gRPC.
#[derive(Clone, Debug)]
struct Exchange {
    reads: Arc<Reads>,
    web: Arc<Web>,
    method: Method,
    deadline: Deadline,
    span: SpanKey,
}

/// The response of a unary call that gRPC has answered.
struct Unary {
    message: Bytes,
    /// The metadata.
    headers: HeaderMap,
    /// Holds the place of the call.
    rest: Messages,
}

impl Exchange {
    async fn answer(self, request: Request<Incoming>, malformed_timeout: bool) -> Response<Reply> {
        let is_head = request.method() == http::Method::HEAD;
        let response = self.answer_whole(request, malformed_timeout).await;
        if is_head { rest::without_body(response) } else { response }
    }

    async fn answer_whole(
        self,
        request: Request<Incoming>,
        malformed_timeout: bool,
    ) -> Response<Reply> {
        let form = Form::of(self.method, &request);
        let (metrics, protocol) = (&self.web.metrics, form.protocol());
        metrics.web_requests.inc(protocol);
        if self.span.is_some() {
            metrics.traces.call(self.span).set("hotshelf.protocol", protocol.name());
        }
        let refused = match &form {
            Form::Unknown(refusal) => Some(errors::refused(&self.web.types, *refusal)),
            form if cross_site::is_refused(&request, &self.web.origins) => {
                Some(form.error(&self.web.types, &status::cross_site()))
            }
            form if malformed_timeout => {
                let malformed = status::malformed("its grpc-timeout is malformed");
                Some(form.error(&self.web.types, &malformed))
            }
            _ => None,
        };
        if let Some(refused) = refused {
            // Received first: see `Reads::refuse`.
            if self.method != Method::Other {
                let _ = self.receive(None, 0, request.into_body()).await;
            }
            return refused;
        }
        match form {
            Form::GrpcWeb => grpc_web::answer(self, request).await,
            Form::Connect(form) => connect::answer(self, form, request).await,
            Form::Rest(route) => rest::answer(self, route, request).await,
            Form::Unknown(refusal) => errors::refused(&self.web.types, refusal),
        }
    }

    fn named(&self, headers: &HeaderMap) -> Result<Option<Arc<Named>>, Status> {
        self.reads.named(self.method, headers)
    }

    /// Receives the body of a request. `head` is the size of its head.
    async fn receive(
        &self,
        named: Option<&Named>,
        head: usize,
        body: Incoming,
    ) -> Result<Received, Status> {
        let receiver = self.reads.receiver(self.reads.connection.account(named));
        let received = receiver.receive(body, head);
        // Also that of a stream, which has no other limit of time.
        let received = tokio::time::timeout(self.reads.shared.max_call_time, received).await;
        let received = received.unwrap_or_else(|_| Err(status::deadline_exceeded()));
        // A client that is still there has sent bytes that are no body.
        received.map_err(|refused| match refused.code() {
            Code::Cancelled => status::malformed("its body broke off or is framed wrongly"),
            _ => refused,
        })
    }

    /// Counts a response that was made for this call among those that are not sent yet.
    fn hold(
        &self,
        named: Option<&Named>,
        made: impl AsRef<[u8]> + Send + 'static,
    ) -> Result<Bytes, Status> {
        let account = self.reads.connection.account(named);
        let reservation = account.limits().unsent.take(made.as_ref().len());
        Ok(reservation.map_err(|over| account.over_limit(over))?.attach(made))
    }

    /// Decompresses or decodes a request within a place of a call, so that the calls that do that are limited.
    fn admitted<T>(
        &self,
        named: Option<&Named>,
        work: impl FnOnce() -> Result<T, Status>,
    ) -> Result<T, Status> {
        let place = match self.method {
            // Not limited: a busy instance must not fail its health checks.
            Method::HealthCheck => None,
            _ => Some(call_place(self.reads.connection.account(named))?),
        };
        let done = work();
        drop(place);
        done
    }

    /// Ends a unary call at its deadline.
    async fn in_time<T>(&self, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        match self.deadline.remaining() {
            Some(remaining) => tokio::time::timeout(remaining, call)
                .await
                .unwrap_or_else(|_| Err(status::deadline_exceeded())),
            None => call.await,
        }
    }

    /// Reads a product, which exists.
    async fn find(
        &self,
        named: Option<&Named>,
        request: &GetProductRequest,
    ) -> Result<(Answer, CallPlace), Status> {
        let account = self.reads.connection.account(named);
        let place = call_place(account)?;
        let answer = self.reads.find(request, account, (self.deadline, self.span)).await?;
        Ok((answer, place))
    }

    /// Answers a call with one request message.
    async fn call(
        &self,
        path: &str,
        named: Option<Arc<Named>>,
        message: &[u8],
        keep_currency: bool,
    ) -> Result<(HeaderMap, Messages), Status> {
        let mut frame = Vec::with_capacity(PREFIX + message.len());
        frame.put_slice(&prefix(message.len()));
        frame.put_slice(message);
        self.forward(path, named, Full::new(Bytes::from(frame)), keep_currency).await
    }

    /// Answers a call whose request is in the frames of gRPC.
    async fn forward<B: RequestBody>(
        &self,
        path: &str,
        named: Option<Arc<Named>>,
        frames: B,
        keep_currency: bool,
    ) -> Result<(HeaderMap, Messages), Status> {
        let mut request = Request::new(frames);
        *request.method_mut() = http::Method::POST;
        let path = path.parse();
        *request.uri_mut() = path.map_err(|_| status::malformed("its path is malformed"))?;
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        if keep_currency {
            request.extensions_mut().insert(KeepCurrency);
        }
        let Self { method, deadline, span, .. } = *self;
        let (protocol, encoding) = (Protocol::Grpc, Encoding::Identity);
        let call = Call { method, protocol, encoding, deadline, span, request };
        let Ok(response) = Reads::grpc(Arc::clone(&self.reads), call, named).await;
        let (head, reply) = response.into_parts();
        match Status::from_header_map(&head.headers) {
            Some(refused) => Err(refused),
            None => Ok((head.headers, Messages::new(reply))),
        }
    }

    /// [`Self::call`] of a method that answers with one message.
    async fn unary(
        &self,
        path: &str,
        named: Option<Arc<Named>>,
        message: &[u8],
        keep_currency: bool,
    ) -> Result<Unary, Status> {
        let (headers, mut rest) = self.call(path, named, message, keep_currency).await?;
        let message = rest.next().await.transpose()?.unwrap_or_default();
        if let Some(more) = rest.next().await {
            more?;
        }
        Ok(Unary { message, headers, rest })
    }
}
