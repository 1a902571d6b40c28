//! The result of a poll of the outbox.

use std::collections::HashMap;
use std::time::Duration;

use ahash::RandomState;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row as _};

use super::ages::Ages;
use super::snapshot::Snapshot;
use crate::moment::Moment;
use crate::product::{ProductId, Revision, Version};

/// A row of the outbox with more changes than this is part of a bulk job.
const PACK: usize = 100;

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
    /// Seconds since the row was written.
    pub(super) age: Option<f64>,
}

impl FromRow<'_, PgRow> for ChangeRow {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            product_ids: row.try_get("product_ids")?,
            versions: row.try_get("versions")?,
            deleted: row.try_get("deleted")?,
            xid: row.try_get("xid")?,
            snapshot: row.try_get("snapshot")?,
            pruned: row.try_get("pruned")?,
            relayed: row.try_get("relayed")?,
            catalogue: row.try_get("catalogue")?,
            epoch: row.try_get("epoch")?,
            scope: row.try_get("scope")?,
            timeline: row.try_get("timeline")?,
            ceiling: row.try_get("ceiling")?,
            mark: row.try_get("mark")?,
            mark_token: row.try_get("mark_token")?,
            remembered: row.try_get("remembered")?,
            relay_is_free: row.try_get("relay_is_free")?,
            age: row.try_get("age")?,
        })
    }
}

#[derive(Debug)]
pub(crate) struct Changes {
    /// The moment before the statement was sent: every change that was committed by then has been read.
    pub(crate) asked: Moment,
    /// The snapshot of the statement.
    pub(crate) snapshot: Snapshot,
    /// Rows that this snapshot sees may have been pruned.
    pub(crate) pruned: Snapshot,
    /// Redis reflects every row that this snapshot sees.
    pub(crate) relayed: Snapshot,
    /// A hash of the catalogue's identity.
    pub(crate) catalogue: String,
    /// A hash of the identity and the epoch.
    pub(crate) epoch: String,
    /// A hash of the identity, the epoch and the Redis epoch; part of every key in Redis.
    pub(crate) scope: String,
    /// The newest version that Postgres has assigned.
    pub(crate) ceiling: Version,
    /// Changes from rows with few products.
    pub(crate) single: HashMap<ProductId, Revision, RandomState>,
    /// Changes from rows of bulk jobs, one pack per row.
    pub(crate) packs: Vec<Vec<(ProductId, Revision)>>,
    /// Of the changes that no earlier poll returned.
    pub(crate) ages: Ages,
    /// A TRUNCATE deleted every product below this version.
    pub(crate) truncated_below: Option<Version>,
    /// The proof that PostgreSQL went back, or is another, since the last poll.
    pub(crate) went_back: Option<&'static str>,
    /// Whether the server was restarted since the last poll. Then these are all changes in the outbox.
    pub(crate) restarted: bool,
    /// Whether the relay's lease is free.
    pub(crate) relay_is_free: bool,
    /// There were more changes than the limit, and some are missing here.
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
            single: HashMap::default(),
            packs: Vec::new(),
            ages: Ages::default(),
            truncated_below: None,
            went_back: None,
            restarted: false,
            relay_is_free: false,
            overflow: false,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.single.len() + self.packs.iter().map(Vec::len).sum::<usize>()
    }

    /// Takes a row; `is_new`: no earlier poll returned it.
    pub(super) fn take(&mut self, row: &ChangeRow, limit: usize, is_new: bool) {
        let (versions, deleted) =
            (row.versions.as_deref().unwrap_or_default(), row.deleted == Some(true));
        let Some(ids) = &row.product_ids else {
            let below = versions.first().map(|version| Version(*version));
            self.truncated_below = self.truncated_below.max(below);
            return;
        };
        let age = row.age.filter(|_| is_new);
        // Negative when the clock was set back.
        let age = age.map(|age| Duration::try_from_secs_f64(age).unwrap_or_default());
        if self.len() + ids.len() > limit {
            self.overflow = true;
            age.into_iter().for_each(|age| self.ages.add_bulk(age, ids.len()));
            return;
        }
        let changes = ids.iter().zip(versions).filter_map(|(id, version)| {
            let revision = Revision { version: Version(*version), deleted };
            Some((ProductId::new(*id)?, revision))
        });
        if ids.len() > PACK {
            self.packs.push(changes.collect());
            age.into_iter().for_each(|age| self.ages.add_bulk(age, ids.len()));
            return;
        }
        for (id, revision) in changes {
            age.into_iter().for_each(|age| self.ages.add(id, revision, age));
            let newest = self.single.entry(id).or_insert(revision);
            *newest = revision.max(*newest);
        }
    }
}
