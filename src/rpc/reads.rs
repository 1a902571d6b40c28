//! GetProduct and BatchGetProducts, served without tonic: from the bytes of the request to the stored bytes of the response.

mod batch;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Either};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body::Body;
use http_body_util::Full;
use hyper::body::Incoming;
use tonic::Status;
use tonic::metadata::MetadataValue;
use tonic::service::Routes;
use tower::{BoxError, Service};

use super::auth::ConnectionAuth;
use super::call::{Call, Deadline, Protocol};
use super::callers::{Callers, Named};
use super::connection::{Account, ClientConnection, Origin};
use super::protocol::Encoding;
use super::reply::{Reply, Retained, headers};
use super::shed::CallPlace;
use super::unary::Receiver;
use super::web::Web;
use super::{convert, protocol, status, web};
use crate::caller::{CallContext, SpanKey};
use crate::catalog::{Answer, Catalog};
use crate::entry::PREFIX;
use crate::metrics::{Method, ServedBy};
use crate::product::Version;
use crate::proto::get_product_request::Freshness;
use crate::proto::{BatchGetProductsRequest, GetProductRequest};

/// Ids. A larger batch leaves the task of its connection, where it would delay the calls behind it.
const INLINE_BATCH: usize = 100;

/// The service of one connection: serves reads itself and routes every other call to tonic.
#[derive(Debug)]
pub(super) struct Reads {
    pub(super) shared: Arc<Shared>,
    pub(super) connection: Arc<ClientConnection>,
    /// `None` when callers are not authenticated.
    pub(super) auth: Option<ConnectionAuth>,
    pub(super) max_request_bytes: usize,
}

/// What all connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) catalog: Arc<Catalog>,
    pub(super) routes: Routes,
    pub(super) callers: Arc<Callers>,
    /// Also bounds how long the request of a stream may take to arrive, because streams have no other deadline.
    pub(super) max_call_time: Duration,
    pub(super) headers: Headers,
    /// The metadata in which a trusted proxy names the caller.
    pub(super) caller_metadata: Option<HeaderName>,
    /// `None`: gRPC is the only protocol.
    pub(super) web: Option<Arc<Web>>,
}

/// Response headers by tier and staleness. Built once, because a clone costs half as much as building them.
#[derive(Debug)]
pub(super) struct Headers([[HeaderMap; 2]; 3]);

impl Headers {
    pub(super) fn new() -> Self {
        let of = |from| [false, true].map(|stale| headers(cache_status(from, stale)));
        Self([ServedBy::Hot, ServedBy::Redis, ServedBy::Postgres].map(of))
    }

    fn of(&self, from: ServedBy, stale: bool) -> HeaderMap {
        self.0[from as usize][usize::from(stale)].clone()
    }
}

type Responded = Result<Response<Reply>, Infallible>;

/// The body of a request: of a connection, or made from a request in another protocol.
pub(super) trait RequestBody:
    Body<Data = Bytes, Error: std::fmt::Display + Into<BoxError>> + Send + Unpin + 'static
{
}

impl<B> RequestBody for B where
    B: Body<Data = Bytes, Error: std::fmt::Display + Into<BoxError>> + Send + Unpin + 'static
{
}

impl Reads {
    /// The future of a GetProduct is kept small (not boxed, no other methods in it), because the layer moves it.
    pub(super) fn call(
        reads: Arc<Self>,
        call: Call<Incoming>,
    ) -> impl Future<Output = Result<Response<Reply>, Infallible>> {
        if let Protocol::Web { malformed_timeout } = call.protocol {
            return Either::Right(web::serve(reads, call, malformed_timeout).boxed());
        }
        match reads.named(call.method, call.request.headers()) {
            Ok(named) => Self::grpc(reads, call, named),
            Err(refused) => Either::Right(reads.refuse(call, refused).boxed()),
        }
    }

