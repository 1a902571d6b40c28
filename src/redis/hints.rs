//! Hints: what instances publish when they have written, so that the others hear of it within a millisecond.
//!
//! Nothing rests on them. A hint that is lost costs one poll interval, and one that is wrong is forgotten with the next poll.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use fred::clients::Client;
use fred::error::Error;
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use fred::types::config::Server;
use fred::types::{Message, Value};
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::node::NodeCommand;
use super::nodes::{Nodes, nobody};
use super::{Redis, Scope, Unavailable};
use crate::metrics::RedisOperation;
use crate::product::{Change, ProductId, Revision, Version};

/// Changes in one message. Of more the others are only told to poll.
const PACKED: usize = 1_000;
/// Bytes of a change: id, version, whether it is a deletion.
const CHANGE: usize = 17;
/// Between looks at where hints come from, and between tries to connect.
const LOOK: Duration = Duration::from_millis(500);
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(1);

/// What another instance has published.
#[derive(Debug)]
pub(crate) enum Hint {
    /// These products changed.
    Changes(Vec<Change>),
    /// Something changed: only a poll tells what.
    Poll,
}

impl Redis {
    /// Tells the other instances what changed.
    pub(crate) async fn publish_hint(&self, changes: &[Change]) -> Result<(), Unavailable> {
        let packed = if changes.len() > PACKED { Bytes::new() } else { pack(changes) };
        let channel = self.keys().channel();
        let publish = NodeCommand::new("PUBLISH", vec![channel.clone().into(), packed.into()]);
        let reply = self.nodes.send(&channel, publish).await;
        self.counted(RedisOperation::Hint, reply).map(drop)
    }

    /// Hears what other instances publish.
    pub(crate) fn hints(&self) -> Hints {
        Hints { nodes: Arc::clone(&self.nodes), scope: self.scope(), subscription: None }
    }
}

/// One instance's subscription.
#[derive(Debug)]
pub(crate) struct Hints {
    nodes: Arc<Nodes>,
    scope: Scope,
    subscription: Option<Subscription>,
}

#[derive(Debug)]
struct Subscription {
    channel: Bytes,
    server: Server,
    client: Client,
    messages: Receiver<Message>,
}

impl Hints {
    /// Waits for the next one, however long Redis is away.
    pub(crate) async fn next(&mut self) -> Hint {
        loop {
            let Some(subscription) = &mut self.subscription else {
                if let Err(error) = self.subscribe().await {
                    tracing::debug!(%error, "changes are not hinted at");
                    tokio::time::sleep(LOOK).await;
                    continue;
                }
                // What was published meanwhile is not heard.
                return Hint::Poll;
            };
            match tokio::time::timeout(LOOK, subscription.messages.recv()).await {
                Ok(Ok(message)) => match message.value.into_bytes().and_then(unpack) {
                    Some(changes) if !changes.is_empty() => return Hint::Changes(changes),
                    // Of many changes, or by another program.
                    _ => return Hint::Poll,
                },
                Ok(Err(RecvError::Lagged(_))) => return Hint::Poll,
                Ok(Err(RecvError::Closed)) => self.end().await,
                Err(_) => self.move_on().await,
            }
        }
    }

    async fn subscribe(&mut self) -> Result<(), Error> {
        let channel = self.scope.load().channel();
        let node = self.nodes.of_key(&channel).ok_or_else(nobody)?;
        let client = self.nodes.client(&node.server)?;
        // Before the connection is made: fred subscribes again by itself whenever it has reconnected.
        let messages = client.message_rx();
        drop(client.connect());
        let connected = tokio::time::timeout(CONNECT, client.wait_for_connect());
        connected.await.unwrap_or_else(|_| Err(nobody()))?;
        let subscribed = tokio::time::timeout(
            CONNECT,
            client.subscribe(String::from_utf8_lossy(&channel).into_owned()),
        );
        subscribed.await.unwrap_or_else(|_| Err(nobody()))?;
        let server = node.server.clone();
        self.subscription = Some(Subscription { channel, server, client, messages });
        Ok(())
    }

    /// Another epoch has another channel, and in a cluster a server may be gone.
    async fn move_on(&mut self) {
        let Some(Subscription { channel, server, client, .. }) = &self.subscription else { return };
        let current = self.scope.load().channel();
        let serves = self.nodes.of_key(&current).is_some_and(|node| node.server == *server);
        // A connection that was cut off without a word answers no ping.
        let ping = tokio::time::timeout(CONNECT, client.ping::<Value>(None)).await;
        if current != *channel || !serves || !matches!(ping, Ok(Ok(_))) {
            self.end().await;
        }
    }

    async fn end(&mut self) {
        if let Some(Subscription { client, .. }) = self.subscription.take() {
            // Nothing is lost with a connection that does not close.
            let _ = tokio::time::timeout(LOOK, client.quit()).await;
        }
    }
}

fn pack(changes: &[Change]) -> Bytes {
    let mut packed = BytesMut::with_capacity(changes.len() * CHANGE);
    for change in changes {
        packed.put_i64(change.id.get());
        packed.put_i64(change.revision.version.0);
        packed.put_u8(change.revision.deleted.into());
    }
    packed.freeze()
}

fn unpack(mut packed: Bytes) -> Option<Vec<Change>> {
    let mut changes = Vec::with_capacity(packed.len().min(PACKED * CHANGE) / CHANGE);
    while packed.has_remaining() && changes.len() < PACKED {
        if packed.remaining() < CHANGE {
            return None;
        }
        let id = ProductId::new(packed.get_i64())?;
        let version = Version(packed.get_i64());
        let deleted = packed.get_u8() == 1;
        changes.push(Change { id, revision: Revision { version, deleted } });
    }
    Some(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_come_back_as_they_went() {
        let change = |id, version, deleted| Change {
            id: ProductId::new(id).expect("positive"),
            revision: Revision { version: Version(version), deleted },
        };
        let changes = [change(1, i64::MAX, false), change(i64::MAX, 7, true)];
        let packed = pack(&changes);
        assert_eq!(unpack(packed.clone()).as_deref(), Some(&changes[..]));
        assert_eq!(unpack(packed.slice(..20)), None);
    }
}
