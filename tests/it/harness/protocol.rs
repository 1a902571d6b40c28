//! One call in each protocol of the port, for tests of what holds for all of them.

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::Bytes;
use hotshelf::proto::{BatchGetProductsRequest, GetProductRequest};
use http::{HeaderMap, HeaderValue};
use prost::Message;
use serde_json::Value;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::{Raw, framed};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Grpc,
    GrpcWeb,
    Connect,
    Json,
}

pub const PROTOCOLS: [Protocol; 4] =
    [Protocol::Grpc, Protocol::GrpcWeb, Protocol::Connect, Protocol::Json];

impl Protocol {
    /// Makes a read or opens a stream of hot keys, and returns its status when it has ended.
    pub async fn call(
        self,
        raw: &Raw,
        path: &str,
        mut headers: HeaderMap,
        message: &[u8],
    ) -> Result<Status, hyper::Error> {
        let is_stream = path.ends_with("/StreamHotKeys");
        let content_type = match self {
            Self::Grpc => return raw.call_with(path, headers, framed(message)).await,
            Self::GrpcWeb => "application/grpc-web+proto",
            Self::Connect if is_stream => "application/connect+proto",
            Self::Connect => "application/proto",
            Self::Json => {
                let path = json_path(path, message);
                let (status, body) = raw.collect("GET", &path, headers, Bytes::new()).await?;
                return Ok(of_json(&status, &body));
            }
        };
        headers.insert("content-type", HeaderValue::from_static(content_type));
        let body = match self {
            Self::Connect if !is_stream => Bytes::copy_from_slice(message),
            _ => framed(message),
        };
        let (head, body) = raw.collect("POST", path, headers, body).await?;
        Ok(match self {
            Self::Connect => of_json(&head, &body),
            _ => of_grpc_web(&head.headers, &body),
        })
    }
}

fn json_path(path: &str, message: &[u8]) -> String {
    match path.rsplit('/').next().unwrap() {
        "GetProduct" => {
            format!("/v1/products/{}", GetProductRequest::decode(message).unwrap().id)
        }
        "BatchGetProducts" => {
            let ids = BatchGetProductsRequest::decode(message).unwrap().ids;
            let ids: Vec<String> = ids.iter().map(|id| format!("ids={id}")).collect();
            format!("/v1/products:batchGet?{}", ids.join("&"))
        }
        "StreamHotKeys" => "/v1/hotKeys".to_owned(),
        other => unreachable!("{other}"),
    }
}

/// The status of a `google.rpc.Status` or a Connect error, or of the end of a Connect stream.
fn of_json(head: &http::response::Parts, body: &[u8]) -> Status {
    let json: Option<Value> = serde_json::from_slice(body).ok();
    let json = json.or_else(|| serde_json::from_slice::<Value>(body.get(5..)?).ok());
    let error = json.map(|mut json| match json.get_mut("error") {
        Some(error) => error.take(),
        None => json,
    });
    let Some(error) = error.filter(|error| error["code"] != Value::Null) else {
        return match head.status.is_success() {
            true => Status::ok(""),
            false => Status::unknown(format!("{}: {body:?}", head.status)),
        };
    };
    let code = match &error["code"] {
        Value::Number(number) => Code::from_i32(number.as_i64().unwrap() as i32),
        Value::String(name) => (0..17)
            .map(Code::from_i32)
            .find(|code| format!("{code:?}").to_lowercase() == name.replace('_', ""))
            .unwrap_or(Code::Unknown),
        _ => Code::Unknown,
    };
    let message = error["message"].as_str().unwrap_or_default().to_owned();
    let mut details = ErrorDetails::new();
    for detail in error["details"].as_array().into_iter().flatten() {
        let shown = if detail["debug"].is_object() { &detail["debug"] } else { detail };
        if let Some(value) = detail["value"].as_str() {
            STANDARD_NO_PAD.decode(value).unwrap();
        }
        if let Some(reason) = shown["reason"].as_str() {
            details.set_error_info(reason, "hotshelf", HashMap::new());
        }
        if shown["retryDelay"].is_string() {
            details.set_retry_info(Some(Duration::from_millis(500)));
        }
    }
    Status::with_error_details(code, message, details)
}

/// The status in the last frame of a body, or in the headers.
fn of_grpc_web(headers: &HeaderMap, mut body: &[u8]) -> Status {
    while let Some((prefix, rest)) = body.split_first_chunk::<5>() {
        let length = u32::from_be_bytes(prefix[1..].try_into().unwrap()) as usize;
        if prefix[0] & 0x80 != 0 {
            let mut trailers = HeaderMap::new();
            for line in std::str::from_utf8(&rest[..length]).unwrap().lines() {
                let (name, value) = line.split_once(':').unwrap();
                let name: http::HeaderName = name.parse().unwrap();
                trailers.insert(name, value.trim().parse().unwrap());
            }
            return Status::from_header_map(&trailers).unwrap();
        }
        body = &rest[length..];
    }
    Status::from_header_map(headers).unwrap_or_else(|| Status::unknown("no status"))
}