    /// Answers a call whose request has the form of gRPC.
    pub(super) fn grpc<B: RequestBody>(
        reads: Arc<Self>,
        call: Call<B>,
        named: Option<Arc<Named>>,
    ) -> Either<impl Future<Output = Responded> + use<B>, BoxFuture<'static, Responded>> {
        if call.method == Method::GetProduct {
            let Call { encoding, deadline, span, request, .. } = call;
            let (body, until) = (request.into_body(), (deadline, span));
            let answer = async move { reads.get_product(body, encoding, named, until).await };
            return Either::Left(answer.map(|answer| Ok(answer.unwrap_or_else(Status::into_http))));
        }
        Either::Right(reads.call_other(call, named).boxed())
    }

    /// Answers a call that is refused because of its head. Its request is received first: h2 resets a stream that is answered
    /// before, and closes a connection with many such streams, and with it the calls of other callers.
    pub(super) async fn refuse<B: RequestBody>(
        self: Arc<Self>,
        call: Call<B>,
        refused: Status,
    ) -> Result<Response<Reply>, Infallible> {
        // The client of a stream may wait for an answer before it ends its request.
        if !matches!(call.method, Method::Reflection | Method::Other) {
            let receiver = self.receiver(self.connection.account(None));
            // The refusal is the answer, whether the request arrives or not.
            let _ = receiver.receive(call.request.into_body(), 0).await;
        }
        Ok(refused.into_http())
    }

    /// Products are not served on the admin port, and gRPC is the only protocol of its services.
    pub(super) async fn call_on_admin_port(
        reads: Arc<Self>,
        mut call: Call<Incoming>,
    ) -> Result<Response<Reply>, Infallible> {
        if call.protocol != Protocol::Grpc {
            return Ok(protocol::refusal(&call.request));
        }
        if let Method::GetProduct | Method::BatchGetProducts = call.method {
            call.method = Method::Other;
        }
        reads.call_other(call, None).await
    }

    /// The authenticated caller, else the one in the metadata that a proxy sets; `None` when the connection is the caller.
    pub(super) fn named(
        &self,
        method: Method,
        headers: &HeaderMap,
    ) -> Result<Option<Arc<Named>>, Status> {
        if let Some(auth) = &self.auth
            && let Some(authenticated) = auth.check(method, headers)?
        {
            return Ok(Some(authenticated));
        }
        let metadata = self.shared.caller_metadata.as_ref();
        let name = metadata.and_then(|metadata| named_by_proxy(headers, metadata));
        Ok(name.map(|name| self.shared.callers.named(name)))
    }

    async fn call_other<B: RequestBody>(
        self: Arc<Self>,
        call: Call<B>,
        named: Option<Arc<Named>>,
    ) -> Result<Response<Reply>, Infallible> {
        let Call { method, encoding, deadline, span, mut request, .. } = call;
        let account = self.connection.account(named.as_deref());
        let call = context(account, (deadline, span));
        let answer = match method {
            Method::BatchGetProducts => {
                self.batch_get_products(request.into_body(), encoding, account, call).await
            }
            // Its requests are a stream, so it is not received here.
            Method::Reflection => match stream(account) {
                Ok(stream) => self.route(request, Some(stream)).await,
                Err(refused) => Err(refused),
            },
            // Answered with UNIMPLEMENTED; the request is not read.
            Method::Other => self.route(request, None).await,
            _ => {
                let (connection, named) = (Arc::clone(&self.connection), named.clone());
                request.extensions_mut().insert(Origin { connection, named, call });
                self.route_complete(method, encoding, account, request).await
            }
        };
        Ok(answer.unwrap_or_else(Status::into_http))
    }

    /// Receives the one message of a call completely, then routes the call to tonic. So limits, errors and compression of
    /// requests are the same for every method.
    async fn route_complete<B: RequestBody>(
        &self,
        method: Method,
        encoding: Encoding,
        account: Account<'_>,
        request: Request<B>,
    ) -> Result<Response<Reply>, Status> {
        let (mut head, body) = request.into_parts();
        // `frame` is decompressed.
        head.headers.remove(protocol::GRPC_ENCODING);
        let receiver = self.receiver(account);
        let received = receiver.receive(body, head_bytes(&head));
        let received = match method.is_lasting() {
            true => tokio::time::timeout(self.shared.max_call_time, received)
                .await
                .unwrap_or_else(|_| Err(status::deadline_exceeded())),
            false => received.await,
        }?;
        let held = match method {
            // Not limited: a busy instance must not fail its health checks.
            Method::HealthCheck => None,
            method if method.is_lasting() => Some(stream(account)),
            _ => Some(call_place(account).map(Retained::CallPlace)),
        };
        let held = held.transpose()?;
        let frame = received.frame(encoding)?;
        self.route(Request::from_parts(head, Full::new(frame)), held).await
    }

    pub(super) fn receiver<'a>(&self, account: Account<'a>) -> Receiver<'a> {
        Receiver { limit: self.max_request_bytes, account }
    }

    async fn route<B>(
        &self,
        request: Request<B>,
        held: Option<Retained>,
    ) -> Result<Response<Reply>, Status>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let Ok(response) = self.shared.routes.clone().call(request).await;
        Ok(status::with_details(response).map(|body| Reply::tonic(body, held)))
    }

    async fn get_product<B: RequestBody>(
        &self,
        body: B,
        encoding: Encoding,
        named: Option<Arc<Named>>,
        until: (Deadline, SpanKey),
    ) -> Result<Response<Reply>, Status> {
        let receiver = self.receiver(self.connection.account(named.as_deref()));
        let received = receiver.receive(body, 0).await?;
        let account = receiver.account;
        let place = call_place(account)?;
        let answer = self.find(&received.message(encoding)?, account, until).await?;
        let headers = self.shared.headers.of(answer.from, answer.stale);
        Ok(Reply::message(answer.entry, headers, place))
    }

    /// Reads a product, which exists.
    pub(super) async fn find(
        &self,
        request: &GetProductRequest,
        account: Account<'_>,
        until: (Deadline, SpanKey),
    ) -> Result<Answer, Status> {
        let id = convert::id("id", request.id)?;
        let freshness = convert::freshness(request.freshness)?;
        let catalog = &self.shared.catalog;
        let answer = match catalog.get_hot(id, &freshness) {
            Some(answer) => Ok(answer),
            // Boxed, so that the future of a hot read does not contain that of a load.
            None => {
                let call = context(account, until);
                Box::pin(catalog.get_cold(id, freshness, call)).await
            }
        };
        let answer = answer.map_err(|error| account.failed(&error, min_version(request)))?;
        match answer.entry.is_tombstone() {
            true => Err(not_found(cache_status(answer.from, answer.stale))),
            false => Ok(answer),
        }
    }

    async fn batch_get_products<B: RequestBody>(
        &self,
        body: B,
        encoding: Encoding,
        account: Account<'_>,
        call: CallContext,
    ) -> Result<Response<Reply>, Status> {
        let received = self.receiver(account).receive(body, 0).await?;
        let place = call_place(account)?;
        let request: BatchGetProductsRequest = received.message(encoding)?;
        let ids = convert::ids(&request.ids)?;
        let freshness = convert::batch_freshness(request.max_staleness, request.latest)?;
        let max_bytes = convert::max_response_bytes(request.max_response_bytes)?;
        if ids.len() > INLINE_BATCH {
            if self.shared.catalog.held_bytes(&ids) > max_bytes {
                return Err(status::response_above(max_bytes));
            }
            tokio::task::yield_now().await;
        }
        let answers = self.shared.catalog.get_many(&ids, freshness, call).await;
        let answers = answers.map_err(|error| account.failed(&error, None))?;
        let (from, stale) = farthest(&answers);
        let bytes = batch::max_bytes(&answers);
        if bytes - PREFIX > max_bytes {
            return Err(status::response_above(max_bytes));
        }
        let reservation = account.limits().unsent.take(bytes);
        let reservation = reservation.map_err(|over| account.over_limit(over))?;
        let message = reservation.attach(batch::message(&ids, &answers));
        Ok(Reply::message(message, self.shared.headers.of(from, stale), place))
    }
}

