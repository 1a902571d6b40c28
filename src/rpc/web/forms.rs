//! Which protocol a request is in.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method as Verb, Request, Response};
use tonic::Status;

use super::rest::Route;
use super::types::Types;
use super::{connect, errors};
use crate::metrics::{Method, WebProtocol};
use crate::rpc::reply::Reply;

/// The protocol of a request, and how it uses it.
#[derive(Clone, Debug)]
pub(super) enum Form {
    GrpcWeb,
    Connect(connect::Form),
    Rest(Route),
    Unknown(Refusal),
}

/// Why a request is in no protocol.
#[derive(Clone, Copy, Debug)]
pub(super) enum Refusal {
    NoSuchPath,
    /// With the allowed ones.
    WrongMethod(&'static str),
    /// With the accepted ones. Other content types have to be refused: a web page can send some of them to any address without a
    /// CORS preflight, so any page could write products through its visitor's browser.
    ContentType(&'static str),
}

/// The content types of POST on the paths of gRPC.
const ACCEPTED: &str = "application/grpc, application/grpc-web, application/grpc-web-text, \
    application/json, application/proto";
const ACCEPTED_STREAM: &str = "application/grpc, application/grpc-web, application/grpc-web-text, \
    application/connect+json, application/connect+proto";

impl Form {
    pub(super) fn of<B>(method: Method, request: &Request<B>) -> Self {
        if let Some(route) = Route::of(request.uri().path()) {
            return match route.method(request.method()) {
                Ok(Method::CreateProduct | Method::UpdateProduct)
                    if !is_json(request.headers()) =>
                {
                    Self::Unknown(Refusal::ContentType("application/json"))
                }
                Ok(_) => Self::Rest(route),
                Err(allowed) => Self::Unknown(Refusal::WrongMethod(allowed)),
            };
        }
        let method = match *request.method() {
            Verb::OPTIONS => Method::of_path(request.uri().path()),
            _ => method,
        };
        if method == Method::Other {
            return Self::Unknown(Refusal::NoSuchPath);
        }
        match *request.method() {
            Verb::POST => Self::of_post(method, &essence(request.headers()).to_ascii_lowercase()),
            Verb::GET if method.has_no_side_effects() && !method.is_lasting() => {
                Self::Connect(connect::Form::Get)
            }
            _ if method.has_no_side_effects() && !method.is_lasting() => {
                Self::Unknown(Refusal::WrongMethod("GET, POST"))
            }
            _ => Self::Unknown(Refusal::WrongMethod("POST")),
        }
    }

    fn of_post(method: Method, content_type: &str) -> Self {
        use connect::{Codec, Form as Connect};
        let unary = |codec| Self::Connect(Connect::Unary(codec));
        let stream = |codec| Self::Connect(Connect::Stream(codec));
        match (content_type, method.is_lasting()) {
            (
                "application/grpc-web"
                | "application/grpc-web+proto"
                | "application/grpc-web-text"
                | "application/grpc-web-text+proto",
                _,
            ) => Self::GrpcWeb,
            ("application/json", false) => unary(Codec::Json),
            ("application/proto", false) => unary(Codec::Proto),
            ("application/connect+json", true) => stream(Codec::Json),
            ("application/connect+proto", true) => stream(Codec::Proto),
            (_, true) => Self::Unknown(Refusal::ContentType(ACCEPTED_STREAM)),
            (_, false) => Self::Unknown(Refusal::ContentType(ACCEPTED)),
        }
    }

    pub(super) fn protocol(&self) -> WebProtocol {
        match self {
            Self::GrpcWeb => WebProtocol::GrpcWeb,
            Self::Connect(_) => WebProtocol::Connect,
            Self::Rest(_) => WebProtocol::Json,
            Self::Unknown(_) => WebProtocol::Unknown,
        }
    }

    /// An error in the form of the protocol.
    pub(super) fn error(&self, types: &Types, status: &Status) -> Response<Reply> {
        match self {
            Self::GrpcWeb => errors::grpc_web(status),
            Self::Connect(form) => form.error(types, status),
            Self::Rest(_) | Self::Unknown(_) => errors::rest(types, status),
        }
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let known = ["application/json", "application/merge-patch+json"];
    known.iter().any(|known| essence(headers).eq_ignore_ascii_case(known))
}

/// The content type without its parameters.
pub(super) fn essence(headers: &HeaderMap) -> &str {
    let text = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim()
}
