//! The newest revisions of changed products, of a few or of a million.

use std::cmp::Reverse;
use std::collections::HashMap;

use ahash::RandomState;

use crate::product::{ProductId, Revision};

/// The newest revision of each changed product.
#[derive(Clone, Debug, Default)]
pub struct Floors {
    /// Changes of small transactions, about 40 bytes per product.
    single: HashMap<ProductId, Revision, RandomState>,
    /// Changes of bulk jobs, sorted by id, one per product, 24 bytes each. A hash map of them would touch five times as much new
    /// memory while it grows, and clearing new memory was more than half of the time that an instance took to apply a bulk job.
    bulk: Vec<(ProductId, Revision)>,
}

impl Floors {
    /// `packs` are the changes of bulk jobs, in any order.
    #[must_use]
    pub fn new(
        single: HashMap<ProductId, Revision, RandomState>,
        packs: &[Vec<(ProductId, Revision)>],
    ) -> Self {
        let mut bulk = packs.concat();
        newest_of_each(&mut bulk);
        Self { single, bulk }
    }

    /// [`Revision::NONE`] if `id` is not among them.
    #[must_use]
    pub fn get(&self, id: ProductId) -> Revision {
        let single = self.single.get(&id).copied().unwrap_or(Revision::NONE);
        match self.bulk.binary_search_by_key(&id, |(of, _)| *of) {
            Ok(place) => single.max(self.bulk[place].1),
            Err(_) => single,
        }
    }

    /// In revisions: a product may have one of each kind.
    #[must_use]
    pub fn len(&self) -> usize {
        self.single.len() + self.bulk.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn iter(&self) -> impl Iterator<Item = (ProductId, Revision)> {
        let single = self.single.iter().map(|(id, revision)| (*id, *revision));
        single.chain(self.bulk.iter().copied())
    }

    pub(super) fn merge(&mut self, mut other: Self) {
        if other.single.len() > self.single.len() {
            std::mem::swap(&mut self.single, &mut other.single);
        }
        for (id, revision) in other.single {
            let newest = self.single.entry(id).or_insert(revision);
            *newest = revision.max(*newest);
        }
        if self.bulk.is_empty() {
            self.bulk = other.bulk;
        } else if !other.bulk.is_empty() {
            self.bulk.append(&mut other.bulk);
            newest_of_each(&mut self.bulk);
        }
    }
}

fn newest_of_each(changes: &mut Vec<(ProductId, Revision)>) {
    // One statement changes its products mostly in the order of their ids: then this only looks at each of them.
    changes.sort_unstable_by_key(|(id, revision)| (*id, Reverse(*revision)));
    changes.dedup_by_key(|(id, _)| *id);
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::product::Version;

    /// Of three polls with small transactions and bulk jobs, whose rows come in any order and more than once.
    #[test]
    fn the_newest_revision_of_each_product_is_found_however_it_arrived() {
        let mut random = StdRng::seed_from_u64(1);
        let id = |number| ProductId::new(number).expect("positive");
        for _ in 0..200 {
            let (mut expected, mut merged) = (HashMap::new(), Floors::default());
            for _ in 0..3 {
                let mut change = || {
                    let id = id(random.random_range(1..=40));
                    let version = Version(random.random_range(1..1_000));
                    let revision = Revision { version, deleted: random.random_bool(0.2) };
                    let newest = expected.entry(id).or_insert(revision);
                    *newest = revision.max(*newest);
                    (id, revision)
                };
                let mut single = HashMap::default();
                for (id, revision) in (0..3).map(|_| change()) {
                    let newest = single.entry(id).or_insert(revision);
                    *newest = revision.max(*newest);
                }
                let packs: Vec<Vec<_>> =
                    (0..3).map(|length| (0..length * 4).map(|_| change()).collect()).collect();
                merged.merge(Floors::new(single, &packs));
            }
            for number in 1..=41 {
                let newest = expected.get(&id(number)).copied().unwrap_or(Revision::NONE);
                assert_eq!(merged.get(id(number)), newest, "{number} of {merged:?}");
            }
            let distinct: HashMap<ProductId, ()> = merged.iter().map(|(id, _)| (id, ())).collect();
            assert_eq!(distinct.len(), expected.len());
            assert!(merged.len() >= expected.len() && merged.len() <= 2 * expected.len());
        }
    }
}
