//! Reads what Redis holds for one product, without side effects.

use std::time::Duration;

use bytes::Bytes;

use super::entry_bytes::decode;
use super::node::NodeCommand;
use super::read::wrong_type_as_value;
use super::{Redis, Unavailable};
use crate::entry::Entry;
use crate::metrics::RedisOperation;
use crate::product::ProductId;

/// What Redis holds for one product.
#[derive(Debug)]
pub struct RedisState {
    /// The entry; `None` if there is none or it is unreadable.
    pub entry: Option<Entry>,
    pub lease: Option<LeaseState>,
}

#[derive(Debug)]
pub struct LeaseState {
    pub token: Bytes,
    /// The time since the lease was taken or last renewed.
    pub age: Duration,
}

impl Redis {
    pub(crate) async fn inspect(&self, id: ProductId) -> Result<RedisState, Unavailable> {
        let ask = |operation, name, key: Bytes| {
            let command = NodeCommand::new(name, vec![key.clone().into()]);
            let reply = async move { wrong_type_as_value(self.nodes.send(&key, command).await) };
            self.counted(operation, reply)
        };
        let (entry, token, remaining) = tokio::join!(
            ask(RedisOperation::Get, "GET", self.keys().entry(id)),
            ask(RedisOperation::Lease, "GET", self.keys().lock(id)),
            ask(RedisOperation::Lease, "PTTL", self.keys().lock(id)),
        );
        let (entry, token, remaining) = (entry?, token?, remaining?);
        let remaining = remaining.as_i64().unwrap_or_default().max(0).unsigned_abs();
        let remaining = Duration::from_millis(remaining);
        let age = self.options.lease_ttl.saturating_sub(remaining);
        Ok(RedisState {
            entry: entry
                .into_bytes()
                .and_then(|bytes| decode(&bytes))
                .map(|entry| self.judge(id, entry)),
            lease: token.into_bytes().map(|token| LeaseState { token, age }),
        })
    }
}
