//! Which products were reported as unreadable.

use std::collections::HashMap;

use ahash::RandomState;
use parking_lot::Mutex;

use crate::product::{ProductId, Version};

/// Products that are remembered; beyond that, all are reported again.
const REMEMBERED: usize = 10_000;

/// So that a product that is read often is logged once for each of its versions.
#[derive(Debug, Default)]
pub(super) struct Reported(Mutex<HashMap<ProductId, Version, RandomState>>);

impl Reported {
    pub(super) fn is_news(&self, id: ProductId, version: Version) -> bool {
        let mut reported = self.0.lock();
        if reported.len() >= REMEMBERED {
            reported.clear();
        }
        reported.insert(id, version) != Some(version)
    }
}
