//! The change stream: which products changed, for every instance to hear.
//!
//! Entries are numbered without gaps, so that one who follows can tell when it missed some: trimmed, lost in a
//! failover, or flushed. A poll that returns, even empty, proves that nothing was missed before it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use fred::clients::{Client, WithOptions};
use fred::error::Error;
use fred::interfaces::{ClientLike, StreamsInterface};
use fred::types::Value;
use fred::types::config::{Options, Server};
use futures_util::future::join_all;

use super::breaker::Outcome;
use super::entry_bytes::head_of;
use super::lease::number;
use super::nodes::{Nodes, nobody};
use super::{Redis, Unavailable};
use crate::controls::{Controls, Protection};
use crate::metrics::RedisOperation;
use crate::moment::Moment;
use crate::product::{Change, ProductId, Revision, Version};

/// About how many entries the stream keeps: at most 170 MB, if each is as full as it can be. One who falls behind
/// by more starts anew.
const KEPT: u64 = 10_000;
/// Changes in one entry.
const PACKED: usize = 1_000;
/// Entries that one poll takes.
const POLLED: u64 = 100;
/// How long a poll waits for something new.
pub(super) const BLOCK: Duration = Duration::from_millis(500);
/// Bytes of a packed change: id, version, whether it is a deletion.
const CHANGE: usize = 17;

impl Redis {
    /// Tells every instance what changed.
    pub(crate) async fn append_changes(&self, changes: &[Change]) -> Result<(), Unavailable> {
        for packed in changes.chunks(PACKED) {
            let args = vec![number(KEPT), pack(packed).into()];
            let reply = self.run(&self.scripts.append, self.keys.changes(), args).await;
            let _: String = self.counted(RedisOperation::Stream, reply)?;
        }
        Ok(())
    }

    /// Breaks the leases of products that changed, pipelined, and returns which of them Redis holds an
    /// older entry of.
    pub(crate) async fn supersede(
        &self,
        changes: &[Change],
    ) -> Result<Vec<ProductId>, Unavailable> {
        let asked = changes.iter().map(|change| {
            let args = vec![head_of(change.revision).into()];
            self.run_and_break_lease::<i64>(&self.scripts.supersede, change.id, args)
        });
        let mut held = Vec::new();
        for (change, reply) in changes.iter().zip(join_all(asked).await) {
            if self.counted(RedisOperation::Publish, reply)? == 1 {
                held.push(change.id);
            }
        }
        Ok(held)
    }

    /// Follows the change stream on a connection of its own.
    pub(crate) fn follow_changes(&self) -> Follower {
        let timeout = BLOCK + self.options.command_timeout;
        let [stream, _] = self.keys.changes().try_into().expect("two keys");
        Follower {
            nodes: Arc::clone(&self.nodes),
            command: Options { timeout: Some(timeout), ..self.options.command() },
            connection: None,
            stream,
            cursor: None,
            controls: self.controls.clone(),
        }
    }
}

/// Where one who follows has got to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cursor {
    id: StreamId,
    number: i64,
}

/// The id of an entry: milliseconds and a sequence number, in the order of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct StreamId(u64, u64);

/// One instance's ear on the change stream.
#[derive(Debug)]
pub(crate) struct Follower {
    nodes: Arc<Nodes>,
    command: Options,
    /// To the server that holds the stream.
    connection: Option<(Server, Client)>,
    stream: Bytes,
    cursor: Option<Cursor>,
    controls: Controls,
}

/// What a poll came to.
#[derive(Debug)]
pub(crate) enum Poll {
    /// These changes, in order. With a proof, everything appended before that moment has been heard.
    Changes {
        /// What changed.
        changes: Vec<Change>,
        /// Until when nothing was missed.
        proven: Option<Moment>,
    },
    /// Some entries were missed, or this is the beginning: whatever is held from before this moment may be
    /// old.
    Restarted(Moment),
}

impl Follower {
    /// Waits for changes, at most about half a second.
    ///
    /// # Errors
    /// When Redis does not answer, in words for the log. The next poll goes on where this one was.
    pub(crate) async fn poll(&mut self) -> Result<Poll, Error> {
        // It is a loop that comes here: every poll is a probe.
        let nodes = Arc::clone(&self.nodes);
        nodes.stream_breaker.probing();
        let began = Instant::now();
        let polled = self.poll_once().await;
        nodes.stream_breaker.probed(Outcome::of(&polled), began);
        polled.inspect_err(|error| nodes.note(error))
    }

