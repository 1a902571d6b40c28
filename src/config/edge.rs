//! The limits of connections, of incomplete requests and of streams.

use std::time::Duration;

use clap::Args;

use super::limits::{DAY, MILLISECOND, duration, number};

#[derive(Args, Clone, Copy, Debug)]
pub struct EdgeArgs {
    /// The age, give or take a tenth, at which the server ends a connection: it sends GOAWAY, and the calls in flight finish. 0s:
    /// never.
    ///
    /// Too high: behind a balancer of connections a new instance gets no calls for that long. Too low: more handshakes.
    #[arg(long, env, default_value = "10m", value_name = "DURATION", value_parser = duration(Duration::ZERO, 7 * DAY))]
    pub max_connection_age: Duration,
    /// How long calls may take after GOAWAY; then the connection is closed, and its streams with it.
    ///
    /// Too high: streams keep old connections open. Too low: long calls are cut off; any value above max-call-time is enough for
    /// all calls but streams.
    #[arg(long, env, default_value = "30s", value_name = "DURATION", value_parser = duration(MILLISECOND, DAY))]
    pub max_connection_age_grace: Duration,
    /// The time without calls, plus up to a quarter, after which the server ends a connection; 0s: never.
    ///
    /// Too high: idle connections count against max-connections. Too low: more handshakes.
    #[arg(long, env, default_value = "5m", value_name = "DURATION", value_parser = duration(Duration::ZERO, 7 * DAY))]
    pub max_connection_idle: Duration,
    /// Bytes of incomplete requests, each counted with its head and 4 KiB; a request above the limit is refused with
    /// RESOURCE_EXHAUSTED. At least 16 times max-request-bytes.
    ///
    /// A caller gets no more when it holds more than an eighth of what is free. Too high: memory for clients that do not
    /// complete their requests. Too low: many large requests at once are refused.
    #[arg(long, env, default_value_t = 67_108_864, value_name = "BYTES", value_parser = number::<usize>(16_384, 1 << 40))]
    pub max_incomplete_request_bytes: usize,
    /// Streams of all services at once, about 32 kB each; a stream above the limit is refused with RESOURCE_EXHAUSTED.
    ///
    /// A caller gets no more when it has more than an eighth of those that are free. Too high: memory. Too low: clients that
    /// watch health are refused.
    #[arg(long, env, default_value_t = 4_096, value_name = "N", value_parser = number::<usize>(8, 1_000_000))]
    pub max_streams: usize,
}
