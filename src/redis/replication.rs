//! Whether a node's data can be as old as a snapshot.
//!
//! A server that was restarted with what it saved an hour ago, or a replica that lacks the last writes of the master it
//! replaces, holds entries that were replaced since. Nothing in them tells. But Redis then takes another replication id.
//! Each node holds, in a key of ours, the id that it had when an instance last looked, and since when its entries are
//! complete. When the id differs, that moment is now: entries known before it, less what recent changes cover, are
//! suspect, and are loaded again. A key that is lost while an instance knows the id is stored again as it was.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fred::error::Error;
use fred::types::Value;
use futures_util::future::join_all;

use super::Redis;
use super::entry_bytes::millis;
use super::lease::number;
use super::node::Node;
use super::probe::Site;
use crate::controls::Protection;
use crate::entry::Entry;
use crate::metrics::{RedisCapability, RedisRefusal};
use crate::moment::Moment;
use crate::product::ProductId;

/// How long the key outlives its last writer; longer than any entry.
const KEEP_REPLICATION_IDS: Duration = Duration::from_secs(30 * 86_400);

/// What is known of the age of a node's data.
#[derive(Clone, Debug, Default)]
pub(super) struct Replication {
    /// The replication id, or else the run id. `None`: the server says neither, or has not been asked.
    pub(super) id: Option<String>,
    /// Entries known at this moment or later are complete. `None`: not known yet.
    pub(super) since: Option<Moment>,
}

/// What a probe found out about a node's data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Probed {
    /// The data may be older than it was at the last probe.
    pub(crate) changed: bool,
    /// This instance is the first of the fleet that says so.
    pub(crate) first: bool,
}

impl Node {
    /// Compares the id that the node has with the one that its key holds.
    pub(super) async fn compare(
        &self,
        id: String,
        key: Result<Value, Error>,
        site: &Site<'_>,
    ) -> Probed {
        let known = self.replication();
        let held = key.ok().and_then(parse);
        if let Some((held, since)) = &held
            && *held == id
        {
            if known.id.as_ref() == Some(&id) {
                return Probed::default();
            }
            self.set_replication(Some(id), *since);
            return Probed { changed: known.id.is_some(), first: false };
        }
        if known.id.as_ref() == Some(&id) {
            // The key was evicted or flushed, or belongs to a slot that was moved here.
            let _ = self.store(&id, known.since.unwrap_or_else(Moment::now), site).await;
            return Probed::default();
        }
        // An empty Redis is no news.
        let changed = known.id.is_some() || held.is_some();
        // Judged by this from now on, even when it cannot be stored.
        self.set_replication(Some(id.clone()), Moment::now());
        let stored = self.store(&id, Moment::now(), site).await;
        let first = match stored.map(first_and_since) {
            Ok(Some((first, since))) => {
                self.set_replication(Some(id), since);
                first
            }
            _ => true,
        };
        Probed { changed, first: changed && first }
    }

    async fn store(&self, id: &str, since: Moment, site: &Site<'_>) -> Result<Value, Error> {
        let since = since.wall().duration_since(UNIX_EPOCH).unwrap_or_default();
        let args = vec![id.into(), number(millis(since)), number(millis(KEEP_REPLICATION_IDS))];
        self.run(&site.scripts.replication, site.replication.clone(), args).await
    }

    /// The server names neither its replication nor its run: what was known before every connection was made anew is
    /// suspect.
    pub(super) fn without_id(&self, reconnected: bool) -> Probed {
        let known = self.replication();
        if known.since.is_some() && known.id.is_none() && !reconnected {
            return Probed::default();
        }
        self.set_replication(None, Moment::now());
        let changed = known.since.is_some();
        Probed { changed, first: changed }
    }
}

fn parse(held: Value) -> Option<(String, Moment)> {
    let held = held.into_string()?;
    let (id, since) = held.split_once(' ')?;
    let since = Duration::from_millis(since.parse().ok()?);
    let since = UNIX_EPOCH.checked_add(since).unwrap_or_else(SystemTime::now);
    Some((id.to_owned(), Moment::of_wall(since)))
}

fn first_and_since(stored: Value) -> Option<(bool, Moment)> {
    let Value::Array(mut stored) = stored else { return None };
    let (_, since) = parse(stored.pop()?)?;
    Some((stored.pop()?.as_i64() == Some(1), since))
}

impl Redis {
    /// Probes every node once: which one serves which slot, which ones answer, and whose data may be old. Returns whether any may be.
    pub(crate) async fn probe(&self) -> bool {
        self.nodes.remap().await;
        let nodes = self.nodes.all();
        let probes = nodes.iter().map(|node| async {
            let (replication, access) = self.keys().of_node(node.tag());
            node.probe(&Site { scripts: &self.scripts, replication, access }).await
        });
        let probed = join_all(probes).await;
        for (node, probed) in nodes.iter().zip(&probed).filter(|(_, probed)| probed.changed) {
            self.metrics.redis_replication_changes.inc(());
            let older = humantime::format_duration(self.options.coverage);
            let what = match node.replication().id {
                Some(_) => "Redis replication id changed (restart or failover)",
                None => "the connections to Redis were lost, and it may have been restarted",
            };
            tracing::info!(
                server = %node.server, first = probed.first,
                "{what}; entries older than {older} will be reloaded"
            );
        }
        probed.iter().any(|probed| probed.changed)
    }

    /// What was known to be current at this moment or later is complete on the node that serves `id`, or covered by the recent
    /// changes; `None` while that is not known: everything there is suspect.
    pub(crate) fn trusted_since(&self, id: ProductId) -> Option<Moment> {
        let node = match self.nodes.is_cluster() {
            true => self.nodes.of_key(&self.keys().entry(id)),
            false => self.nodes.of_key(&[]),
        };
        // By now and not by the moment of the restart: recent changes are forgotten.
        let covered_since = Moment::now().before(self.options.coverage);
        Some(node?.complete_since()?.min(covered_since))
    }

    /// An entry that Redis holds, suspect or not.
    pub(super) fn judge(&self, id: ProductId, entry: Entry) -> Entry {
        let trusted = self.trusted_since(id).is_some_and(|since| entry.known_at() >= since);
        let protected = self.controls.holds(Protection::RedisHistory);
        if trusted || !protected { entry } else { entry.suspect() }
    }

    /// How many nodes refuse something for this reason.
    #[must_use]
    pub fn refusing(&self, reason: RedisRefusal) -> u64 {
        self.nodes.refusals().iter().filter(|refusals| refusals.stands(reason)).count() as u64
    }

    /// How many nodes do not offer this.
    #[must_use]
    pub fn limited(&self, capability: RedisCapability) -> u64 {
        match capability {
            RedisCapability::ReplicationId => {
                self.nodes.all().iter().filter(|node| node.lacks_id()).count() as u64
            }
        }
    }

    /// A line for everything that a node refuses, and what that costs.
    #[must_use]
    pub fn trouble(&self) -> Vec<String> {
        let mut lines: Vec<String> =
            self.nodes.refusals().iter().flat_map(|refusals| refusals.lines()).collect();
        let others = self.other_catalogues.lock();
        if !others.is_empty() {
            lines.push(format!(
                "redis: the namespace {} is also used by {}; give each catalogue one of its own",
                self.options.namespace,
                others.join(", ")
            ));
        }
        lines
    }
}
