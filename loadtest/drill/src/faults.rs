//! All of them.

mod clocks;
mod cluster;
mod ours;
mod postgres;
mod redis;

use crate::Fault;

/// Every fault, in the order of the table.
#[must_use]
pub fn all() -> Vec<Fault> {
    [redis::all(), cluster::all(), postgres::all(), ours::all(), clocks::all()].concat()
}

/// The one of this name.
#[must_use]
pub fn named(name: &str) -> Option<Fault> {
    all().into_iter().find(|fault| fault.name == name)
}
