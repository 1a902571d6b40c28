//! Leases: who loads a product from Postgres. A lease saves work, it never decides what is right; a fill is
//! accepted only from its holder, and every write breaks it.

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

/// The right to load a product and to fill Redis with it. Dropped, it expires by itself.
#[derive(Debug)]
pub(crate) struct Lease {
    id: ProductId,
    token: Bytes,
}

/// What asking for a lease came to.
#[derive(Debug)]
pub(crate) struct Asked {
    /// The lease, unless somebody else holds it.
    pub(crate) lease: Option<Lease>,
    /// What Redis holds by now.
    pub(crate) entry: Option<Entry>,
}

/// What a fill came to.
#[derive(Debug)]
pub(crate) enum Filled {
    /// Redis holds what was offered.
    Stored,
    /// The lease was broken or had expired: what was loaded may be old. What Redis holds instead.
    Lost(Option<Entry>),
    /// Redis holds this, which is newer.
    Older(Entry),
}

impl Redis {
    /// Asks for the leases of several products, pipelined; one answer for each.
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
        let reply = self.run(&self.scripts.try_lease, keys, args).await;
        let (mine, value): (i64, Value) = self.counted(RedisOperation::Lease, reply)?;
        let lease = (mine == 1).then_some(Lease { id, token });
        self.metrics.leases.inc(if lease.is_some() {
            LeaseOutcome::Acquired
        } else {
            LeaseOutcome::Held
        });
        Ok(Asked { lease, entry: self.read_value(id, value).await })
    }

    /// Fills Redis with what was loaded under `lease`, and gives the lease back.
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
        let reply = self.run(&self.scripts.fill, keys, args).await;
        let mut reply: Vec<Value> = self.counted(RedisOperation::Fill, reply)?;
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

    /// With the protection off, a lease that was lost is as good as one that is held.
    async fn take_lease_back(&self, lease: &Lease) {
        if self.controls.holds(Protection::FillLease) {
            return;
        }
        let key = self.keys().lock(lease.id);
        let args = vec![key.clone().into(), lease.token.clone().into()];
        let _ = self.nodes.send(&key, NodeCommand::new("SET", args)).await;
    }

    /// Extends leases for ever, three times in each of their TTLs; to be raced against the load.
    pub(crate) async fn keep_renewing(&self, leases: &[Lease]) -> Infallible {
        let mut tick = tokio::time::interval(self.options.lease_ttl / 3);
        tick.tick().await;
        loop {
            tick.tick().await;
            let renewals = leases.iter().map(|lease| {
                let args = vec![lease.token.clone().into(), number(millis(self.options.lease_ttl))];
                self.run::<i64>(&self.scripts.renew, vec![self.keys().lock(lease.id)], args)
            });
            for renewed in join_all(renewals).await {
                // A lease that could not be renewed is lost, and the fill will be told so.
                let _ = self.counted(RedisOperation::Lease, renewed);
            }
        }
    }

    /// Gives leases back without a fill, so that nobody waits for them to expire.
    pub(crate) async fn release(&self, leases: &[Lease]) {
        let releases = leases.iter().map(|lease| {
            let args = vec![lease.token.clone().into()];
            self.run::<i64>(&self.scripts.release, vec![self.keys().lock(lease.id)], args)
        });
        for released in join_all(releases).await {
            // What could not be given back expires by itself.
            let _ = self.counted(RedisOperation::Lease, released);
        }
    }

    /// How long to wait for somebody else's load before asking again.
    #[must_use]
    pub(crate) fn poll_pause(&self, attempt: u32) -> Duration {
        let ceiling = Duration::from_millis(4) * 2_u32.pow(attempt.min(4));
        ceiling.mul_f64(rand::random_range(0.5..1.0))
    }
}

/// How long Redis keeps an entry. It takes no zero, which would leave the old one in its place.
pub(super) fn lifetime(entry: &Entry) -> Value {
    number(millis(entry.ttl().hard).max(1))
}

pub(super) fn number(value: u64) -> Value {
    Value::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}
