//! The Connect protocol (<https://connectrpc.com/docs/protocol>): unary calls by POST, reads by GET as well, and streams of the
//! server.

use std::time::Duration;

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::{BufMut, Bytes};
use futures_util::stream;
use http::header::{
    CACHE_CONTROL, CACHE_STATUS, CONTENT_ENCODING, CONTENT_TYPE, IF_MATCH, IF_NONE_MATCH,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::StreamBody;
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use prost::Message;
use prost_reflect::MessageDescriptor;
use serde_json::{Value, json};
use tonic::body::Body;
use tonic::{Code, Status};

use super::conditional::{self, Representation};
use super::messages::Messages;
use super::product_json::{self, Style};
use super::types::{Types, from_json, to_json};
use super::{Exchange, errors};
use crate::entry::PREFIX;
use crate::metrics::Method;
use crate::moment::Moment;
use crate::proto::GetProductRequest;
use crate::rpc::protocol::{Encoding, encoding_of};
use crate::rpc::reads::head_bytes;
use crate::rpc::reply::{Chunk, FinalCode, Reply, Retained};
use crate::rpc::status;

/// How a request uses Connect.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
    Get,
    Unary(Codec),
    Stream(Codec),
}

/// The encoding of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codec {
    Proto,
    Json,
}

const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("connect-protocol-version");
const TIMEOUT: HeaderName = HeaderName::from_static("connect-timeout-ms");
const STREAM_ENCODING: HeaderName = HeaderName::from_static("connect-content-encoding");
/// Flags an envelope that ends a stream.
const END_STREAM: u8 = 0b10;
/// A message in a query, which browsers encode with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

impl Form {
    pub(super) fn error(self, types: &Types, status: &Status) -> Response<Reply> {
        match self {
            Self::Get | Self::Unary(_) => errors::connect(types, status),
            // Also the errors of a stream that has not begun.
            Self::Stream(codec) => {
                let end = Chunk::Made(end_of_stream(types, Some(status)));
                stream_response(codec, Reply::whole(end, status.code(), None))
            }
        }
    }
}

pub(super) async fn answer(
    mut exchange: Exchange,
    form: Form,
    request: Request<Incoming>,
) -> Response<Reply> {
    let (head, body) = request.into_parts();
    let answer = match timeout(&head.headers) {
        Err(refused) => Err(refused),
        Ok(timeout) => {
            if let Some(timeout) = timeout {
                exchange.deadline = exchange.deadline.at_most(Moment::now(), timeout);
            }
            match form {
                Form::Stream(codec) => stream(&exchange, codec, &head, body).await,
                Form::Get => exchange.in_time(get(&exchange, &head, body)).await,
                Form::Unary(codec) => exchange.in_time(post(&exchange, codec, &head, body)).await,
            }
        }
    };
    answer.unwrap_or_else(|status| form.error(&exchange.web.types, &status))
}

/// Checks the version of the protocol, and reads the timeout.
fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    if headers.get(PROTOCOL_VERSION).is_some_and(|version| version != "1") {
        return Err(status::malformed("its connect-protocol-version is not 1"));
    }
    let Some(text) = headers.get(TIMEOUT) else { return Ok(None) };
    let text = text.to_str().ok().filter(|text| {
        (1..=10).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
    });
    let millis = text.and_then(|text| text.parse().ok());
    let millis = millis.ok_or_else(|| status::malformed("its connect-timeout-ms is malformed"))?;
    Ok(Some(Duration::from_millis(millis)))
}

async fn post(
    exchange: &Exchange,
    codec: Codec,
    head: &Parts,
    body: Incoming,
) -> Result<Response<Reply>, Status> {
    let named = exchange.named(&head.headers);
    let caller = named.as_ref().ok().and_then(Option::as_deref);
    // Received also when the caller is refused: see `Reads::refuse`.
    let received = exchange.receive(caller, head_bytes(head), body).await;
    let named = named?;
    let encoding = encoding_of(head.headers.get(CONTENT_ENCODING));
    let received = received?;
    let bytes = exchange.admitted(named.as_deref(), || received.unframed(encoding))?;
    unary(exchange, codec, head, named, bytes).await
}

