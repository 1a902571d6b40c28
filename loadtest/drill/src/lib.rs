//! Drills: three real instances under steady load, a fault that really happens, and what callers felt of it.
//!
//! Read it in this order:
//!
//! - [`fault`]: what a drill is: the fault, the world that it needs, and what callers may feel of it;
//!   [`faults`] has all of them, each a straight line: break, prove, hold, mend.
//! - [`plan`]: how long each part of a drill takes, and under which load.
//! - [`world`]: the private servers and the [`instance`]s.
//! - [`stage`]: what a fault has at hand.
//! - [`products`]: products beside the load, and what the instances and Redis hold of them.
//! - [`database`]: how busy Postgres was; [`trust`]: whether the instances trusted their memory.
//! - [`run`](mod@run): one drill from beginning to end; [`figures`] is what it came to, [`judge`] which promises that
//!   breaks, [`table`] the same for people.
//!
//! The load comes from the checker of coherence; its rules are held against everything that was read. Requests
//! are sent when they are due, whatever became of those before them, and every latency counts from that moment,
//! so that a stall is not hidden by the silence that it causes.

pub mod database;
pub mod fault;
pub mod faults;
pub mod figures;
pub mod instance;
pub mod judge;
pub mod plan;
pub mod products;
pub mod run;
pub mod stage;
pub mod table;
pub mod trust;
pub mod world;

pub use fault::{Demands, Fault};
pub use plan::Plan;
pub use run::{Drilled, run};

/// Why a drill could not be finished: one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The load could not be driven or checked.
    #[error("{0}")]
    Checker(#[from] checker::Error),
    /// A private server did not do what was asked of it.
    #[error("{0}")]
    Server(#[from] devstack::Error),
    /// Postgres did not do what the drill itself needs.
    #[error("PostgreSQL: {0}")]
    Sql(#[from] sqlx::Error),
    /// A file or a process.
    #[error("{0}: {1}")]
    Io(String, std::io::Error),
    /// An instance did not start.
    #[error("{0}")]
    Instance(String),
    /// The fault did not happen, so that its drill would say nothing.
    #[error("not proven: {0}")]
    NotProven(String),
}
