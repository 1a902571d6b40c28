//! Hints: an instance publishes what it has written, so that the others observe it within a millisecond.
//!
//! Correctness does not depend on them. A lost hint delays the change by one poll interval; the next poll discards a wrong one.

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
use super::nodes::{Nodes, no_server};
use super::probe::name_connection;
use super::{Redis, Scope, Unavailable};
use crate::metrics::RedisOperation;
use crate::product::{Change, ProductId, Revision, Version};

/// Changes in one message. For more, the message is empty, and the other instances poll.
const MAX_CHANGES: usize = 1_000;
/// Bytes of a change: id (8), version (8), whether it is a deletion (1).
const CHANGE_BYTES: usize = 17;
/// The interval between checks of the subscription, and between attempts to connect.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// The timeout of a connection, a subscription and a ping.
const CONNECT: Duration = Duration::from_secs(1);

/// A message of another instance.
#[derive(Debug)]
pub(crate) enum Hint {
    /// These products changed.
    Changes(Vec<Change>),
    /// Something changed; a poll is needed to read what.
    Poll,
}

impl Redis {
    /// Publishes changes to the other instances.
    pub(crate) async fn publish_hint(&self, changes: &[Change]) -> Result<(), Unavailable> {
        let packed = if changes.len() > MAX_CHANGES { Bytes::new() } else { pack(changes) };
        let channel = self.keys().channel();
        let publish = NodeCommand::new("PUBLISH", vec![channel.clone().into(), packed.into()]);
        let reply = self.nodes.send(&channel, publish);
        self.counted(RedisOperation::Hint, reply).await.map(drop)
    }

    /// Subscribes to the changes that instances publish.
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
    /// Waits for the next hint. While Redis is unreachable, it retries without limit.
    pub(crate) async fn next(&mut self) -> Hint {
        loop {
            let Some(subscription) = &mut self.subscription else {
                if let Err(error) = self.subscribe().await {
                    tracing::debug!(%error, "the subscription to hints failed; retrying");
                    tokio::time::sleep(CHECK_INTERVAL).await;
                    continue;
                }
                // What was published before the subscription is missed.
                return Hint::Poll;
            };
            match tokio::time::timeout(CHECK_INTERVAL, subscription.messages.recv()).await {
                Ok(Ok(message)) => match message.value.into_bytes().and_then(unpack) {
                    Some(changes) if !changes.is_empty() => return Hint::Changes(changes),
                    // Empty because of too many changes, or published by another program.
                    _ => return Hint::Poll,
                },
                Ok(Err(RecvError::Lagged(_))) => return Hint::Poll,
                Ok(Err(RecvError::Closed)) => self.end().await,
                Err(_) => self.check_subscription().await,
            }
        }
    }

    async fn subscribe(&mut self) -> Result<(), Error> {
        let channel = self.scope.load().channel();
        let node = self.nodes.of_key(&channel).ok_or_else(no_server)?;
        let client = self.nodes.client(&node.server)?;
        // Taken before the connection is made, so that no message is missed. fred resubscribes by itself after a reconnection.
        let messages = client.message_rx();
        drop(client.connect());
        let connected = tokio::time::timeout(CONNECT, client.wait_for_connect());
        connected.await.unwrap_or_else(|_| Err(no_server()))?;
        let _ = tokio::time::timeout(CONNECT, name_connection(client.clone())).await;
        let subscribed = tokio::time::timeout(
            CONNECT,
            client.subscribe(String::from_utf8_lossy(&channel).into_owned()),
        );
        subscribed.await.unwrap_or_else(|_| Err(no_server()))?;
        let server = node.server.clone();
        self.subscription = Some(Subscription { channel, server, client, messages });
        Ok(())
    }

    /// Ends the subscription when the epoch, and so the channel, has changed, when the server has left the cluster, or when the
    /// connection is dead.
    async fn check_subscription(&mut self) {
        let Some(Subscription { channel, server, client, .. }) = &self.subscription else { return };
        let current = self.scope.load().channel();
        let serves = self.nodes.of_key(&current).is_some_and(|node| node.server == *server);
        // A connection that was cut off without a FIN or RST answers no ping.
        let ping = tokio::time::timeout(CONNECT, client.ping::<Value>(None)).await;
        if current != *channel || !serves || !matches!(ping, Ok(Ok(_))) {
            self.end().await;
        }
    }

    async fn end(&mut self) {
        if let Some(Subscription { client, .. }) = self.subscription.take() {
            // Bounded: no message is waited for on this connection.
            let _ = tokio::time::timeout(CHECK_INTERVAL, client.quit()).await;
        }
    }
}

fn pack(changes: &[Change]) -> Bytes {
    let mut packed = BytesMut::with_capacity(changes.len() * CHANGE_BYTES);
    for change in changes {
        packed.put_i64(change.id.get());
        packed.put_i64(change.revision.version.0);
        packed.put_u8(change.revision.deleted.into());
    }
    packed.freeze()
}

fn unpack(mut packed: Bytes) -> Option<Vec<Change>> {
    let mut changes =
        Vec::with_capacity(packed.len().min(MAX_CHANGES * CHANGE_BYTES) / CHANGE_BYTES);
    while packed.has_remaining() && changes.len() < MAX_CHANGES {
        if packed.remaining() < CHANGE_BYTES {
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
    fn unpack_reverses_pack() {
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
