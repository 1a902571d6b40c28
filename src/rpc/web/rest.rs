//! JSON over HTTP: the paths of the `google.api.http` annotations (AIP-127), and `/products/{id}` with plain JSON.

use bytes::Bytes;
use futures_util::stream;
use http::header::{CACHE_CONTROL, CACHE_STATUS, CONTENT_LENGTH, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderValue, Method as Verb, Request, Response, StatusCode};
use http_body::{Body as _, Frame};
use http_body_util::StreamBody;
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use prost::Message;
use prost_reflect::MessageDescriptor;
use serde_json::Map;
use tonic::body::Body;
use tonic::{Code, Status};

use super::conditional::{self, Representation};
use super::product_json::{self, Style};
use super::types::to_json;
use super::{Exchange, errors, query, rest_writes};
use crate::metrics::Method;
use crate::product::ProductId;
use crate::proto::GetProductRequest;
use crate::rpc::reads::head_bytes;
use crate::rpc::reply::{Chunk, FinalCode, Reply, Retained};
use crate::rpc::status::{self, invalid};

/// A path of the JSON API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// With the text of the id.
    Product(Style, String),
    Products(Style),
    BatchGet,
    HotKeys,
    OpenApi,
}

/// The methods of gRPC that the routes call.
pub(super) const GET_PRODUCT: &str = "/hotshelf.v1.ProductService/GetProduct";
const BATCH_GET_PRODUCTS: &str = "/hotshelf.v1.ProductService/BatchGetProducts";
const STREAM_HOT_KEYS: &str = "/hotshelf.v1.ProductService/StreamHotKeys";

impl Route {
    pub(super) fn of(path: &str) -> Option<Self> {
        let id = |style, text: &str| {
            (!text.is_empty() && !text.contains('/')).then(|| Self::Product(style, text.to_owned()))
        };
        match path {
            "/v1/products" => Some(Self::Products(Style::Proto)),
            "/products" => Some(Self::Products(Style::Plain)),
            // Some clients encode the colon.
            "/v1/products:batchGet" | "/v1/products%3AbatchGet" | "/v1/products%3abatchGet" => {
                Some(Self::BatchGet)
            }
            "/v1/hotKeys" => Some(Self::HotKeys),
            "/openapi.json" => Some(Self::OpenApi),
            _ => match path.strip_prefix("/v1/products/") {
                Some(text) => id(Style::Proto, text),
                None => id(Style::Plain, path.strip_prefix("/products/")?),
            },
        }
    }

    /// The method that a request calls; `Err` with the HTTP methods that there are.
    pub(super) fn method(&self, verb: &Verb) -> Result<Method, &'static str> {
        match (self, verb.as_str()) {
            (Self::Product(..), "GET" | "HEAD") => Ok(Method::GetProduct),
            (Self::Product(..), "PATCH") | (Self::Product(Style::Plain, _), "PUT") => {
                Ok(Method::UpdateProduct)
            }
            (Self::Product(..), "DELETE") => Ok(Method::DeleteProduct),
            (Self::Product(Style::Proto, _), _) => Err("GET, HEAD, PATCH, DELETE"),
            (Self::Product(Style::Plain, _), _) => Err("GET, HEAD, PUT, PATCH, DELETE"),
            (Self::Products(_), "POST") => Ok(Method::CreateProduct),
            (Self::Products(_), _) => Err("POST"),
            (Self::BatchGet, "GET" | "HEAD") => Ok(Method::BatchGetProducts),
            (Self::HotKeys, "GET") => Ok(Method::StreamHotKeys),
            (Self::OpenApi, "GET" | "HEAD") => Ok(Method::Other),
            (Self::BatchGet | Self::OpenApi, _) => Err("GET, HEAD"),
            (Self::HotKeys, _) => Err("GET"),
        }
    }
}

pub(super) async fn answer(
    exchange: Exchange,
    route: Route,
    request: Request<Incoming>,
) -> Response<Reply> {
    let (head, body) = request.into_parts();
    let answer = match &route {
        Route::OpenApi => Ok(document(&exchange)),
        Route::HotKeys => hot_keys(&exchange, &head, body).await,
        _ => exchange.in_time(unary(&exchange, &route, &head, body)).await,
    };
    let types = &exchange.web.types;
    answer.unwrap_or_else(|status| match is_conditional(&head) {
        true => errors::rest_of_precondition(types, &status),
        false => errors::rest(types, &status),
    })
}

