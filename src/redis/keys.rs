//! The names of keys and channels.

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;

use super::nodes;
use crate::product::ProductId;

/// The keys of the current epoch.
pub(super) type Scope = Arc<ArcSwap<Keys>>;

/// Every name contains the namespace and the scope, a hash of the catalogue's identity and its epoch. So another database, and
/// this one after a restore, has other keys even in the same namespace.
#[derive(Debug)]
pub(super) struct Keys {
    pub(super) prefix: String,
    /// The catalogue's identity, the same in every epoch.
    pub(super) catalogue: String,
}

impl Keys {
    pub(super) fn new(namespace: &str, scope: &str, catalogue: &str) -> Self {
        Self { prefix: format!("{namespace}:{scope}"), catalogue: catalogue.to_owned() }
    }

    pub(super) fn catalogues(&self, namespace: &str) -> Bytes {
        format!("{namespace}:catalogues").into()
    }

    pub(super) fn entry(&self, id: ProductId) -> Bytes {
        format!("{}:{{{id}}}:p", self.prefix).into()
    }

    // The hash tag puts the lock into the entry's slot, so that one script can access both in a cluster.
    pub(super) fn lock(&self, id: ProductId) -> Bytes {
        format!("{}:{{{id}}}:lock", self.prefix).into()
    }

    pub(super) fn channel(&self) -> Bytes {
        format!("{}:changes", self.prefix).into()
    }

    pub(super) fn mark(&self) -> Bytes {
        format!("{}:mark", self.prefix).into()
    }

    /// Two keys in the slot of `tag`: the one for the node's replication id, and one for test writes, which stays empty.
    pub(super) fn of_node(&self, tag: u32) -> (Bytes, Bytes) {
        let tag = nodes::hash_tag(tag);
        let key = |part| format!("{}:{{{tag}}}:{part}", self.prefix).into();
        (key("replication"), key("access"))
    }

    pub(super) fn ranking(&self) -> Vec<Bytes> {
        let key = |part| format!("{}:{{hot}}:{part}", self.prefix).into();
        vec![key("ranking"), key("decayed"), key("instances")]
    }
}
