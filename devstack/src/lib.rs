//! Private, real servers for tests, `make run` and drills, and a TCP proxy that breaks connections
//! on demand.
//!
//! Read it in this order:
//!
//! - [`Postgres`]: a private PostgreSQL, from a cached template, in about a second.
//! - [`Redis`] and [`RedisCluster`]: one private Redis, or three masters with a replica each.
//! - [`ChaosProxy`]: cuts, black holes and delays between a client and a server.
//! - [`sample`]: plausible products as CSV, in any number.
//! - `process` and `watchdog`: how a server is started, frozen and killed, and does not outlive its
//!   parent.
//!
//! Guarantees about the servers:
//!
//! - They listen on 127.0.0.1 only, on ports that were free; devstack never stops or reaches a
//!   process by name or by a well-known port.
//! - No server outlives the process that started it, however that process ends: a drop, a panic,
//!   Ctrl-C, `exit` or SIGKILL.
//! - A directory that the caller did not name is removed with its server.
//! - The API blocks and needs no async runtime. Asynchronous code can call it where blocking a thread
//!   for a second does no harm.

mod chaos;
mod error;
mod home;
mod ports;
mod postgres;
mod process;
mod redis;
pub mod sample;
mod watchdog;

pub use chaos::{ChaosProxy, Counts, Direction, LaneCounts};
pub use error::Error;
pub use postgres::{Postgres, PostgresOptions};
pub use redis::{ClusterOptions, Redis, RedisCluster, RedisOptions, Role};
