//! What memory holds of each product: a table of chains that is read without a lock, and without a count that cores share.
//!
//! Its size is known beforehand, so it never grows. A chain is a list of immutable nodes: whoever changes one puts another
//! in its place. A reader who still stands on the old one goes on from there, and sees what he would have seen a moment
//! ago.

use std::fmt::{self, Debug, Formatter};
use std::mem;

use ahash::RandomState;
use arc_swap::ArcSwapAny;
use triomphe::Arc;

use super::HotEntry;
use crate::product::ProductId;

/// Enough that two cores rarely meet in one; each costs 48 bytes, and has as many chains as the next.
pub(super) const STRIPES: usize = 256;

/// The chains. Each is changed under the lock of its stripe.
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
    /// A table with about one chain for each of so many products.
    pub(super) fn new(products: usize) -> Self {
        let chains = products.next_multiple_of(STRIPES).max(STRIPES);
        let chains = (0..chains).map(|_| Link::new(None)).collect();
        Self { chains, hasher: RandomState::new() }
    }

    /// The number of the chain of `id`: whoever does not know the hasher's keys cannot make one long.
    fn number(&self, id: ProductId) -> usize {
        // Lemire, "Fast Random Integer Generation in an Interval", ACM TOMACS 2019: no division.
        let hash = u128::from(self.hasher.hash_one(id));
        ((hash * self.chains.len() as u128) >> 64) as usize
    }

    fn chain(&self, id: ProductId) -> &Link {
        &self.chains[self.number(id)]
    }

    /// Which of the stripes the chain of `id` is in.
    pub(super) fn stripe(&self, id: ProductId) -> usize {
        self.number(id) / (self.chains.len() / STRIPES)
    }

    /// Reads what is held of `id`.
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

    /// Tells the id of everything that is held: of all that is there before and after, and perhaps of what comes meanwhile.
    pub(super) fn keys(&self, tell: &mut dyn FnMut(ProductId)) {
        for chain in &self.chains {
            let mut at = chain.load_full();
            while let Some(node) = at {
                at = node.next.load_full();
                tell(node.id);
            }
        }
    }

    /// Holds something of `id`, of which nothing is held.
    pub(super) fn insert(&self, id: ProductId, held: HotEntry) {
        let chain = self.chain(id);
        chain.store(Some(ChainNode::before(id, held, chain.load_full())));
    }

    /// Holds something else of `id`, if something is held. Returns what was.
    pub(super) fn replace(&self, id: ProductId, held: HotEntry) -> Option<HotEntry> {
        self.exchange(id, |next| Some(ChainNode::before(id, held, next)))
    }

    /// Holds nothing of `id`. Returns what was held.
    pub(super) fn remove(&self, id: ProductId) -> Option<HotEntry> {
        self.exchange(id, |next| next)
    }

    /// Puts what `made` makes of the rest of the chain where the node of `id` is and its rest was.
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
            // To drop a link waits for readers on any thread, one after the other; there are many that hold nothing.
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

    /// Some in each chain, if there are four for each.
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
    fn it_does_as_a_map_does() {
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
    fn what_stays_is_found_whatever_becomes_of_its_neighbours() {
        let (table, done) = (Table::new(1), AtomicBool::new(false));
        // Those with odd numbers come and go and change; those with even ones only change.
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
