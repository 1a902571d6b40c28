//! The protocols beside gRPC: gRPC-Web, Connect, and JSON over HTTP.

use std::time::Duration;

use clap::Args;
use http::Uri;

use super::limits::{DAY, boolean, duration};

#[derive(Args, Clone, Debug)]
pub struct HttpArgs {
    /// Whether the gRPC port also serves gRPC-Web, Connect and JSON over HTTP, with HTTP/1.1 as well as HTTP/2.
    ///
    /// Off: requests in other protocols than gRPC are refused with 415 or 405, and HTTP/1.1 connections are closed.
    #[arg(long, env = "HTTP_API", default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set)]
    #[arg(value_name = "BOOL", value_parser = boolean)]
    pub http_api: bool,
    /// The origins whose web pages may call (CORS), such as https://shop.example, separated by commas or spaces.
    ///
    /// Without it no page of another origin can read an answer or change anything.
    #[arg(long, env, default_value = "", value_name = "ORIGINS", value_parser = origins)]
    pub cors_origins: String,
    /// For how long shared HTTP caches may serve a product of the JSON API without asking; 0s: not at all.
    ///
    /// It adds to the staleness of what they serve. Without it `cache-control` is `private, no-cache`.
    #[arg(long, env, default_value = "0s", value_name = "DURATION", value_parser = duration(Duration::ZERO, DAY))]
    pub http_shared_max_age: Duration,
}

impl HttpArgs {
    pub(super) fn origins(&self) -> Vec<String> {
        split(&self.cors_origins).map(str::to_owned).collect()
    }
}

fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split([',', ' ']).filter(|origin| !origin.is_empty())
}

fn origins(text: &str) -> Result<String, String> {
    match split(text).find(|origin| !is_origin(origin)) {
        None => Ok(text.to_owned()),
        Some("*") => Err("* would let any page write products; name the origins".to_owned()),
        Some(other) => Err(format!(
            "{other} is no origin such as https://shop.example or http://localhost:3000"
        )),
    }
}

/// Whether browsers send the text as an origin: in lower case, without a path, without the port of the scheme.
fn is_origin(text: &str) -> bool {
    let Ok(uri) = text.parse::<Uri>() else { return false };
    let (scheme, port) = (uri.scheme_str(), uri.port_u16());
    let is_default =
        matches!((scheme, port), (Some("http"), Some(80)) | (Some("https"), Some(443)));
    let authority = uri.authority().map_or("", http::uri::Authority::as_str);
    scheme.is_some_and(|scheme| text == format!("{scheme}://{authority}"))
        && !text.bytes().any(|byte| byte.is_ascii_uppercase())
        && !authority.contains('@')
        && !is_default
}
