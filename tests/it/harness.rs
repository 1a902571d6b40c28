//! The servers, a database and a key space for each test, and instances of hotshelf, made by the same
//! composition root as the program's.

mod certificates;
mod http;
mod node;
mod outside;
mod private;
mod program;
mod protocol;
mod raw;
mod servers;
mod stack;
mod stall;
mod suite;
mod verdict;

pub use certificates::{Authority, Identity};
pub use http::{Http, Reply};
pub use node::{Node, admin, cache_status, channel, get};
pub use outside::finish;
pub use private::{Private, PrivateCluster};
pub use program::{Ended, Program};
pub use protocol::{PROTOCOLS, Protocol};
pub use raw::{Raw, framed};
pub use servers::{Servers, attach, attach_with};
pub use stack::{Stack, Topology, connect};
pub use stall::StallMeter;
pub use suite::Suite;
pub use verdict::too_busy;

use std::time::{Duration, Instant};

/// A timeout that only a hang reaches, also on one core that two busy loops share.
pub const HANG: Duration = Duration::from_secs(120);

/// A free port outside the ranges that devstack and the system use.
pub fn free_port() -> u16 {
    let mut ports = std::iter::repeat_with(|| rand::random_range(22_000..32_000));
    ports.find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

/// Polls `condition` every 10 ms; fails after [`HANG`].
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let began = Instant::now();
    while !condition().await {
        assert!(began.elapsed() < HANG, "not after {HANG:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
