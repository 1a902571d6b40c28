//! All of them.

mod bulk;
mod clocks;
mod cluster;
mod isolation;
mod ours;
mod postgres;
mod redis;

use std::time::Duration;

use crate::{Demands, Fault};

/// Of Redis, in whatever state: nothing fails, and no read takes longer than its deadline (100 ms), and for
/// the read's own load on a machine that is busy.
const UNFELT: Demands =
    Demands { slowest: Some(Duration::from_millis(500)), ..Demands::NOTHING_FAILS };

/// Every fault, in the order of the table.
#[must_use]
pub fn all() -> Vec<Fault> {
    [redis::all(), cluster::all(), postgres::all(), ours::all(), clocks::all(), isolation::all()]
        .concat()
}

/// The one of this name.
#[must_use]
pub fn named(name: &str) -> Option<Fault> {
    all().into_iter().find(|fault| fault.name == name)
}
