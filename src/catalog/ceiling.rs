//! The version ceiling: an entry above every version that Postgres has given out is removed.

use std::time::Duration;

use super::Catalog;
use crate::controls::Protection;
use crate::entry::Entry;
use crate::moment::Moment;
use crate::product::{ProductId, Version};

/// The longest wait for a requested poll.
const ASKED_POLL: Duration = Duration::from_secs(1);

impl Catalog {
    /// Whether only a poll can tell that the version of `entry` was taken from the sequence.
    pub(super) fn may_be_impossible(&self, entry: &Entry) -> bool {
        entry.revision().version > self.feed.ceiling()
            && self.controls.holds(Protection::VersionCeiling)
    }

    /// `entry`, unless its version is above every version that Postgres has given out: then Postgres was restored from a backup,
    /// or another program wrote the key, and the entry is removed. While Postgres does not answer such an entry is a miss.
    pub(super) async fn unless_impossible(
        &self,
        id: ProductId,
        entry: Option<Entry>,
    ) -> Option<Entry> {
        let entry = entry?;
        if !self.may_be_impossible(&entry) {
            return Some(entry);
        }
        let version = entry.revision().version;
        let ceiling = self.ceiling_above(version).await?;
        if version <= ceiling {
            return Some(entry);
        }
        self.redis.remove_above(id, ceiling).await;
        None
    }

    /// The newest version given out before this call, as far as it matters for `version`; `None` when Postgres does not answer.
    async fn ceiling_above(&self, version: Version) -> Option<Version> {
        let asked = Moment::now();
        let known = async {
            loop {
                let polled = self.feed.polled.notified();
                if self.hot.known_until() >= asked || version <= self.feed.ceiling() {
                    return Some(self.feed.ceiling());
                }
                if self.feed.is_unreachable() {
                    return None;
                }
                self.feed.request_poll();
                polled.await;
            }
        };
        tokio::time::timeout(ASKED_POLL, known).await.ok().flatten()
    }
}
