use std::collections::HashMap;

use ahash::RandomState;
use parking_lot::Mutex;

use crate::product::{ProductId, Version};

/// Entries of the map. When it is full, it is cleared, and products are reported again.
const CAPACITY: usize = 10_000;

/// The unreadable products that were logged, so that each is logged once per version and not with each read.
#[derive(Debug, Default)]
pub(super) struct Reported(Mutex<HashMap<ProductId, Version, RandomState>>);

impl Reported {
    pub(super) fn is_new(&self, id: ProductId, version: Version) -> bool {
        let mut reported = self.0.lock();
        if reported.len() >= CAPACITY {
            reported.clear();
        }
        reported.insert(id, version) != Some(version)
    }
}
