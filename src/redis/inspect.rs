//! Looking at what Redis holds of one product, without changing it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use fred::interfaces::{ClientLike, KeysInterface};
use fred::types::Value;

use super::entry_bytes::decode;
use super::{Redis, Unavailable};
use crate::entry::Entry;
use crate::metrics::RedisOperation;
use crate::product::ProductId;

/// What Redis holds of one product.
#[derive(Debug)]
pub struct RedisState {
    /// The entry, if there is one that can be read.
    pub entry: Option<Entry>,
    /// The lease, if somebody holds it.
    pub lease: Option<LeaseState>,
}

/// A lease that somebody holds.
#[derive(Debug)]
pub struct LeaseState {
    /// Its token.
    pub token: Bytes,
    /// How long ago it was taken or last renewed.
    pub age: Duration,
}

impl RedisState {
    /// Whether a plain read would be answered with this.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.entry.as_ref().is_some_and(|entry| !entry.past_hard(Instant::now()))
    }
}

impl Redis {
    /// Looks at one product.
    pub(crate) async fn inspect(&self, id: ProductId) -> Result<RedisState, Unavailable> {
        let client = self.pool.next_connected().with_options(&self.command);
        let (entry, token, remaining) = tokio::join!(
            client.get::<Value, _>(self.keys.entry(id)),
            client.get::<Option<Bytes>, _>(self.keys.lock(id)),
            client.pttl::<i64, _>(self.keys.lock(id)),
        );
        // A key of another type holds nothing that can be read.
        let entry = super::wrong_type_as_value(entry);
        let entry = self.counted(RedisOperation::Get, entry)?;
        let token = self.counted(RedisOperation::Lease, token)?;
        let remaining = self.counted(RedisOperation::Lease, remaining)?;
        let remaining = Duration::from_millis(remaining.max(0).unsigned_abs());
        let age = self.options.lease_ttl.saturating_sub(remaining);
        Ok(RedisState {
            entry: entry.into_bytes().as_ref().and_then(decode),
            lease: token.map(|token| LeaseState { token, age }),
        })
    }
}
