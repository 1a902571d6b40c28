//! Whether what Redis holds can be vouched for.
//!
//! A server that was restarted with what it saved an hour ago, or a replica that had not heard of the last writes,
//! holds entries that were replaced since. Nothing in them tells. But their history does: Redis names it anew in
//! both cases. While nobody has vouched for a history, nothing that Redis holds is taken for current; afterwards
//! only what was known to be current shortly before it began, because recent changes are relayed again.

use std::sync::Arc;

use futures_util::future::join_all;

use super::Redis;
use super::node::Node;
use crate::controls::Protection;
use crate::entry::Entry;
use crate::moment::Moment;
use crate::product::ProductId;

/// The history of a server that nobody has vouched for.
#[derive(Debug)]
pub(crate) struct Unvouched {
    node: Arc<Node>,
    id: String,
    /// Whether this was just found out.
    pub(crate) is_news: bool,
}

impl Unvouched {
    /// What Redis calls it.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Takes what was known to be current at `since` or later for current.
    pub(crate) fn vouch(&self, since: Moment) {
        self.node.vouch(&self.id, since);
    }
}

impl Redis {
    /// Looks after the servers, once: who serves what, who answers again, and whose history is in doubt.
    pub(crate) async fn look_after(&self) -> Vec<Unvouched> {
        self.nodes.remap().await;
        let nodes = self.nodes.all();
        let key = format!("{}:probe", self.options.namespace);
        let histories = join_all(nodes.iter().map(|node| node.probe(key.clone().into()))).await;
        let unvouched = nodes.into_iter().zip(histories).filter_map(|(node, id)| {
            let id = id?;
            let is_news = node.has_history(&id);
            (!node.is_vouched_for()).then_some(Unvouched { node, id, is_news })
        });
        unvouched.collect()
    }

    /// An entry that Redis holds, in doubt or not.
    pub(super) fn judge(&self, id: ProductId, entry: Entry) -> Entry {
        let node = match self.nodes.is_cluster() {
            true => self.nodes.of_key(&self.keys().entry(id)),
            false => self.nodes.of_key(&[]),
        };
        let doubtful = node.is_none_or(|node| node.doubts(&entry));
        let protected = self.controls.holds(Protection::RedisHistory);
        if doubtful && protected { entry.in_doubt() } else { entry }
    }
}
