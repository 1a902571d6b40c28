//! How the loads of a batch go: a large one holds no more than a small one.

use super::load::Load;
use crate::redis::CHUNK;

/// One chunk after the other, each with a turn of its own for all that it needs: a large batch holds no more leases,
/// commands in flight and places than a small one. Loads that every caller has left end.
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
