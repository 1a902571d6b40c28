//! Leases: at most one instance loads a product from Postgres at a time. Redis accepts a fill only from the holder, and every
//! write breaks the lease, so a slow load cannot store an old version.
//! (Nishtala et al., "Scaling Memcache at Facebook", NSDI 2013.)

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use fred::types::Value;
use futures_util::future::join_all;

use super::entry_bytes::{encode, millis};
use super::node::NodeCommand;
use super::{Redis, Unavailable};
use crate::caller::Caller;
use crate::controls::Protection;
use crate::entry::Entry;
use crate::metrics::{FillRejection, LeaseOutcome, RedisOperation};
use crate::product::ProductId;

/// The right to load a product and to fill Redis with it. A dropped lease expires after its TTL.
#[derive(Debug)]
pub(crate) struct Lease {
    id: ProductId,
    token: Bytes,
}

/// The result of an attempt to take a lease.
#[derive(Debug)]
pub(crate) struct Asked {
    /// `None` while another load holds it.
    pub(crate) lease: Option<Lease>,
    /// The entry in Redis at that moment.
    pub(crate) entry: Option<Entry>,
}

/// The result of a fill.
#[derive(Debug)]
pub(crate) enum Filled {
    Stored,
    /// The lease was broken or had expired, so the loaded entry may be old. Contains the entry in Redis.
    Lost(Option<Entry>),
    /// Redis holds this newer entry.
    Older(Entry),
}

impl Redis {
    /// Tries to take the leases of several products, pipelined. Returns one result for each.
    pub(crate) async fn try_leases(
        &self,
        ids: &[ProductId],
        caller: Caller,
    ) -> Vec<Result<Asked, Unavailable>> {
        join_all(ids.iter().map(|id| self.try_lease(*id, caller))).await
    }

    async fn try_lease(&self, id: ProductId, caller: Caller) -> Result<Asked, Unavailable> {
        let _admitted = self.admit(caller, 1).await?;
        let token = Bytes::copy_from_slice(&rand::random::<u128>().to_be_bytes());
        let keys = vec![self.keys().entry(id), self.keys().lock(id)];
        let ttl = millis(self.options.lease_ttl);
        let args = vec![token.clone().into(), number(ttl)];
        let reply = self.run(&self.scripts.try_lease, keys, args);
        let (mine, value): (i64, Value) = self.counted(RedisOperation::Lease, reply).await?;
        let lease = (mine == 1).then_some(Lease { id, token });
        self.metrics.leases.inc(if lease.is_some() {
            LeaseOutcome::Acquired
        } else {
            LeaseOutcome::Held
        });
        Ok(Asked { lease, entry: self.read_value(id, value).await })
    }

    /// Fills Redis with the entry loaded under `lease`, and releases the lease.
    pub(crate) async fn fill(
        &self,
        lease: &Lease,
        entry: &Entry,
        caller: Caller,
    ) -> Result<Filled, Unavailable> {
        let _admitted = self.admit(caller, 1).await?;
        let keys = vec![self.keys().entry(lease.id), self.keys().lock(lease.id)];
        self.take_lease_back(lease).await;
        let args = vec![lease.token.clone().into(), encode(entry).into(), lifetime(entry)];
        let reply = self.run(&self.scripts.fill, keys, args);
        let mut reply: Vec<Value> = self.counted(RedisOperation::Fill, reply).await?;
        let held = if reply.len() > 1 { reply.remove(1) } else { Value::Null };
        let held = self.read_value(lease.id, held).await;
        Ok(match (reply.first().and_then(|word| word.as_str()).as_deref(), held) {
            (Some("stored"), _) => Filled::Stored,
            (Some("older"), Some(newer)) => {
                self.metrics.fills_rejected.inc(FillRejection::RedisOlder);
                Filled::Older(newer)
            }
            (_, held) => {
                self.metrics.leases.inc(LeaseOutcome::Lost);
                self.metrics.fills_rejected.inc(FillRejection::RedisLeaseLost);
                Filled::Lost(held)
            }
        })
    }

    /// With the protection off, takes a lost lease back, so that the fill is accepted.
    async fn take_lease_back(&self, lease: &Lease) {
        if self.controls.holds(Protection::FillLease) {
            return;
        }
        let key = self.keys().lock(lease.id);
        let args = vec![key.clone().into(), lease.token.clone().into()];
        let _ = self.nodes.send(&key, NodeCommand::new("SET", args)).await;
    }

    /// Renews leases three times per TTL. It never returns; the caller selects between it and the load.
    pub(crate) async fn keep_renewing(&self, leases: &[Lease]) -> Infallible {
        let mut tick = tokio::time::interval(self.options.lease_ttl / 3);
        tick.tick().await;
        loop {
            tick.tick().await;
            let renewals = leases.iter().map(|lease| {
                let args = vec![lease.token.clone().into(), number(millis(self.options.lease_ttl))];
                let keys = vec![self.keys().lock(lease.id)];
                let renewed = self.run::<i64>(&self.scripts.renew, keys, args);
                self.counted(RedisOperation::Lease, renewed)
            });
            // If a renewal fails, the lease may expire; the fill then returns `Lost`.
            drop(join_all(renewals).await);
        }
    }

    /// Releases leases without a fill, so that other loads need not wait for them to expire.
    pub(crate) async fn release(&self, leases: &[Lease]) {
        let releases = leases.iter().map(|lease| {
            let args = vec![lease.token.clone().into()];
            let keys = vec![self.keys().lock(lease.id)];
            let released = self.run::<i64>(&self.scripts.release, keys, args);
            self.counted(RedisOperation::Lease, released)
        });
        // If a release fails, the lease expires.
        drop(join_all(releases).await);
    }

    /// The pause before the next attempt while another instance loads: exponential from 4 to 64 ms, jittered down to half.
    #[must_use]
    pub(crate) fn poll_pause(&self, attempt: u32) -> Duration {
        let ceiling = Duration::from_millis(4) * 2_u32.pow(attempt.min(4));
        ceiling.mul_f64(rand::random_range(0.5..1.0))
    }
}

/// The TTL of an entry in Redis, in ms. At least 1: Redis rejects `PX 0`, and the old entry would stay.
pub(super) fn lifetime(entry: &Entry) -> Value {
    number(millis(entry.ttl().hard).max(1))
}

pub(super) fn number(value: u64) -> Value {
    Value::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}
