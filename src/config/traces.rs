//! Traces: the settings are named as OpenTelemetry names them.

use std::time::Duration;

use clap::{Args, ValueEnum};
use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;
use url::Url;

use super::ServeArgs;
use super::identity::given;
use super::limits::number;
use crate::traces::{Endpoint, Sampler};

#[derive(Args, Clone, Debug)]
pub struct TraceArgs {
    /// The URL of a collector, to which traces are sent as OTLP over HTTP, at the path v1/traces below it; empty: no traces.
    #[arg(long, env, default_value = "", value_name = "URL")]
    pub otel_exporter_otlp_endpoint: String,
    /// The whole URL for traces, in place of the one above.
    #[arg(long, env, default_value = "", value_name = "URL")]
    pub otel_exporter_otlp_traces_endpoint: String,
    /// Headers of these requests: name=value,name=value, with %-escapes in the values.
    #[arg(long, env, hide_env_values = true, default_value = "", value_name = "LIST")]
    pub otel_exporter_otlp_headers: String,
    /// The timeout of such a request, in milliseconds.
    ///
    /// Too high: while the collector hangs, spans wait in memory, up to 4,096. Too low: spans are dropped while it is busy.
    #[arg(long, env, default_value_t = 10_000, value_name = "MS", value_parser = number::<u32>(1, 600_000))]
    pub otel_exporter_otlp_timeout: u32,
    /// The protocol: http/protobuf is the only one.
    #[arg(long, env, default_value = "http/protobuf", value_name = "NAME", value_parser = protocol)]
    pub otel_exporter_otlp_protocol: String,
    /// Which calls are traced: with parentbased_... the caller's traceparent decides, if it sends one.
    ///
    /// Too many: CPU, of this process and of the collector. Too few: rare faults are in no trace.
    #[arg(long, env, value_enum, default_value = "parentbased_always_on", value_name = "NAME")]
    pub otel_traces_sampler: SamplerName,
    /// The part of the calls that the samplers named ...traceidratio take, 0 to 1.
    #[arg(long, env, default_value = "1", value_name = "RATIO", value_parser = ratio)]
    pub otel_traces_sampler_arg: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum SamplerName {
    AlwaysOn,
    AlwaysOff,
    #[value(name = "traceidratio")]
    TraceIdRatio,
    #[value(name = "parentbased_always_on")]
    ParentBasedAlwaysOn,
    #[value(name = "parentbased_always_off")]
    ParentBasedAlwaysOff,
    #[value(name = "parentbased_traceidratio")]
    ParentBasedTraceIdRatio,
}

/// The settings of traces that are on.
#[derive(Debug)]
pub struct TraceOptions {
    pub sampler: Sampler,
    pub endpoint: Endpoint,
    pub headers: HeaderMap,
    pub timeout: Duration,
}

fn protocol(text: &str) -> Result<String, String> {
    match text {
        "http/protobuf" => Ok(text.to_owned()),
        _ => Err("must be http/protobuf; a collector takes it at port 4318".to_owned()),
    }
}

fn ratio(text: &str) -> Result<f64, String> {
    let ratio = text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
    ratio.ok_or_else(|| "must be a number from 0 to 1".to_owned())
}

impl ServeArgs {
    /// `None`: traces are off.
    ///
    /// # Errors
    /// One sentence for the operator.
    pub fn traces(&self) -> Result<Option<TraceOptions>, String> {
        let args = &self.traces;
        let headers = headers(&args.otel_exporter_otlp_headers)?;
        let whole = given(&args.otel_exporter_otlp_traces_endpoint);
        let base = given(&args.otel_exporter_otlp_endpoint);
        let endpoint = match (whole, base) {
            (Some(url), _) => endpoint("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &url, "")?,
            (None, Some(url)) => endpoint("OTEL_EXPORTER_OTLP_ENDPOINT", &url, "v1/traces")?,
            (None, None) => return Ok(None),
        };
        let ratio = args.otel_traces_sampler_arg;
        let (by_parent, ratio) = match args.otel_traces_sampler {
            SamplerName::AlwaysOn => (false, 1.0),
            SamplerName::AlwaysOff => (false, 0.0),
            SamplerName::TraceIdRatio => (false, ratio),
            SamplerName::ParentBasedAlwaysOn => (true, 1.0),
            SamplerName::ParentBasedAlwaysOff => (true, 0.0),
            SamplerName::ParentBasedTraceIdRatio => (true, ratio),
        };
        let timeout = Duration::from_millis(args.otel_exporter_otlp_timeout.into());
        let sampler = Sampler { by_parent, ratio };
        Ok(Some(TraceOptions { sampler, endpoint, headers, timeout }))
    }
}

fn endpoint(name: &str, text: &str, below: &str) -> Result<Endpoint, String> {
    let wrong = |why: &str| format!("{name} {why}; use http://HOST:4318 or https://HOST:4318");
    let url = Url::parse(text).map_err(|error| wrong(&format!("cannot be read: {error}")))?;
    let tls = match url.scheme() {
        "http" => false,
        "https" => true,
        scheme => return Err(wrong(&format!("has the scheme {scheme:?}"))),
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!(
            "{name} has a user or a password; give them as a header, in OTEL_EXPORTER_OTLP_HEADERS"
        ));
    }
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
        return Err(wrong("has no host"));
    };
    let mut path = url.path().to_owned();
    if !below.is_empty() {
        path = format!("{}/{below}", path.trim_end_matches('/'));
    }
    if let Some(query) = url.query() {
        path = format!("{path}?{query}");
    }
    let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok(Endpoint { tls, host, port, authority, path })
}

fn headers(list: &str) -> Result<HeaderMap, String> {
    // A header may be a secret, so its value is not shown.
    let wrong = |pair: &str| {
        let name = pair.split(['=', ':', ' ']).next().unwrap_or_default();
        format!(
            "OTEL_EXPORTER_OTLP_HEADERS has a header that cannot be sent ({name:?}); use name=value,name=value, with %-escapes in the values"
        )
    };
    let mut headers = HeaderMap::new();
    for pair in list.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let parsed = pair.split_once('=').and_then(|(name, value)| {
            let name = HeaderName::from_bytes(name.trim().as_bytes()).ok()?;
            let value: Vec<u8> = percent_decode_str(value.trim()).collect();
            Some((name, HeaderValue::from_bytes(&value).ok()?))
        });
        let (name, value) = parsed.ok_or_else(|| wrong(pair))?;
        headers.append(name, value);
    }
    Ok(headers)
}
