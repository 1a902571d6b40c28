//! hotshelf: a gRPC product catalogue that is read through memory, Redis and PostgreSQL.
//!
//! # The map, in reading order
//!
//! - [`app`] makes the parts and connects them; [`config`] has every knob.
//! - [`rpc`] is the edge: protobuf becomes a domain type once and back once.
//! - [`catalog`] reads and writes products, and makes every decision of both paths.
//! - [`hot_cache`], [`redis`] and [`postgres`] are the tiers; [`entry`] is what the first two hold.
//! - [`relay`] carries every committed change from the outbox to Redis and to all instances.
//! - [`hot_keys`] knows what is read most; [`import`] reads CSV files; [`logging`] bounds the log.
//! - [`product`], [`moment`], [`caller`], [`metrics`], [`drain`], [`supervisor`], [`pause`], [`controls`] and [`refusals`] may
//!   be used anywhere.
//!
//! # What is never the case
//!
//! - No tier goes from a newer revision of a product back to an older one while it holds that product.
//! - No cache decides what is right: versions do, and those come from Postgres.
//! - No error of Redis reaches a caller.
//! - No queue, wait or table is without a bound.
//! - No module but `rpc`, `app` and `proto` knows tonic; none but `redis` knows fred, none but `postgres`
//!   knows sqlx, none but `hot_cache` knows mini-moka, none but `config` and `main` reads the environment.
//! - There is no process-wide state: two instances can live in one test.

pub mod admin;
pub mod app;
pub mod caller;
pub mod catalog;
pub mod config;
pub mod controls;
pub mod drain;
pub mod entry;
pub mod hot_cache;
pub mod hot_keys;
pub mod import;
pub mod logging;
pub mod metrics;
pub mod moment;
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
