//! Free ports on 127.0.0.1.
//!
//! A port is only chosen here, and bound by the server a moment later: if another process takes it in
//! between, the server's start is tried again on another port.

use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;

use crate::Error;

/// Below the ports that Linux and macOS give to outgoing connections, so that the port of a killed
/// server is still free when it starts again; and low enough that a cluster bus, 10000 ports higher,
/// is below them too.
const PORTS: Range<u16> = 10_000..17_000;
/// A Redis Cluster node's bus port is this much higher than its client port.
const BUS_OFFSET: u16 = 10_000;
const ATTEMPTS: usize = 1_000;

/// Bound on the ports on which the start of one server is tried.
pub(crate) const START_ATTEMPTS: usize = 5;

pub(crate) fn free() -> Result<u16, Error> {
    choose(is_free)
}

/// A free port whose cluster bus port is free too.
pub(crate) fn free_with_bus() -> Result<u16, Error> {
    choose(|port| is_free(port) && is_free(port + BUS_OFFSET))
}

/// Random rather than in order: test binaries that run at the same time then rarely pick the same
/// port.
fn choose(fits: impl Fn(u16) -> bool) -> Result<u16, Error> {
    (0..ATTEMPTS)
        .map(|_| rand::random_range(PORTS))
        .find(|port| fits(*port))
        .ok_or(Error::NoFreePort)
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}
