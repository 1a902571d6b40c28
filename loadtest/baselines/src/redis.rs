//! A Redis client with the options of hotshelf's.

use std::time::Duration;

use fred::clients::Pool;
use fred::interfaces::ClientLike;
use fred::types::Builder;
use fred::types::config::{
    Config, ConnectionConfig, PerformanceConfig, ReconnectPolicy, TcpConfig,
};

use crate::Failure;

/// hotshelf's default.
const CONNECTIONS: usize = 4;

/// Returns when the pool is connected.
pub async fn connect(url: &str) -> Result<Pool, Failure> {
    let pool = Builder::from_config(Config::from_url(url)?)
        .set_policy(ReconnectPolicy::new_exponential(0, 50, 1_000, 2))
        .set_performance_config(PerformanceConfig {
            default_command_timeout: Duration::from_secs(1),
            ..PerformanceConfig::default()
        })
        .set_connection_config(ConnectionConfig {
            tcp: TcpConfig { nodelay: Some(true), ..TcpConfig::default() },
            ..ConnectionConfig::default()
        })
        .build_pool(CONNECTIONS)?;
    drop(pool.connect_pool());
    pool.wait_for_connect().await?;
    Ok(pool)
}
