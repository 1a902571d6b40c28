//! The names of keys and channels.

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;

use super::nodes;
use crate::product::ProductId;

/// The keys of the catalogue's present epoch.
pub(super) type Scope = Arc<ArcSwap<Keys>>;

/// The names of keys and channels: the namespace, and what is this catalogue's and this epoch's own. Another database, and this
/// one after it went back, has others, whatever its namespace.
#[derive(Debug)]
pub(super) struct Keys {
    pub(super) prefix: String,
    /// What is the catalogue's own, whatever its epoch.
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

    // The same hash tag, so the same slot of a cluster: one script may see both.
    pub(super) fn lock(&self, id: ProductId) -> Bytes {
        format!("{}:{{{id}}}:lock", self.prefix).into()
    }

    pub(super) fn channel(&self) -> Bytes {
        format!("{}:changes", self.prefix).into()
    }

    pub(super) fn mark(&self) -> Bytes {
        format!("{}:mark", self.prefix).into()
    }

    /// Of a node that serves the slot of `tag`: the key that holds its replication id, and one that holds nothing.
    pub(super) fn of_node(&self, tag: u32) -> (Bytes, Bytes) {
        let tag = nodes::hash_tag(tag);
        let key = |part| format!("{}:{{{tag}}}:{part}", self.prefix).into();
        (key("replication"), key("access"))
    }

    pub(super) fn ranking(&self) -> Vec<Bytes> {
        let key = |part| format!("{}:{{hot}}:{part}", self.prefix).into();
        vec![key("ranking"), key("decayed")]
    }
}
