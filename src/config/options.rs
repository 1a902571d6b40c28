//! The options of each part, from the settings.

use std::time::Duration;

use super::{DatabaseArgs, ServeArgs};
use crate::catalog::CatalogOptions;
use crate::entry::TtlPolicy;
use crate::hot_cache::HotCacheOptions;
use crate::postgres::{CheckOptions, PostgresOptions};
use crate::redis::RedisOptions;
use crate::relay::RelayOptions;
use crate::rpc::{EdgeOptions, LimitOptions, RpcOptions, Switches, WebOptions};

/// The host, port and database of a URL, without user and password.
fn without_password(url: &str) -> String {
    let authority = url.split_once("://").map_or(url, |(_, authority)| authority);
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    host.split('?').next().unwrap_or_default().to_owned()
}

/// `None` for 0s, which switches a limit off.
fn unless_zero(duration: Duration) -> Option<Duration> {
    (!duration.is_zero()).then_some(duration)
}

impl ServeArgs {
    #[must_use]
    pub fn postgres(&self) -> PostgresOptions {
        PostgresOptions {
            url: self.database.database_url.clone(),
            catalogue: self.postgres.catalog.clone(),
            connections: self.postgres.database_connections,
            acquire_timeout: self.postgres.database_acquire_timeout,
            statement_timeout: self.postgres.database_statement_timeout,
            loads: self.postgres.database_loads,
            queued_loads: self.postgres.database_queued_loads,
        }
    }

    #[must_use]
    pub fn checks(&self) -> CheckOptions {
        CheckOptions { migrate: self.postgres.migrate, read_only: self.switches.read_only }
    }

    #[must_use]
    pub fn redis(&self) -> RedisOptions {
        RedisOptions {
            url: self.redis.redis_url.clone(),
            tls: self.redis.tls.files(),
            cluster: self.redis.redis_cluster,
            namespace: self.redis.redis_namespace.clone(),
            database: without_password(&self.database.database_url),
            connections: self.redis.redis_connections,
            command_timeout: self.redis.redis_timeout,
            lease_ttl: self.redis.lease_ttl,
            // Half of the retention: the relay needs the other half to apply the changes of the first again.
            coverage: self.caching.change_retention / 2,
        }
    }

    #[must_use]
    pub fn hot_cache(&self) -> HotCacheOptions {
        HotCacheOptions {
            capacity: self.caching.hot_capacity,
            largest: self.caching.hot_max_product_bytes,
            trust: self.caching.max_staleness / 2,
            lease: self.caching.hot_lease,
        }
    }

    fn ttl(&self) -> TtlPolicy {
        TtlPolicy {
            soft: self.caching.soft_ttl,
            stale_if_error: self.caching.stale_if_error,
            tombstone: self.caching.tombstone_ttl,
        }
    }

    #[must_use]
    pub fn relay(&self) -> RelayOptions {
        RelayOptions {
            interval: self.caching.relay_interval,
            retention: self.caching.change_retention,
            ttl: self.ttl(),
        }
    }

    #[must_use]
    pub fn catalog(&self) -> CatalogOptions {
        CatalogOptions {
            ttl: self.ttl(),
            poll_interval: self.caching.change_poll_interval,
            trust: self.caching.max_staleness / 2,
            lease_wait: self.redis.lease_wait,
            refresh_interval: self.caching.refresh_interval,
            refresh_keys: self.caching.refresh_keys.into(),
            shadow_reads: self.caching.shadow_reads.into(),
            max_staleness: self.caching.max_staleness,
        }
    }

    #[must_use]
    pub fn rpc(&self) -> RpcOptions {
        let serving = &self.serving;
        RpcOptions {
            edge: EdgeOptions {
                http1: self.http.http_api,
                max_connections: serving.max_connections,
                max_streams: serving.max_streams_per_connection,
                keepalive_interval: serving.keepalive_interval,
                keepalive_timeout: serving.keepalive_timeout,
                max_call_time: serving.max_call_time,
                max_age: unless_zero(serving.edge.max_connection_age),
                age_grace: serving.edge.max_connection_age_grace,
                max_idle: unless_zero(serving.edge.max_connection_idle),
            },
            limits: LimitOptions {
                calls: serving.max_calls,
                unsent_bytes: serving.max_unsent_bytes,
                incomplete_request_bytes: serving.edge.max_incomplete_request_bytes,
                streams: serving.edge.max_streams,
                watchers: serving.max_watchers,
            },
            max_request_bytes: serving.max_request_bytes,
            switches: Switches {
                read_only: self.switches.read_only,
                admin_service: self.switches.admin_service,
                reflection: self.switches.reflection,
            },
            web: WebOptions {
                enabled: self.http.http_api,
                cors_origins: self.http.origins(),
                shared_max_age: self.http.http_shared_max_age,
            },
        }
    }
}

impl DatabaseArgs {
    /// Options for `migrate` and `import`, which run one statement at a time and without a statement timeout.
    #[must_use]
    pub fn one_connection(&self) -> PostgresOptions {
        PostgresOptions {
            url: self.database_url.clone(),
            catalogue: String::new(),
            connections: 1,
            acquire_timeout: Duration::from_secs(10),
            statement_timeout: Duration::ZERO,
            loads: 1,
            queued_loads: 0,
        }
    }
}