fn context(account: Account<'_>, (deadline, span): (Deadline, SpanKey)) -> CallContext {
    CallContext { caller: account.caller(), deadline: deadline.instant(), span }
}

/// Takes a place among the calls in flight.
pub(super) fn call_place(account: Account<'_>) -> Result<CallPlace, Status> {
    account.limits().calls.take().map_err(|over| account.over_limit(over))
}

/// Takes one of the open streams.
fn stream(account: Account<'_>) -> Result<Retained, Status> {
    let taken = account.limits().streams.take(1).map(Retained::Stream);
    taken.map_err(|over| account.over_limit(over))
}

/// The name that the proxy has set: the last value of the list. The values before it may come from the client.
fn named_by_proxy<'a>(headers: &'a HeaderMap, metadata: &HeaderName) -> Option<&'a str> {
    let list = headers.get_all(metadata).iter().next_back()?.to_str().ok()?;
    list.rsplit(',').next().map(str::trim).filter(|name| !name.is_empty())
}

/// Approximate memory of a request's head: its text, and an entry of the header map for each field.
pub(super) fn head_bytes(head: &Parts) -> usize {
    const MAP_ENTRY: usize = 192;
    let field =
        |(name, value): (&HeaderName, &HeaderValue)| MAP_ENTRY + name.as_str().len() + value.len();
    let path = head.uri.path_and_query().map_or(0, |path| path.as_str().len());
    path + head.headers.iter().map(field).sum::<usize>()
}

fn not_found(cache_status: &'static str) -> Status {
    let mut not_found = status::not_found();
    let value = MetadataValue::from_static(cache_status);
    not_found.metadata_mut().insert("cache-status", value);
    not_found
}

fn min_version(request: &GetProductRequest) -> Option<Version> {
    match request.freshness {
        Some(Freshness::MinVersion(version)) => Some(Version(version)),
        _ => None,
    }
}

/// The farthest tier that any product of a batch came from, and whether any is stale.
fn farthest(answers: &[Option<Answer>]) -> (ServedBy, bool) {
    // `None` is a row that could not be converted, which was read from Postgres.
    let from =
        |answer: &Option<Answer>| answer.as_ref().map_or(ServedBy::Postgres, |answer| answer.from);
    let from = answers.iter().map(from).max_by_key(|from| *from as usize);
    (from.unwrap_or(ServedBy::Hot), answers.iter().flatten().any(|answer| answer.stale))
}

/// The value of `cache-status` (RFC 9211).
pub(super) fn cache_status(from: ServedBy, stale: bool) -> &'static str {
    match (from, stale) {
        (ServedBy::Hot, false) => "hotshelf; hit; detail=hot",
        (ServedBy::Hot, true) => "hotshelf; hit; detail=hot; stale",
        (ServedBy::Redis, false) => "hotshelf; hit; detail=redis",
        (ServedBy::Redis, true) => "hotshelf; hit; detail=redis; stale",
        (ServedBy::Postgres, false) => "hotshelf; fwd=miss; detail=postgres",
        (ServedBy::Postgres, true) => "hotshelf; fwd=miss; detail=postgres; stale",
    }
}
