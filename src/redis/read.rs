use bytes::Bytes;
use fred::types::Value;
use futures_util::FutureExt;
use futures_util::future::join_all;

use super::node::{NoReply, NodeCommand};
use super::{Redis, Unavailable};
use crate::caller::Caller;
use crate::entry::Entry;
use crate::metrics::RedisOperation;
use crate::product::ProductId;

/// Products per command or pipeline. Too high: the commands of other callers wait behind it. Too low: a batch takes more round
/// trips.
pub(crate) const CHUNK: usize = 100;

impl Redis {
    /// Reads entries, with one result for each id in order. Each chunk takes one round trip, per node in a cluster.
    pub(crate) async fn get_many(
        &self,
        ids: &[ProductId],
        caller: Caller,
    ) -> Vec<Result<Option<Entry>, Unavailable>> {
        let mut entries = Vec::with_capacity(ids.len());
        for chunk in ids.chunks(CHUNK) {
            entries.append(&mut self.get_chunk(chunk, caller).await);
        }
        entries
    }

    async fn get_chunk(
        &self,
        ids: &[ProductId],
        caller: Caller,
    ) -> Vec<Result<Option<Entry>, Unavailable>> {
        if self.nodes.is_cluster() || ids.len() == 1 {
            return join_all(ids.iter().map(|id| self.get(*id, caller))).await;
        }
        let Some(first) = ids.first() else { return Vec::new() };
        let Ok(admitted) = self.admit(caller, ids.len()).await else {
            return vec![Err(Unavailable); ids.len()];
        };
        let keys = ids.iter().map(|id| Value::Bytes(self.keys().entry(*id))).collect();
        let first = self.keys().entry(*first);
        let reply =
            self.nodes.send(&first, NodeCommand::new("MGET", keys)).map(|reply| match reply {
                Err(NoReply::Failed(error))
                    if ["NOPERM", "CROSSSLOT"]
                        .iter()
                        .any(|word| error.details().starts_with(word)) =>
                {
                    Ok(None)
                }
                reply => reply.map(Some),
            });
        let values = match self.counted(RedisOperation::Get, reply).await {
            Ok(Some(Value::Array(values))) => values,
            Ok(None) => {
                // Single GETs may still be allowed.
                drop(admitted);
                return join_all(ids.iter().map(|id| self.get(*id, caller))).await;
            }
            _ => return vec![Err(Unavailable); ids.len()],
        };
        let (mut entries, mut unreadable) = (Vec::with_capacity(ids.len()), Vec::new());
        for (id, value) in ids.iter().zip(values) {
            let entry = self.entry_in(*id, value);
            entries.push(Ok(entry.unwrap_or_else(|bytes| {
                unreadable.push(self.discard(*id, bytes));
                None
            })));
        }
        join_all(unreadable).await;
        entries
    }

    async fn get(&self, id: ProductId, caller: Caller) -> Result<Option<Entry>, Unavailable> {
        let _admitted = self.admit(caller, 1).await?;
        let key = self.keys().entry(id);
        let get = NodeCommand::new("GET", vec![key.clone().into()]);
        let reply = self.nodes.send(&key, get).map(wrong_type_as_value);
        let value = self.counted(RedisOperation::Get, reply).await?;
        Ok(self.read_value(id, value).await)
    }
}

/// A key of another type than string becomes an empty, and so unreadable, value.
pub(super) fn wrong_type_as_value(reply: Result<Value, NoReply>) -> Result<Value, NoReply> {
    match reply {
        Err(NoReply::Failed(error)) if error.details().starts_with("WRONGTYPE") => {
            Ok(Value::Bytes(Bytes::new()))
        }
        reply => reply,
    }
}