async fn get(exchange: &Exchange, head: &Parts, body: Incoming) -> Result<Response<Reply>, Status> {
    let named = exchange.named(&head.headers);
    let received = exchange.receive(None, 0, body).await;
    let named = named?;
    let query = head.uri.query().unwrap_or_default();
    let parameter = |name| parameter(query, name);
    let codec = match parameter("encoding").as_deref() {
        Some(b"json") => Codec::Json,
        Some(b"proto") => Codec::Proto,
        Some(_) => return Err(status::content_type("json, proto")),
        None => return Err(status::malformed("its query has no encoding: json or proto")),
    };
    if parameter("connect").is_some_and(|version| version != b"v1") {
        return Err(status::malformed("its query has connect=, and not v1"));
    }
    let encoding = match parameter("compression").as_deref() {
        None | Some(b"identity") => Encoding::Identity,
        Some(b"gzip") => Encoding::Gzip,
        Some(_) => Encoding::Other,
    };
    let message = parameter("message");
    let message = message.ok_or_else(|| status::malformed("its query has no message"))?;
    let bytes = match parameter("base64").as_deref() {
        Some(b"1") => BASE64
            .decode(&message)
            .map_err(|why| status::malformed(&format!("its message is not base64: {why}")))?,
        _ => message,
    };
    let received = received?.replaced_by(bytes.into());
    let bytes = exchange.admitted(named.as_deref(), || received.unframed(encoding))?;
    unary(exchange, codec, head, named, bytes).await
}

/// A parameter of a query: any bytes, because a message need not be text.
fn parameter(query: &str, name: &str) -> Option<Vec<u8>> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(key, _)| *key == name)?;
    Some(percent_decode_str(&value.replace('+', " ")).collect())
}

async fn unary(
    exchange: &Exchange,
    codec: Codec,
    head: &Parts,
    named: Option<std::sync::Arc<super::Named>>,
    bytes: Bytes,
) -> Result<Response<Reply>, Status> {
    let (path, types) = (head.uri.path(), &exchange.web.types);
    let method = || types.method(path).ok_or_else(status::no_such_path);
    let message = match codec {
        Codec::Proto => bytes,
        Codec::Json => {
            let input = method()?.input();
            exchange.admitted(named.as_deref(), || from_json(input, &bytes))?.into()
        }
    };
    if exchange.method == Method::GetProduct {
        let request = GetProductRequest::decode(message);
        let mut request: GetProductRequest =
            request.map_err(|why| status::malformed(&why.to_string()))?;
        request.freshness = conditional::either(request.freshness, &head.headers)?;
        return product(exchange, codec, head, named.as_deref(), &request).await;
    }
    // `expected_version`, `max_staleness` and the like are in the message.
    let in_message =
        [IF_MATCH, IF_NONE_MATCH, conditional::MIN_VERSION, conditional::MAX_STALENESS];
    conditional::refuse(&head.headers, &in_message)?;
    let answer = exchange.unary(path, named.clone(), &message, false).await?;
    let content = match (codec, exchange.method) {
        (Codec::Proto, _) => answer.message,
        (Codec::Json, Method::BatchGetProducts) => {
            exchange.hold(named.as_deref(), product_json::batch(&answer.message)?)?
        }
        (Codec::Json, Method::UpdateProduct | Method::CreateProduct) => exchange
            .hold(named.as_deref(), product_json::product(&answer.message, Style::Proto)?)?,
        (Codec::Json, _) => to_json(method()?.output(), &answer.message)?.into(),
    };
    let tier = answer.headers.get(CACHE_STATUS).cloned();
    let mut response = whole(codec, Chunk::Made(content), answer.rest.into_retained());
    if let Some(tier) = tier {
        response.headers_mut().insert(CACHE_STATUS, tier);
    }
    if head.method == http::Method::GET {
        let control = match exchange.method {
            Method::BatchGetProducts => "private, no-cache",
            _ => "no-store",
        };
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static(control));
    }
    Ok(response)
}

/// The response to GetProduct.
async fn product(
    exchange: &Exchange,
    codec: Codec,
    head: &Parts,
    named: Option<&super::Named>,
    request: &GetProductRequest,
) -> Result<Response<Reply>, Status> {
    let (answer, place) = exchange.find(named, request).await?;
    let is_get = head.method == http::Method::GET;
    let representation = match codec {
        Codec::Proto => Representation::Protobuf,
        Codec::Json => Representation::Json(Style::Proto),
    };
    let etag = is_get.then(|| conditional::etag(&answer.entry, representation));
    let unchanged =
        etag.as_ref().is_some_and(|etag| conditional::is_unchanged(&head.headers, etag));
    let mut response = match codec {
        _ if unchanged => {
            let mut response =
                Response::new(Reply::whole(None, Code::Ok, Some(Retained::CallPlace(place))));
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        }
        Codec::Proto => {
            whole(codec, Chunk::message(answer.entry.clone()), Some(Retained::CallPlace(place)))
        }
        Codec::Json => {
            let json =
                product_json::product(answer.entry.product().unwrap_or_default(), Style::Proto)?;
            whole(codec, Chunk::Made(exchange.hold(named, json)?), Some(Retained::CallPlace(place)))
        }
    };
    let demanding = request.freshness.is_some();
    let headers = response.headers_mut();
    match etag {
        Some(etag) => {
            conditional::describe(headers, exchange, &head.headers, &answer, etag, demanding);
        }
        None => {
            let tier = crate::rpc::reads::cache_status(answer.from, answer.stale);
            headers.insert(CACHE_STATUS, HeaderValue::from_static(tier));
        }
    }
    Ok(response)
}

