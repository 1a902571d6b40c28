//! The limits of connections and of what is not yet a call.

use std::time::Duration;

use clap::Args;

use super::limits::{DAY, MILLISECOND, duration, number};

/// How long connections live, and what they may hold.
#[derive(Args, Clone, Copy, Debug)]
pub struct EdgeArgs {
    /// How long a connection lives, give or take a tenth; then its client is told to connect anew (GOAWAY), and its calls
    /// finish. 0s: for ever.
    ///
    /// Too high: behind a balancer of connections a new instance gets no calls for so long. Too low: handshakes.
    #[arg(long, env, default_value = "10m", value_name = "DURATION", value_parser = duration(Duration::ZERO, 7 * DAY))]
    pub max_connection_age: Duration,
    /// How long the calls of a connection that was told to end may take; then it is closed, and streams with it.
    ///
    /// Too low: long calls are cut off; max-call-time and more is enough for all but streams. Too high: streams stay where
    /// they are.
    #[arg(long, env, default_value = "30s", value_name = "DURATION", value_parser = duration(MILLISECOND, DAY))]
    pub max_connection_age_grace: Duration,
    /// How long a connection without calls lives, and up to a quarter more; 0s: for ever.
    ///
    /// Too high: idle connections take places of max-connections. Too low: handshakes.
    #[arg(long, env, default_value = "5m", value_name = "DURATION", value_parser = duration(Duration::ZERO, 7 * DAY))]
    pub max_connection_idle: Duration,
    /// Bytes of requests that are not complete, each with its head and 4 KiB; past it more are refused with
    /// RESOURCE_EXHAUSTED. At least 16 times max-request-bytes.
    ///
    /// A connection that holds more than an eighth of what is free gets no more. Too high: clients that do not complete their
    /// requests cost that memory. Too low: many uploads at once are refused.
    #[arg(long, env, default_value_t = 67_108_864, value_name = "BYTES", value_parser = number::<usize>(16_384, 1 << 40))]
    pub max_incomplete_request_bytes: usize,
    /// Streams of all services at once; more are refused with RESOURCE_EXHAUSTED.
    ///
    /// A connection that has more than an eighth of what is free gets no more. Each costs about 32 kB. Too high: memory. Too
    /// low: clients that watch health are refused.
    #[arg(long, env, default_value_t = 4_096, value_name = "N", value_parser = number::<usize>(8, 1_000_000))]
    pub max_streams: usize,
}
