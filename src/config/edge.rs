//! The limits of connections and of what is not yet a call.

use std::time::Duration;

use clap::Args;

use super::limits::{DAY, MILLISECOND, duration};

/// How long connections live.
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
}