fn whole(codec: Codec, chunk: Chunk, retained: Option<Retained>) -> Response<Reply> {
    let mut response = Response::new(Reply::whole(chunk, Code::Ok, retained));
    let content_type = match codec {
        Codec::Proto => "application/proto",
        Codec::Json => "application/json",
    };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

async fn stream(
    exchange: &Exchange,
    codec: Codec,
    head: &Parts,
    body: Incoming,
) -> Result<Response<Reply>, Status> {
    let named = exchange.named(&head.headers);
    let path = head.uri.path();
    // Its requests are a stream, too. An envelope has the form of a gRPC frame.
    if exchange.method == Method::Reflection {
        if codec == Codec::Json {
            return Err(status::content_type("application/connect+proto"));
        }
        let (_, messages) = exchange.forward(path, named?, body, false).await?;
        return Ok(enveloped(exchange, codec, None, messages));
    }
    let caller = named.as_ref().ok().and_then(Option::as_deref);
    let received = exchange.receive(caller, head_bytes(head), body).await;
    let named = named?;
    let frame = received?.frame(encoding_of(head.headers.get(STREAM_ENCODING)))?;
    let method = exchange.web.types.method(path).ok_or_else(status::no_such_path)?;
    let message = match codec {
        Codec::Proto => frame.slice(PREFIX..),
        Codec::Json => from_json(method.input(), &frame[PREFIX..])?.into(),
    };
    let (_, messages) = exchange.call(path, named, &message, false).await?;
    Ok(enveloped(exchange, codec, Some(method.output()), messages))
}

/// The response to a stream. `output`: the type of its messages, for JSON.
fn enveloped(
    exchange: &Exchange,
    codec: Codec,
    output: Option<MessageDescriptor>,
    messages: Messages,
) -> Response<Reply> {
    let code = FinalCode::default();
    let output = output.filter(|_| codec == Codec::Json);
    let state = Some((messages, code.clone(), exchange.web.clone()));
    let envelopes = stream::unfold(state, move |state| {
        let output = output.clone();
        async move {
            let (mut messages, code, web) = state?;
            let next = match (messages.next().await, output) {
                (Some(Ok(message)), None) => Ok(Some(message)),
                (Some(Ok(message)), Some(output)) => {
                    to_json(output, &message).map(|json| Some(json.into()))
                }
                (Some(Err(status)), _) => Err(status),
                (None, _) => Ok(None),
            };
            let (envelope, state) = match next {
                Ok(Some(message)) => (envelope(0, &message), Some((messages, code, web))),
                Ok(None) => {
                    code.set(Code::Ok);
                    (end_of_stream(&web.types, None), None)
                }
                Err(status) => {
                    code.set(status.code());
                    (end_of_stream(&web.types, Some(&status)), None)
                }
            };
            Some((Ok::<_, Status>(Frame::data(envelope)), state))
        }
    });
    let body = Body::new(StreamBody::new(envelopes));
    stream_response(codec, Reply::stream(body, code))
}

fn stream_response(codec: Codec, reply: Reply) -> Response<Reply> {
    let mut response = Response::new(reply);
    let content_type = match codec {
        Codec::Proto => "application/connect+proto",
        Codec::Json => "application/connect+json",
    };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn end_of_stream(types: &Types, error: Option<&Status>) -> Bytes {
    let end: Value = match error {
        Some(status) => json!({ "error": errors::connect_value(types, status) }),
        None => json!({}),
    };
    envelope(END_STREAM, end.to_string().as_bytes())
}

fn envelope(flags: u8, message: &[u8]) -> Bytes {
    let mut envelope = Vec::with_capacity(PREFIX + message.len());
    envelope.put_slice(&crate::entry::prefix(message.len()));
    envelope[0] = flags;
    envelope.put_slice(message);
    envelope.into()
}
