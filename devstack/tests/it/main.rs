//! Devstack's guarantees, each tested on real servers.

#![allow(
    clippy::unwrap_used,
    reason = "in a test, also outside of the functions that clippy recognises as one"
)]

use std::time::{Duration, Instant};

mod binary;
mod chaos;
mod cluster;
mod pg;
mod postgres;
mod redis;
mod sample;

/// A server that does not respond for this long counts as silent.
const SILENCE: Duration = Duration::from_millis(300);

/// Waits for a condition, and fails with its claim after 20 s.
fn eventually(claim: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(20), "never happened: {claim}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether no server listens on this port.
fn refuses(port: u16) -> bool {
    std::net::TcpStream::connect(("127.0.0.1", port)).is_err()
}

/// When the tests run as root, the user that owns PostgreSQL's data has access to the directory.
fn readable() -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o755)
}
