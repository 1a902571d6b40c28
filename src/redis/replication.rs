//! Detects by the replication id that a node may have lost writes.
//!
//! A server restarted from an old snapshot, or a replica promoted without the last writes of its master, holds entries that had
//! been replaced. The entries themselves do not show it, but Redis then changes its replication id. The replication key on
//! each node holds the id at the last probe and the moment since which the node's entries are complete. When the id differs,
//! that moment becomes now: entries with an earlier `known_at`, except those within the time that recent changes cover, are
//! suspect and are loaded again. If the key is lost while an instance still has the id, that instance stores it again
//! with the same moment.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fred::error::Error;
use fred::types::Value;
use futures_util::future::join_all;

use super::Redis;
use super::entry_bytes::millis;
use super::lease::number;
use super::node::Node;
use super::probe::ProbeContext;
use crate::controls::Protection;
use crate::entry::Entry;
use crate::metrics::{RedisCapability, RedisRefusal};
use crate::moment::Moment;
use crate::product::ProductId;

/// The TTL of the replication key; longer than that of any entry.
const KEEP_REPLICATION_IDS: Duration = Duration::from_secs(30 * 86_400);

#[derive(Clone, Debug, Default)]
pub(super) struct Replication {
    /// The replication id, or else the run id. `None`: the server returns neither, or has not been asked.
    pub(super) id: Option<String>,
    /// Entries with this `known_at` or a later one are complete. `None`: the node was not probed yet.
    pub(super) since: Option<Moment>,
}

/// The result of a probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Probed {
    /// The data may be older than it was at the last probe.
    pub(crate) changed: bool,
    /// This instance is the first of the fleet to detect it.
    pub(crate) first: bool,
}

impl Node {
    /// Compares the node's id with the one in its replication key.
    pub(super) async fn compare(
        &self,
        id: String,
        key: Result<Value, Error>,
        context: &ProbeContext<'_>,
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
            // The key was evicted or flushed, or its slot has just migrated here.
            let _ = self.store(&id, known.since.unwrap_or_else(Moment::now), context).await;
            return Probed::default();
        }
        // Without an id in memory or in the key, this is the first probe of an empty Redis, and no change.
        let changed = known.id.is_some() || held.is_some();
        // Takes effect even if the key cannot be written.
        self.set_replication(Some(id.clone()), Moment::now());
        let stored = self.store(&id, Moment::now(), context).await;
        let first = match stored.map(first_and_since) {
            Ok(Some((first, since))) => {
                self.set_replication(Some(id), since);
                first
            }
            _ => true,
        };
        Probed { changed, first: changed && first }
    }

    async fn store(
        &self,
        id: &str,
        since: Moment,
        context: &ProbeContext<'_>,
    ) -> Result<Value, Error> {
        let since = since.wall().duration_since(UNIX_EPOCH).unwrap_or_default();
        let args = vec![id.into(), number(millis(since)), number(millis(KEEP_REPLICATION_IDS))];
        self.run(&context.scripts.replication, context.replication.clone(), args).await
    }

    /// For a server that returns neither a replication id nor a run id: when every connection was reestablished, it may have been
    /// restarted, and earlier entries are suspect.
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
    /// Updates the slot map and probes every node once. Returns whether any node may have lost writes.
    pub(crate) async fn probe(&self) -> bool {
        self.nodes.remap().await;
        let nodes = self.nodes.all();
        let probes = nodes.iter().map(|node| async {
            let (replication, access) = self.keys().of_node(node.tag());
            node.probe(&ProbeContext { scripts: &self.scripts, replication, access }).await
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

    /// Entries with this `known_at` or a later one, on the node that serves `id`, are complete or covered by recent changes.
    /// `None` before the first probe: every entry there is suspect.
    pub(crate) fn trusted_since(&self, id: ProductId) -> Option<Moment> {
        let node = match self.nodes.is_cluster() {
            true => self.nodes.of_key(&self.keys().entry(id)),
            false => self.nodes.of_key(&[]),
        };
        // Counted back from now and not from the restart, because recent changes are pruned as time passes.
        let covered_since = Moment::now().before(self.options.coverage);
        Some(node?.complete_since()?.min(covered_since))
    }

    /// Marks an entry of Redis as suspect if its node may have lost a newer one.
    pub(super) fn judge(&self, id: ProductId, entry: Entry) -> Entry {
        let trusted = self.trusted_since(id).is_some_and(|since| entry.known_at() >= since);
        let protected = self.controls.holds(Protection::RedisReplicationId);
        if trusted || !protected { entry } else { entry.suspect() }
    }

    /// Nodes that refuse something for this reason.
    #[must_use]
    pub fn refusing(&self, reason: RedisRefusal) -> u64 {
        self.nodes.refusals().iter().filter(|refusals| refusals.stands(reason)).count() as u64
    }

    /// Nodes without this capability.
    #[must_use]
    pub fn limited(&self, capability: RedisCapability) -> u64 {
        match capability {
            RedisCapability::ReplicationId => {
                self.nodes.all().iter().filter(|node| node.lacks_id()).count() as u64
            }
        }
    }

    /// A line for each refusal, with its cost, and one if other catalogues share the namespace.
    #[must_use]
    pub fn refusal_lines(&self) -> Vec<String> {
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
