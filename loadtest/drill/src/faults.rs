//! Every fault, each a straight line: break, prove, hold, mend.

mod bulk;
mod clocks;
mod cluster;
mod instances;
mod isolation;
mod postgres;
mod redis;

use std::time::Duration;

use crate::{Demands, Fault};

/// For every fault of Redis: nothing fails, and no read takes longer than the deadline of Redis (100 ms) and the
/// read's own load from Postgres, on a busy machine.
const UNFELT: Demands =
    Demands { slowest: Some(Duration::from_millis(500)), ..Demands::NOTHING_FAILS };

/// Every fault, in the order of the table.
#[must_use]
pub fn all() -> Vec<Fault> {
    [
        redis::all(),
        cluster::all(),
        postgres::all(),
        instances::all(),
        clocks::all(),
        isolation::all(),
    ]
    .concat()
}

#[must_use]
pub fn named(name: &str) -> Option<Fault> {
    all().into_iter().find(|fault| fault.name == name)
}
