//! Batches in chunks, so that a large batch holds no more resources than a small one.

use super::load::Load;
use crate::redis::CHUNK;

/// Runs `each` on one chunk after another. A large batch holds no more leases, commands in flight and connections than a
/// small one. Loads without a waiter end before their chunk.
pub(super) async fn in_chunks<F: Future<Output = ()>>(
    loads: Vec<Load>,
    each: impl Fn(Vec<Load>) -> F,
) {
    let mut loads = loads.into_iter();
    loop {
        let chunk: Vec<Load> = loads.by_ref().take(CHUNK).collect();
        if chunk.is_empty() {
            return;
        }
        each(chunk.into_iter().filter_map(Load::unless_abandoned).collect()).await;
    }
}
