//! Drills: real instances under steady load, a real fault, and how callers are affected.
//!
//! Read it in this order:
//!
//! - [`fault`]: a fault, the servers that it needs, and what must hold while it lasts; [`faults`] has all of them, each a
//!   straight line: break, prove, hold, mend.
//! - [`plan`]: how long each part of a drill takes, and under which load.
//! - [`servers`]: the private servers and the [`instance`]s.
//! - [`scenario`]: the servers under load, as the steps of a fault use them.
//! - [`products`]: products outside the load, and their copies in the instances and in Redis.
//! - [`database`]: the load on Postgres; [`trust`]: whether the instances trusted their memory.
//! - [`run`](mod@run): one drill from beginning to end; [`figures`]: its measurements; [`judge`]: the promises that they
//!   show to be broken; [`table`]: the figures as Markdown.
//!
//! The load and the rules for everything that is read are those of the coherence checker. The load is an open loop: each
//! request is sent when it is due, whether or not earlier ones have been answered, and its latency counts from that
//! moment. So a stall shows in every request that was due during it.

pub mod database;
pub mod fault;
pub mod faults;
pub mod figures;
pub mod instance;
pub mod judge;
pub mod plan;
pub mod products;
pub mod run;
pub mod scenario;
pub mod servers;
pub mod table;
pub mod trust;

pub use fault::{Demands, Fault};
pub use plan::Plan;
pub use run::{DrillResult, run};

/// Why a drill could not be finished: one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The load could not be sent or checked.
    #[error("{0}")]
    Checker(#[from] checker::Error),
    /// A command to a private server failed.
    #[error("{0}")]
    Server(#[from] devstack::Error),
    /// A statement of the drill itself failed.
    #[error("PostgreSQL: {0}")]
    Sql(#[from] sqlx::Error),
    /// A file or a process, and why it failed.
    #[error("{0}: {1}")]
    Io(String, std::io::Error),
    /// An instance did not start or answer, or the drill was interrupted or called with wrong arguments.
    #[error("{0}")]
    Instance(String),
    /// The fault did not take place, so the drill proves nothing.
    #[error("not proven: {0}")]
    NotProven(String),
}
