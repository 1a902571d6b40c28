//! What a poll of the outbox brings.

use sqlx::FromRow;

use super::snapshot::Snapshot;
use crate::moment::Moment;
use crate::product::{ProductId, Revision, Version};
use crate::recent_changes::Floors;

/// A row of the outbox with more changes than this is part of a bulk job.
const PACK: usize = 100;

#[derive(FromRow)]
pub(super) struct ChangeRow {
    pub(super) product_ids: Option<Vec<i64>>,
    pub(super) versions: Option<Vec<i64>>,
    pub(super) deleted: Option<bool>,
    pub(super) xid: Option<String>,
    pub(super) snapshot: Option<String>,
    pub(super) pruned: Option<String>,
    pub(super) relayed: Option<String>,
    pub(super) catalogue: Option<String>,
    pub(super) epoch: Option<String>,
    pub(super) scope: Option<String>,
    pub(super) timeline: Option<i64>,
    pub(super) ceiling: Option<i64>,
    pub(super) mark: Option<i64>,
    pub(super) mark_token: Option<String>,
    pub(super) remembered: Option<bool>,
    pub(super) relay_is_free: Option<bool>,
}

/// What a poll brought.
#[derive(Debug)]
pub(crate) struct Changes {
    /// Before the statement was sent: whatever was committed by then is known now.
    pub(crate) asked: Moment,
    /// What the statement saw.
    pub(crate) snapshot: Snapshot,
    /// Rows that are visible in this may have been pruned.
    pub(crate) pruned: Snapshot,
    /// Redis reflects what is visible in this.
    pub(crate) relayed: Snapshot,
    /// The identity of the catalogue.
    pub(crate) catalogue: String,
    /// The epoch of the catalogue, with its identity.
    pub(crate) epoch: String,
    /// The part of every key in Redis that is this catalogue's and this epoch's own.
    pub(crate) scope: String,
    /// The newest version that has been given out.
    pub(crate) ceiling: Version,
    /// Changes of few products at once.
    pub(crate) single: Floors,
    /// Changes of many products at once, as a statement packed them.
    pub(crate) packs: Vec<Vec<(ProductId, Revision)>>,
    /// Every product below this version was deleted by TRUNCATE.
    pub(crate) truncated_below: Option<Version>,
    /// Why PostgreSQL must be another, or must have gone back, since the poll before.
    pub(crate) went_back: Option<&'static str>,
    /// Whether the server was started again since the poll before. Then these are all changes that the outbox holds.
    pub(crate) restarted: bool,
    /// Whether no instance relays.
    pub(crate) relay_is_free: bool,
    /// More changes than were asked for: what is missing is unknown.
    pub(crate) overflow: bool,
}

impl Changes {
    pub(super) fn nothing(asked: Moment) -> Self {
        Self {
            asked,
            snapshot: Snapshot::empty(),
            pruned: Snapshot::empty(),
            relayed: Snapshot::empty(),
            catalogue: String::new(),
            epoch: String::new(),
            scope: String::new(),
            ceiling: Version(0),
            single: Floors::default(),
            packs: Vec::new(),
            truncated_below: None,
            went_back: None,
            restarted: false,
            relay_is_free: false,
            overflow: false,
        }
    }

    /// How many changes there are.
    pub(crate) fn len(&self) -> usize {
        self.single.len() + self.packs.iter().map(Vec::len).sum::<usize>()
    }

    pub(super) fn take(&mut self, row: &ChangeRow, limit: usize) {
        let (versions, deleted) =
            (row.versions.as_deref().unwrap_or_default(), row.deleted == Some(true));
        let Some(ids) = &row.product_ids else {
            let below = versions.first().map(|version| Version(*version));
            self.truncated_below = self.truncated_below.max(below);
            return;
        };
        if self.len() + ids.len() > limit {
            self.overflow = true;
            return;
        }
        let changes = ids.iter().zip(versions).filter_map(|(id, version)| {
            let revision = Revision { version: Version(*version), deleted };
            Some((ProductId::new(*id)?, revision))
        });
        if ids.len() > PACK {
            self.packs.push(changes.collect());
            return;
        }
        for (id, revision) in changes {
            let newest = self.single.entry(id).or_insert(revision);
            *newest = revision.max(*newest);
        }
    }
}