fn is_conditional(head: &Parts) -> bool {
    head.headers.contains_key(http::header::IF_MATCH)
}

async fn unary(
    exchange: &Exchange,
    route: &Route,
    head: &Parts,
    body: Incoming,
) -> Result<Response<Reply>, Status> {
    let named = exchange.named(&head.headers);
    let caller = named.as_ref().ok().and_then(Option::as_deref);
    let received = match body.is_end_stream() {
        true => None,
        // Received also when the caller is refused: see `Reads::refuse`.
        false => Some(exchange.receive(caller, head_bytes(head), body).await),
    };
    let named = named?;
    let received = received.transpose()?;
    match (route, &head.method) {
        (Route::Product(style, id), &(Verb::GET | Verb::HEAD)) => {
            get(exchange, head, named.as_deref(), *style, id).await
        }
        (Route::BatchGet, _) => batch_get(exchange, head, named).await,
        _ => {
            let received = received.map(|received| {
                let encoding = head.headers.get(http::header::CONTENT_ENCODING);
                let encoding = crate::rpc::protocol::encoding_of(encoding);
                exchange.admitted(named.as_deref(), || received.unframed(encoding))
            });
            let body = received.transpose()?.unwrap_or_default();
            rest_writes::answer(exchange, route, head, named, &body).await
        }
    }
}

/// The id in a path.
pub(super) fn id(text: &str) -> Result<ProductId, Status> {
    let text = percent_decode_str(text).decode_utf8().ok();
    let id = text.and_then(|text| text.parse().ok()).and_then(ProductId::new);
    id.ok_or_else(|| invalid("id", "must be a number from 1 to 9223372036854775807"))
}

async fn get(
    exchange: &Exchange,
    head: &Parts,
    named: Option<&super::Named>,
    style: Style,
    text: &str,
) -> Result<Response<Reply>, Status> {
    let id = id(text)?.get();
    let mut request = match head.uri.query() {
        None => GetProductRequest { id, freshness: None },
        query => {
            let preset = Map::from_iter([("id".to_owned(), id.to_string().into())]);
            let encoded = query::message(&input(exchange, GET_PRODUCT)?, query, preset)?;
            GetProductRequest::decode(&*encoded)
                .map_err(|why| status::malformed(&why.to_string()))?
        }
    };
    request.freshness = conditional::either(request.freshness, &head.headers)?;
    let (answer, place) = exchange.find(named, &request).await?;
    let etag = conditional::etag(&answer.entry, Representation::Json(style));
    let place = Some(Retained::CallPlace(place));
    let mut response = match conditional::is_unchanged(&head.headers, &etag) {
        true => {
            let mut response = Response::new(Reply::whole(None, Code::Ok, place));
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        }
        false => {
            let product = answer.entry.product().unwrap_or_default();
            json(exchange.hold(named, product_json::product(product, style)?)?, place)
        }
    };
    let (headers, demanding) = (response.headers_mut(), request.freshness.is_some());
    conditional::describe(headers, exchange, &head.headers, &answer, etag, demanding);
    Ok(response)
}

async fn batch_get(
    exchange: &Exchange,
    head: &Parts,
    named: Option<std::sync::Arc<super::Named>>,
) -> Result<Response<Reply>, Status> {
    conditional::refuse(&head.headers, &[conditional::MIN_VERSION, conditional::MAX_STALENESS])?;
    let input = input(exchange, BATCH_GET_PRODUCTS)?;
    let request = query::message(&input, head.uri.query(), Map::new())?;
    let answer = exchange.unary(BATCH_GET_PRODUCTS, named.clone(), &request, false).await?;
    let content = exchange.hold(named.as_deref(), product_json::batch(&answer.message)?)?;
    let tier = answer.headers.get(CACHE_STATUS).cloned();
    let mut response = json(content, answer.rest.into_retained());
    if let Some(tier) = tier {
        response.headers_mut().insert(CACHE_STATUS, tier);
    }
    let control = HeaderValue::from_static("private, no-cache");
    response.headers_mut().insert(CACHE_CONTROL, control);
    Ok(response)
}

