//! What every test stands on: the servers, a database and a key space for each test, and instances of
//! hotshelf that are made by the same composition root as the program's.

mod node;
mod outside;
mod private;
mod program;
mod servers;
mod stack;
mod suite;

pub use node::{Node, cache_status, get};
pub use outside::finish;
pub use private::Private;
pub use program::Program;
pub use servers::Servers;
pub use stack::{Stack, Topology};
pub use suite::Suite;

use std::time::{Duration, Instant};

/// Longer than anything takes that does not hang.
pub const HANG: Duration = Duration::from_secs(20);

/// Waits until `condition` holds.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let began = Instant::now();
    while !condition().await {
        assert!(began.elapsed() < HANG, "not after {HANG:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
