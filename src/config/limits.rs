//! The bounds of settings: of each when it is parsed, and of those that depend on each other in [`ServeArgs::check`].

use std::fmt::Display;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use humantime::{format_duration, parse_duration};

use super::ServeArgs;
use crate::postgres::PostgresOptions;

pub(super) const MILLISECOND: Duration = Duration::from_millis(1);
pub(super) const MINUTE: Duration = Duration::from_secs(60);
pub(super) const HOUR: Duration = Duration::from_secs(3_600);
pub(super) const DAY: Duration = Duration::from_secs(24 * 3_600);
/// An entry stores each TTL as milliseconds in 32 bits, at most 49 days. The hard TTL is the jittered sum of two settings.
pub(super) const LONGEST_TTL: Duration = Duration::from_secs(20 * 24 * 3_600);

/// Parses a duration from `least` to `most`. A setting for which 0s has a meaning begins at zero.
pub(super) fn duration(
    least: Duration,
    most: Duration,
) -> impl Fn(&str) -> Result<Duration, String> + Clone + Send + Sync + 'static {
    move |text| {
        let range = format!("{} to {}", format_duration(least), format_duration(most));
        match parse_duration(text) {
            Ok(duration) if (least..=most).contains(&duration) => Ok(duration),
            Ok(_) => Err(format!("must be {range}")),
            Err(error) => Err(format!("{error}; write it like 250ms, 5s or 1m 30s, {range}")),
        }
    }
}

/// Parses a number from `least` to `most`.
pub(super) fn number<N>(
    least: N,
    most: N,
) -> impl Fn(&str) -> Result<N, String> + Clone + Send + Sync + 'static
where
    N: FromStr + PartialOrd + Display + Copy + Send + Sync + 'static,
{
    move |text| match text.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("must be a number from {least} to {most}")),
    }
}

/// Parses the address of a port. A name is not looked up.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "must be IP:PORT, such as 0.0.0.0:50051 or [::1]:9464".to_owned())
}

pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "y" | "on" | "t" | "1" => Ok(true),
        "false" | "no" | "n" | "off" | "f" | "0" => Ok(false),
        _ => Err("must be true or false".to_owned()),
    }
}

/// Parses the first part of every key. A brace would change the hash tag, so an entry and its lease would be in different slots.
pub(super) fn namespace(text: &str) -> Result<String, String> {
    const LONGEST: usize = 100;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    if text.is_empty() || text.len() > LONGEST || !text.bytes().all(plain) {
        return Err(format!("use up to {LONGEST} letters, digits, '-', '_', '.' and ':'"));
    }
    Ok(text.to_owned())
}

impl ServeArgs {
    /// Refuses settings that cannot work together.
    ///
    /// # Errors
    /// One sentence for the operator: the settings, the conflict, and the values that work.
    pub fn check(&self) -> Result<(), String> {
        let (postgres, redis, caching) = (&self.postgres, &self.redis, &self.caching);
        let connections = postgres.database_connections;
        let most = connections.saturating_sub(PostgresOptions::OTHER_SHARES);
        if postgres.database_loads > most as usize {
            return Err(format!(
                "DATABASE_LOADS is {}, and leaves less than one connection each for writes, latest reads and ExplainProduct; use at most {most}, three less than DATABASE_CONNECTIONS",
                postgres.database_loads
            ));
        }
        at_most(
            ("LEASE_TTL", redis.lease_ttl),
            ("LEASE_WAIT", redis.lease_wait),
            "no load would wait long enough to take over the lease of a crashed instance",
        )?;
        at_most(
            ("HOT_LEASE", caching.hot_lease),
            ("MAX_STALENESS", caching.max_staleness),
            "memory would be trusted for longer than an answer may be old",
        )?;
        at_most(
            ("RELAY_INTERVAL", caching.relay_interval),
            ("MAX_STALENESS", caching.max_staleness),
            "changes would be seen later than an answer may be old",
        )?;
        let (largest, incomplete) =
            (self.serving.max_request_bytes, self.serving.edge.max_incomplete_request_bytes);
        if incomplete < 16 * largest {
            return Err(format!(
                "MAX_INCOMPLETE_REQUEST_BYTES is {incomplete}, so large requests that arrive in parts would be refused; use at least {}, 16 times MAX_REQUEST_BYTES",
                16 * largest
            ));
        }
        let (grpc, admin) = (self.serving.grpc_addr, self.serving.admin_addr);
        if collide(grpc, admin) {
            return Err(format!(
                "GRPC_ADDR {grpc} and ADMIN_ADDR {admin} are the same port; use two ports"
            ));
        }
        self.traces().map(drop)?;
        self.identity().map(drop)
    }
}

fn at_most(
    (lower, low): (&str, Duration),
    (upper, high): (&str, Duration),
    otherwise: &str,
) -> Result<(), String> {
    if low <= high {
        return Ok(());
    }
    let (low, high) = (format_duration(low), format_duration(high));
    Err(format!("{lower} is {low}, and {otherwise}; use at most {upper}, which is {high}"))
}

/// Whether only one of the addresses can be bound. Port 0 is any free port.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let any = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() != 0 && one.port() == other.port() && (any || one.ip() == other.ip())
}