/// Server-sent events (<https://html.spec.whatwg.org/multipage/server-sent-events.html>): one for each snapshot.
async fn hot_keys(
    exchange: &Exchange,
    head: &Parts,
    body: Incoming,
) -> Result<Response<Reply>, Status> {
    let named = exchange.named(&head.headers);
    let caller = named.as_ref().ok().and_then(Option::as_deref);
    let received = exchange.receive(caller, head_bytes(head), body).await;
    let named = named?;
    received?;
    let method = exchange.web.types.method(STREAM_HOT_KEYS).ok_or_else(status::no_such_path)?;
    let request = query::message(&method.input(), head.uri.query(), Map::new())?;
    let (_, messages) = exchange.call(STREAM_HOT_KEYS, named, &request, false).await?;
    let code = FinalCode::default();
    let state = Some((messages, code.clone(), exchange.web.clone()));
    let events = stream::unfold(state, move |state| {
        let method = method.clone();
        async move {
            let (mut messages, code, web) = state?;
            let Some(next) = messages.next().await else {
                code.set(Code::Ok);
                return None;
            };
            let json = next.and_then(|message| to_json(method.output(), &message));
            let (event, state) = match json {
                Ok(json) => (event(None, &json), Some((messages, code, web))),
                Err(status) => {
                    code.set(status.code());
                    let error = errors::rest_value(&web.types, &status).to_string();
                    (event(Some("status"), error.as_bytes()), None)
                }
            };
            Some((Ok::<_, Status>(Frame::data(event)), state))
        }
    });
    let body = Body::new(StreamBody::new(events));
    let mut response = Response::new(Reply::stream(body, code));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

fn event(name: Option<&str>, data: &[u8]) -> Bytes {
    let mut event = Vec::with_capacity(data.len() + 32);
    if let Some(name) = name {
        event.extend_from_slice(format!("event: {name}\n").as_bytes());
    }
    event.extend_from_slice(b"data: ");
    event.extend_from_slice(data);
    event.extend_from_slice(b"\n\n");
    event.into()
}

fn document(exchange: &Exchange) -> Response<Reply> {
    let mut response = json(exchange.web.openapi.clone(), None);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// The request message of a method.
pub(super) fn input(exchange: &Exchange, path: &str) -> Result<MessageDescriptor, Status> {
    let method = exchange.web.types.method(path);
    method.map(|method| method.input()).ok_or_else(status::no_such_path)
}

pub(super) fn json(content: Bytes, retained: Option<Retained>) -> Response<Reply> {
    let mut response = Response::new(Reply::whole(Chunk::Made(content), Code::Ok, retained));
    response.headers_mut().insert(CONTENT_TYPE, errors::JSON);
    response
}

/// The response to HEAD: that to GET without its body.
pub(super) fn without_body(response: Response<Reply>) -> Response<Reply> {
    let (mut head, reply) = response.into_parts();
    if let Some(length) = reply.size_hint().exact().filter(|length| *length > 0) {
        head.headers.insert(CONTENT_LENGTH, length.into());
    }
    let code = reply.code().unwrap_or(Code::Ok);
    Response::from_parts(head, Reply::whole(None, code, reply.into_retained()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_annotations_and_the_plain_ones() {
        assert_eq!(Route::of("/v1/products/7"), Some(Route::Product(Style::Proto, "7".to_owned())));
        assert_eq!(Route::of("/products/7"), Some(Route::Product(Style::Plain, "7".to_owned())));
        assert_eq!(Route::of("/v1/products:batchGet"), Some(Route::BatchGet));
        let none = ["/", "", "*", "/v1", "/v1/products/", "/v1/products/7/", "/v1/products/7/x"];
        for path in none.into_iter().chain(["/products/", "/v2/products/7", "/V1/products/7"]) {
            assert_eq!(Route::of(path), None, "{path}");
        }
    }

    #[test]
    fn an_id_is_a_positive_number() {
        assert_eq!(id("7").map(ProductId::get).ok(), Some(7));
        assert_eq!(id("%37").map(ProductId::get).ok(), Some(7));
        assert_eq!(id("9223372036854775807").map(ProductId::get).ok(), Some(i64::MAX));
        for bad in ["0", "-1", "x", "7 ", "1e3", "9223372036854775808", "%ff", "%00"] {
            assert!(id(bad).is_err(), "{bad}");
        }
    }
}
