//! Devstack's promises, each tried on real servers.

#![allow(
    clippy::unwrap_used,
    reason = "in a test, also outside of the functions that clippy knows to be one"
)]

use std::time::{Duration, Instant};

mod binary;
mod chaos;
mod cluster;
mod pg;
mod postgres;
mod redis;
mod sample;

/// Long enough for a server to show that it does not answer.
const SILENCE: Duration = Duration::from_millis(300);

/// Waits for a condition, and fails with the claim that did not come true.
fn eventually(claim: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(20), "never happened: {claim}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether nobody listens on this port any more.
fn refuses(port: u16) -> bool {
    std::net::TcpStream::connect(("127.0.0.1", port)).is_err()
}

/// A directory that the user who owns PostgreSQL's data can reach when the tests run as root.
fn readable() -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o755)
}
