//! How long before a poll its changes were made, by the clock of PostgreSQL alone: no two clocks are compared.

use std::time::Duration;

use crate::product::{ProductId, Revision};

/// Changes whose products are recorded, 40 bytes each. Of further ones only the number and the age are.
const MOST_SINGLE: usize = 65_536;
/// Rows of bulk jobs with an age of their own. Further ones have the age of the oldest of them.
const MOST_BULK: usize = 65_536;

/// The time from each change to the poll that returned it. A change is committed after it is made, so this is an upper bound of
/// the time since the commit.
#[derive(Debug, Default)]
pub(crate) struct Ages {
    /// Changes of rows with few products.
    pub(crate) single: Vec<(ProductId, Revision, Duration)>,
    /// For each row of a bulk job its age and the number of its changes.
    pub(crate) bulk: Vec<(Duration, usize)>,
}

impl Ages {
    pub(super) fn add(&mut self, id: ProductId, revision: Revision, age: Duration) {
        if self.single.len() < MOST_SINGLE {
            self.single.push((id, revision, age));
        } else {
            self.add_bulk(age, 1);
        }
    }

    pub(super) fn add_bulk(&mut self, age: Duration, count: usize) {
        let is_full = self.bulk.len() >= MOST_BULK;
        match self.bulk.last_mut() {
            Some((same, known)) if *same == age || is_full => {
                (*same, *known) = (age.max(*same), *known + count);
            }
            _ => self.bulk.push((age, count)),
        }
    }
}
