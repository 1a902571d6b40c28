//! A hash table with chains, read without a lock and without writing to a cache line that cores share.
//!
//! Its size is fixed. A chain is a list of immutable nodes; a change replaces a node. A reader that has already loaded the
//! old node goes on from it, and reads what it would have read a moment earlier.

use std::fmt::{self, Debug, Formatter};
use std::mem;

use ahash::RandomState;
use arc_swap::ArcSwapAny;
use triomphe::Arc;

use super::HotEntry;
use crate::product::ProductId;

/// Enough that two cores rarely contend for one. Each takes 48 bytes; all have the same number of chains.
pub(super) const STRIPES: usize = 256;

/// A chain is changed under the lock of its stripe.
pub(super) struct Table {
    chains: Box<[Link]>,
    hasher: RandomState,
}

type Link = ArcSwapAny<Option<Arc<ChainNode>>>;

struct ChainNode {
    id: ProductId,
    held: HotEntry,
    next: Link,
}

impl Table {
    /// With about one chain for each of `products`.
    pub(super) fn new(products: usize) -> Self {
        let chains = products.next_multiple_of(STRIPES).max(STRIPES);
        let chains = (0..chains).map(|_| Link::new(None)).collect();
        Self { chains, hasher: RandomState::new() }
    }

    /// The chain of `id`. The hasher's keys are random, so a caller cannot choose ids of one chain.
    fn number(&self, id: ProductId) -> usize {
        // Lemire, "Fast Random Integer Generation in an Interval", ACM TOMACS 2019: no division.
        let hash = u128::from(self.hasher.hash_one(id));
        ((hash * self.chains.len() as u128) >> 64) as usize
    }

    fn chain(&self, id: ProductId) -> &Link {
        &self.chains[self.number(id)]
    }

    pub(super) fn stripe(&self, id: ProductId) -> usize {
        self.number(id) / (self.chains.len() / STRIPES)
    }

    pub(super) fn read<T>(&self, id: ProductId, read: impl FnOnce(&HotEntry) -> T) -> Option<T> {
        let mut at = self.chain(id).load();
        while let Some(node) = &*at {
            if node.id == id {
                return Some(read(&node.held));
            }
            at = node.next.load();
        }
        None
    }

    /// Calls `each` with every key that is there before and after, and perhaps with keys inserted meanwhile.
    pub(super) fn keys(&self, each: &mut dyn FnMut(ProductId)) {
        for chain in &self.chains {
            let mut at = chain.load_full();
            while let Some(node) = at {
                at = node.next.load_full();
                each(node.id);
            }
        }
    }

    /// `id` has no node yet.
    pub(super) fn insert(&self, id: ProductId, held: HotEntry) {
        let chain = self.chain(id);
        chain.store(Some(ChainNode::before(id, held, chain.load_full())));
    }

    /// Returns the old entry; does nothing if there is none.
    pub(super) fn replace(&self, id: ProductId, held: HotEntry) -> Option<HotEntry> {
        self.exchange(id, |next| Some(ChainNode::before(id, held, next)))
    }

    pub(super) fn remove(&self, id: ProductId) -> Option<HotEntry> {
        self.exchange(id, |next| next)
    }

    /// Replaces the node of `id` and the rest of its chain by `made(rest)`.
    fn exchange(
        &self,
        id: ProductId,
        made: impl FnOnce(Option<Arc<ChainNode>>) -> Option<Arc<ChainNode>>,
    ) -> Option<HotEntry> {
        let mut before: Option<Arc<ChainNode>> = None;
        loop {
            let link = before.as_ref().map_or_else(|| self.chain(id), |node| &node.next);
            let node = link.load_full()?;
            if node.id == id {
                link.store(made(node.next.load_full()));
                return Some(node.held.clone());
            }
            before = Some(node);
        }
    }
}

impl ChainNode {
    fn before(id: ProductId, held: HotEntry, next: Option<Arc<Self>>) -> Arc<Self> {
        Arc::new(Self { id, held, next: Link::new(next) })
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        for chain in mem::take(&mut self.chains) {
            // Dropping a link waits for readers on any thread, which adds up over many empty chains.
            if chain.load().is_none() {
                mem::forget(chain);
            }
        }
    }
}

impl Debug for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("chains", &self.chains.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::Duration;

    use rand::RngExt;

    use super::*;
    use crate::entry::{Entry, Ttl};
    use crate::hot_cache::Floor;
    use crate::moment::Moment;
    use crate::product::Version;

    /// Four for each chain.
    const PRODUCTS: i64 = 4 * STRIPES as i64;

    fn id(number: i64) -> ProductId {
        ProductId::new(number + 1).expect("positive")
    }

    fn held(version: i64) -> HotEntry {
        let ttl = Ttl { soft: Duration::ZERO, hard: Duration::ZERO };
        let entry = Entry::tombstone(Version(version), Moment::now(), ttl);
        HotEntry { floor: Floor::at(entry.revision()), checked_at: entry.known_at(), entry }
    }

    fn version(held: &HotEntry) -> i64 {
        held.entry.revision().version.0
    }

    #[test]
    fn it_behaves_like_a_map() {
        let (table, mut map) = (Table::new(1), HashMap::new());
        let mut random = rand::rng();
        for n in 0..200_000 {
            let id = id(random.random_range(0..PRODUCTS));
            assert_eq!(table.read(id, version), map.get(&id).copied());
            let was = match random.random_range(0..4) {
                0 => table.remove(id).map(|held| (version(&held), map.remove(&id))),
                _ if !map.contains_key(&id) => {
                    table.insert(id, held(n));
                    map.insert(id, n);
                    None
                }
                _ => table.replace(id, held(n)).map(|held| (version(&held), map.insert(id, n))),
            };
            assert!(was.is_none_or(|(ours, theirs)| theirs == Some(ours)), "{was:?}");
        }
    }

    #[test]
    fn a_key_is_found_while_other_keys_of_its_chain_come_and_go() {
        let (table, done) = (Table::new(1), AtomicBool::new(false));
        // Odd keys are inserted, replaced and removed; even keys are only replaced.
        (0..PRODUCTS).for_each(|number| table.insert(id(number), held(number)));
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut newest = vec![0; PRODUCTS as usize];
                    while !done.load(Ordering::Relaxed) {
                        for number in (0..PRODUCTS).step_by(2) {
                            let found = table.read(id(number), version).expect("it was never gone");
                            assert_eq!(found % PRODUCTS, number, "another product's");
                            assert!(
                                found >= newest[number as usize],
                                "older than what was read before"
                            );
                            newest[number as usize] = found;
                        }
                    }
                });
            }
            for round in 1..200 {
                for number in 0..PRODUCTS {
                    let new = held(round * PRODUCTS + number);
                    match number % 2 {
                        0 => drop(table.replace(id(number), new)),
                        _ if round % 2 == 0 => table.insert(id(number), new),
                        _ => drop(table.remove(id(number))),
                    }
                }
            }
            done.store(true, Ordering::Relaxed);
        });
    }
}
