//! hotshelf: a gRPC product catalogue that reads through memory, Redis and PostgreSQL.
//!
//! PostgreSQL holds the truth. Memory and Redis hold copies, each with the version at which it was read.
//!
//! # The map, in reading order
//!
//! - [`app`] creates the parts, connects them, starts and stops them; [`config`] holds every setting.
//! - [`rpc`] is the gRPC port: a request becomes a domain type once, and an answer becomes a message once.
//! - [`catalog`] makes every decision of a read and of a write: singleflight, load, fallback, change feed, refresh.
//! - [`product`] and [`entry`] are the domain: ids, revisions, prices, and a cached answer with its TTLs.
//! - [`hot_cache`], [`redis`] and [`postgres`] are the tiers. [`recent_changes`] holds the floor of each product that changed
//!   lately: the revision below which no tier may serve it.
//! - [`relay`] applies committed changes from the outbox to Redis, in one instance for the whole fleet.
//! - [`hot_keys`] finds the heavy hitters; [`import`] loads CSV files; [`admin`] serves a live page, `/metrics`, `/livez` and `/readyz`.
//! - [`openapi`] describes JSON over HTTP, from the descriptors of the proto.
//! - [`doctor`] checks the servers that `serve` would use; [`findings`] is what checks find; [`urls`] splits their addresses.
//! - Any module may use [`moment`] (instants in eight bytes), [`caller`], [`metrics`], [`drain`] (the only place that spawns
//!   tasks), [`supervisor`] (restarts them) and [`refusals`]. [`logging`] bounds the log.
//! - [`pause`] and [`controls`] are hooks for tests; without the feature `test-hooks` both are empty.
//!
//! # Invariants
//!
//! - Within one epoch no tier replaces a revision of a product with an older one.
//! - No clock and no order of arrival decides which of two copies is newer: only the version does, and PostgreSQL assigns it.
//! - No error of Redis reaches a caller.
//! - No committed write is reported as failed because a cache did not take it.
//! - No queue, wait or table is without a bound.
//! - No background task ends without a restart, a count and a line of the log.
//! - No process-wide state: two instances can run in one test.
//! - No module but `rpc`, `app` and `proto` uses tonic, none but `redis` uses fred, none but `postgres` uses sqlx, none but
//!   `hot_cache` uses mini-moka, none but `config` and `main` reads the environment (`scripts/check-fences.sh`).

pub mod admin;
pub mod app;
pub mod attach;
pub mod caller;
pub mod catalog;
pub mod config;
pub mod controls;
pub mod doctor;
pub mod drain;
pub mod entry;
pub mod findings;
pub mod hot_cache;
pub mod hot_keys;
pub mod import;
pub mod logging;
pub mod metrics;
pub mod moment;
pub mod openapi;
pub mod pause;
pub mod postgres;
pub mod product;
pub mod proto;
pub mod recent_changes;
pub mod redis;
pub mod refusals;
pub mod relay;
pub mod rpc;
pub mod supervisor;
pub mod traces;
pub mod urls;