    async fn poll_once(&mut self) -> Result<Poll, Error> {
        self.seek_server().await?;
        let Some(cursor) = self.cursor.clone() else { return self.restart().await };
        let sent = Moment::now();
        let entries = self.read_after(cursor.id).await?;
        if entries.is_empty() {
            return self.prove_idle(&cursor, sent).await;
        }
        let full = entries.len() as u64 == POLLED;
        let mut changes = Vec::new();
        let mut at = cursor;
        for entry in entries {
            let missed = entry.at.number != at.number + 1;
            if missed && self.controls.holds(Protection::GapDetection) {
                return self.restart().await;
            }
            at = entry.at;
            changes.extend(entry.changes);
        }
        self.cursor = Some(at);
        Ok(Poll::Changes { changes, proven: (!full).then_some(sent) })
    }

    /// Connects to the server that holds the stream, if that is another than it was.
    async fn seek_server(&mut self) -> Result<(), Error> {
        let node = self.nodes.of_key(&self.stream).ok_or_else(nobody)?;
        if self.connection.as_ref().is_some_and(|(server, _)| *server == node.server) {
            return Ok(());
        }
        if let Some((_, old)) = self.connection.take() {
            // Nothing is lost with a connection that does not close.
            let _ = tokio::time::timeout(BLOCK, old.quit()).await;
        }
        let client = self.nodes.client(&node.server)?;
        drop(client.connect());
        let connected = tokio::time::timeout(BLOCK * 2, client.wait_for_connect());
        self.connection = Some((node.server.clone(), client.clone()));
        connected.await.unwrap_or_else(|_| Err(nobody()))
    }

    fn client(&self) -> Result<WithOptions<Client>, Error> {
        let (_, client) = self.connection.as_ref().ok_or_else(nobody)?;
        Ok(client.with_options(&self.command))
    }

    /// Begins at the end of the stream.
    async fn restart(&mut self) -> Result<Poll, Error> {
        self.cursor = None;
        let last = self.last().await?;
        self.cursor = Some(last.unwrap_or(Cursor { id: StreamId(0, 0), number: 0 }));
        // Only now: what was read while the end was looked up may have missed what is before it.
        Ok(Poll::Restarted(Moment::now()))
    }

    /// Nothing new came: either nothing happened, or the stream is not the one it was, and ends before the
    /// place where we are.
    async fn prove_idle(&mut self, cursor: &Cursor, sent: Moment) -> Result<Poll, Error> {
        let last = self.last().await?;
        let end = last.map_or(StreamId(0, 0), |last| last.id);
        if end < cursor.id && self.controls.holds(Protection::GapDetection) {
            return self.restart().await;
        }
        // What was appended since the poll will be in the next one.
        Ok(Poll::Changes { changes: Vec::new(), proven: Some(sent) })
    }

    async fn last(&self) -> Result<Option<Cursor>, Error> {
        let stream = self.stream.clone();
        let last: Vec<RawEntry> =
            self.client()?.xrevrange_values(stream, "+", "-", Some(1)).await?;
        last.into_iter().next().map(|raw| Ok(decode(raw)?.at)).transpose()
    }

    async fn read_after(&self, id: StreamId) -> Result<Vec<StreamEntry>, Error> {
        let block = u64::try_from(BLOCK.as_millis()).unwrap_or(u64::MAX);
        let after = format!("{}-{}", id.0, id.1);
        let stream = self.stream.clone();
        let reply: Value = self.client()?.xread(Some(POLLED), Some(block), stream, after).await?;
        if reply.is_null() {
            return Ok(Vec::new());
        }
        let streams: HashMap<String, Vec<RawEntry>> = reply.into_xread_response()?;
        streams.into_values().flatten().map(decode).collect()
    }
}

type RawEntry = (String, HashMap<String, Value>);

struct StreamEntry {
    at: Cursor,
    changes: Vec<Change>,
}

fn decode((id, mut fields): RawEntry) -> Result<StreamEntry, Error> {
    let garbage = || {
        Error::new(fred::error::ErrorKind::Parse, "an entry of the change stream cannot be read")
    };
    let (millis, sequence) = id.split_once('-').ok_or_else(garbage)?;
    let id =
        StreamId(millis.parse().map_err(|_| garbage())?, sequence.parse().map_err(|_| garbage())?);
    let number = fields.remove("n").and_then(|value| value.as_i64()).ok_or_else(garbage)?;
    let packed = fields.remove("c").and_then(Value::into_bytes).ok_or_else(garbage)?;
    Ok(StreamEntry { at: Cursor { id, number }, changes: unpack(packed).ok_or_else(garbage)? })
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
    let mut changes = Vec::with_capacity(packed.len() / CHANGE);
    while packed.has_remaining() {
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
