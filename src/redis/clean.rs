//! The relay's operations on Redis: it finds entries that are older than a change, and removes those it cannot replace.

use fred::types::Value;
use futures_util::future::join_all;

use super::entry_bytes::head_of;
use super::lease::number;
use super::node::NodeCommand;
use super::{Redis, Unavailable};
use crate::metrics::RedisOperation;
use crate::product::{Change, ProductId, Revision, Version};

/// The TTL of a mark in seconds, counted from the last write of a relay.
const MARK_KEPT: u64 = 30 * 86_400;

impl Redis {
    /// Breaks the leases of changed products, pipelined. Returns for each whether Redis holds an older entry.
    pub(crate) async fn supersede(&self, changes: &[Change]) -> Vec<Result<bool, Unavailable>> {
        let asked = changes.iter().map(|change| {
            let args = vec![head_of(change.revision).into()];
            let reply = self.run_and_break_lease::<i64>(&self.scripts.supersede, change.id, args);
            self.counted(RedisOperation::Relay, reply)
        });
        let older = |reply: Result<i64, _>| reply.map(|older| older == 1);
        join_all(asked).await.into_iter().map(older).collect()
    }

    /// Removes the entries of products unconditionally, and breaks their leases. Returns one result for each.
    pub(crate) async fn remove(&self, ids: &[ProductId]) -> Vec<Result<(), Unavailable>> {
        let keys = self.scope().load_full();
        if self.nodes.is_cluster() {
            let removed = ids.iter().map(|id| {
                let (entry, lock) = (keys.entry(*id), keys.lock(*id));
                let unlink = NodeCommand::new("DEL", vec![entry.clone().into(), lock.into()]);
                let reply = async move { self.nodes.send(&entry, unlink).await };
                self.counted(RedisOperation::Relay, reply)
            });
            return join_all(removed).await.into_iter().map(|reply| reply.map(drop)).collect();
        }
        let Some(first) = ids.first() else { return Vec::new() };
        let names: Vec<Value> =
            ids.iter().flat_map(|id| [keys.entry(*id).into(), keys.lock(*id).into()]).collect();
        let first = keys.entry(*first);
        let reply = self.nodes.send(&first, NodeCommand::new("DEL", names));
        vec![self.counted(RedisOperation::Relay, reply).await.map(drop); ids.len()]
    }

    /// Removes an entry with a version above `ceiling`, which PostgreSQL has not assigned.
    pub(crate) async fn remove_above(&self, id: ProductId, ceiling: Version) {
        self.metrics.redis_impossible.inc(());
        tracing::warn!(%id, %ceiling, "an entry in Redis has a version that PostgreSQL has not assigned; removing it");
        let args = vec![head_of(Revision::gone_after(ceiling)).into()];
        let keys = vec![self.keys().entry(id)];
        let reply = self.run::<i64>(&self.scripts.remove_above, keys, args);
        // If the removal fails, the next read of the key repeats it.
        let _ = self.counted(RedisOperation::Get, reply).await;
    }

    /// The mark that a relay of this catalogue wrote last.
    pub(crate) async fn read_mark(&self) -> Result<Option<String>, Unavailable> {
        let key = self.keys().mark();
        let reply = self.nodes.send(&key, NodeCommand::new("GET", vec![key.clone().into()]));
        Ok(self.counted(RedisOperation::Relay, reply).await?.into_string())
    }

    /// Writes a mark, by which a relay on another copy of the database detects that Redis was filled from this one.
    pub(crate) async fn write_mark(&self, mark: &str) -> Result<(), Unavailable> {
        let key = self.keys().mark();
        let args = vec![key.clone().into(), mark.to_owned().into(), "EX".into(), number(MARK_KEPT)];
        let set = NodeCommand::new("SET", args);
        let reply = self.nodes.send(&key, set);
        self.counted(RedisOperation::Relay, reply).await.map(drop)
    }
}
