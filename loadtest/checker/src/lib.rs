//! Drives several instances of hotshelf with readers and writers, records what was written and what was
//! served, and looks for broken promises in that history.
//!
//! Read it in this order:
//!
//! - [`history`]: what is recorded. Every write gives the product content that no other write gives, so that
//!   a read tells exactly which state it saw.
//! - [`verify`](mod@verify): the rules, product by product; [`timeline`] is the order of a product's states.
//! - [`staleness`]: how long after a commit the older state was still served.
//! - [`load`]: open-loop readers and writers, [`readers`] and [`writers`], by a plan that the seed decides; [`truth`] is what Postgres says
//!   was committed; [`converge`] looks into every tier when the writes have stopped.
//! - [`report`]: tables, and the history of a product in which something is wrong.
//!
//! What it must not do: report what was right. So a write counts as committed only from the moment at which
//! its writer was told so, as possible from the moment at which it was sent, and of all the states that an
//! answer may stand for the most favourable one is taken.

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

/// What is checked.
#[derive(Clone, Debug)]
pub struct Target {
    /// A connection to each instance.
    pub instances: Vec<Channel>,
    /// Their database, for plain SQL and for the record of what was committed.
    pub sql: sqlx::PgPool,
}

/// Why a run could not be finished: one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Postgres did not do what the checker itself needs.
    #[error("PostgreSQL: {0}")]
    Sql(#[from] sqlx::Error),
    /// A private server could not be started.
    #[error("{0}")]
    Server(#[from] devstack::Error),
    /// A file or a process.
    #[error("{0}: {1}")]
    Io(String, std::io::Error),
    /// An instance could not be reached or started.
    #[error("{0}")]
    Instance(String),
    /// A defect of the checker.
    #[error("the load ended early: {0}")]
    Load(#[from] tokio::task::JoinError),
}
