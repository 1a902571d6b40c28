//! Reads and writes products through several instances of hotshelf, records what was written and what was served, and
//! checks that history for broken promises.
//!
//! Read it in this order:
//!
//! - [`history`]: the record of a run. Every write has content that no other write has, so that a read shows exactly one
//!   state.
//! - [`verify`](mod@verify): the rules, product by product; [`timeline`]: the states of a product in order.
//! - [`staleness`]: how long after a commit the older state was still served.
//! - [`load`]: open-loop readers and writers ([`readers`], [`writers`]), planned by a seed; [`truth`]: what Postgres has
//!   committed; [`converge`]: the state of every tier after the last write.
//! - [`report`]: tables, and the history of a product with a violation.
//!
//! The checker must report no false violation. So a write counts as committed only from the moment at which it was
//! confirmed, as possible from the moment at which it was sent, and of all states that a response may stand for the most
//! favourable one counts.

mod calibrate;
pub mod converge;
pub mod history;
pub mod load;
mod plan;
pub mod readers;
pub mod report;
pub mod staleness;
pub mod timeline;
pub mod truth;
pub mod verify;
pub mod writers;

use tonic::transport::Channel;

pub use history::History;
pub use load::{Load, Outcome, run, run_beside};
pub use verify::{Verdict, verify};

#[derive(Clone, Debug)]
pub struct Target {
    /// A connection to each instance.
    pub instances: Vec<Channel>,
    /// Their database, for plain SQL and for the record of commits.
    pub sql: sqlx::PgPool,
}

/// Why a run could not be finished: one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A statement of the checker itself failed.
    #[error("PostgreSQL: {0}")]
    Sql(#[from] sqlx::Error),
    /// A private server could not be started.
    #[error("{0}")]
    Server(#[from] devstack::Error),
    /// A file or a process, and why it failed.
    #[error("{0}: {1}")]
    Io(String, std::io::Error),
    /// An instance could not be reached or started.
    #[error("{0}")]
    Instance(String),
    /// A task of the load panicked: a defect of the checker.
    #[error("the load ended early: {0}")]
    Load(#[from] tokio::task::JoinError),
}
