//! The Redis servers, and which of them serves which key.
//!
//! A cluster is routed here and not by fred: each server has its own connections and breaker, so that a failed server affects
//! its own keys only. (fred's cluster client reconnects to all servers when one fails.)

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::interfaces::ClientLike;
use fred::types::cluster::ClusterRouting;
use fred::types::config::{Config, Server, ServerConfig};
use fred::types::{Builder, ClusterHash, CustomCommand, Value};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;

use super::RedisOptions;
use super::node::{NoReply, Node, NodeCommand, config_of};
use super::refusal::{CONNECT, RedisRefusals, SLOTS as EVERY_SLOT};
use super::slots::{self, Range, Redirect};
use crate::metrics::{Metrics, RedisRefusal};

const SLOTS: usize = 16_384;
/// The slot map of a cluster is read again after this long, even without a redirect.
const REMAP: Duration = Duration::from_secs(5);
/// A server without slots that was the target of a redirect is kept this long, because slots are migrating to it.
const KEEP_OLD_NODES: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Nodes {
    config: Config,
    options: RedisOptions,
    metrics: Arc<Metrics>,
    /// The configured servers of a cluster, which are asked for the slot map while no node is known. Empty without a cluster.
    seeds: Vec<Server>,
    map: ArcSwap<Map>,
    mapped: Mutex<Option<Instant>>,
    outdated: AtomicBool,
    /// Refusals of the cluster as a whole.
    refusals: RedisRefusals,
}

#[derive(Clone, Debug, Default)]
struct Map {
    nodes: Vec<Arc<Node>>,
    /// For each slot an index into `nodes`.
    slots: Vec<Option<u16>>,
}

impl Nodes {
    pub(super) fn new(
        config: Config,
        options: &RedisOptions,
        metrics: Arc<Metrics>,
    ) -> Result<Self, Error> {
        let (seeds, nodes) = match &config.server {
            ServerConfig::Clustered { hosts, .. } => (hosts.clone(), Vec::new()),
            server => {
                let node = Node::connect(named(server)?, &config, options, &metrics)?;
                (Vec::new(), vec![Arc::new(node)])
            }
        };
        let asked: Vec<String> = seeds.iter().map(Server::to_string).collect();
        Ok(Self {
            config,
            options: options.clone(),
            seeds,
            refusals: RedisRefusals::new(asked.join(","), true),
            metrics,
            map: ArcSwap::from_pointee(Map { nodes, slots: Vec::new() }),
            mapped: Mutex::new(None),
            outdated: AtomicBool::new(false),
        })
    }

    pub(super) fn is_cluster(&self) -> bool {
        !self.seeds.is_empty()
    }

    pub(super) fn all(&self) -> Vec<Arc<Node>> {
        self.map.load().nodes.clone()
    }

    /// The refusals of each node, and those of the cluster as a whole.
    pub(super) fn refusals(&self) -> Vec<impl std::ops::Deref<Target = RedisRefusals>> {
        let nodes = self.all().into_iter().map(OfNode::Node);
        nodes.chain([OfNode::Cluster(&self.refusals)]).collect()
    }

    /// The refusals of the cluster as a whole.
    pub(super) fn of_cluster(&self) -> &RedisRefusals {
        &self.refusals
    }

    /// The user that connects.
    pub(super) fn user(&self) -> &str {
        self.config.username.as_deref().unwrap_or("default")
    }

    /// Records every node without a connection as unreachable.
    pub(super) fn note_unreachable(&self, error_text: &str) {
        let nodes = self.all();
        if nodes.is_empty() {
            self.refusals.is_unreachable(error_text);
        }
        for node in nodes.iter().filter(|node| node.connections() == 0) {
            node.refusals.is_unreachable(error_text);
        }
    }

    /// The node that serves `key`; `None` while its slot has none.
    pub(super) fn of_key(&self, key: &[u8]) -> Option<Arc<Node>> {
        let map = self.map.load();
        let place = if self.is_cluster() {
            usize::from((*map.slots.get(usize::from(ClusterRouting::hash_key(key)))?)?)
        } else {
            0
        };
        map.nodes.get(place).cloned()
    }

    /// Sends a command to the node that serves `key`, and follows one redirect.
    pub(super) async fn send(&self, key: &Bytes, command: NodeCommand) -> Result<Value, NoReply> {
        let node = self.of_key(key).ok_or(NoReply::Refused)?;
        if !self.is_cluster() {
            return node.send(command).await;
        }
        match node.send(command.clone()).await {
            Err(NoReply::Failed(error)) => match Redirect::of(&error, &node.server) {
                Some(redirect) => self.follow(redirect, command).await,
                None => {
                    if error.details().starts_with("CLUSTERDOWN") {
                        self.outdated.store(true, Ordering::Relaxed);
                    }
                    Err(NoReply::Failed(error))
                }
            },
            reply => reply,
        }
    }

    async fn follow(&self, to: Redirect, command: NodeCommand) -> Result<Value, NoReply> {
        let known = self.map.load().nodes.iter().find(|node| node.server == to.server).cloned();
        let node = match known {
            Some(node) => node,
            None => self.adopt(to.server).map_err(NoReply::Failed)?,
        };
        if to.moved {
            self.outdated.store(true, Ordering::Relaxed);
            node.send(command).await
        } else {
            node.send_asking(command).await
        }
    }

    /// Adds a server without slots. Commands to it fail until a connection is established.
    fn adopt(&self, server: Server) -> Result<Arc<Node>, Error> {
        let node = Arc::new(Node::connect(server, &self.config, &self.options, &self.metrics)?);
        self.map.rcu(|map| {
            let mut map = Map::clone(map);
            map.nodes.push(Arc::clone(&node));
            map
        });
        Ok(node)
    }

    /// A client with one connection to `server`, for a subscription.
    pub(super) fn client(&self, server: &Server) -> Result<Client, Error> {
        Builder::from_config(config_of(server, &self.config))
            .set_policy(super::reconnect_policy())
            .set_connection_config(super::connection_config())
            .build()
    }

    /// Reads the slot map again if it is old, if a redirect proved it outdated, or if a node's breaker is open.
    pub(super) async fn remap(&self) {
        self.refusals.end_recovered();
        let fresh = self.mapped.lock().is_some_and(|mapped| mapped.elapsed() < REMAP);
        let sound = self.all().iter().all(|node| node.breaker.admits());
        let outdated = self.outdated.swap(false, Ordering::Relaxed);
        if !self.is_cluster() || (fresh && sound && !outdated) {
            return;
        }
        match self.ask_for_map().await {
            Ok(ranges) => {
                self.refusals.is_reached();
                self.refusals.succeeded(CONNECT);
                self.apply(&ranges).await;
            }
            Err(errors) if self.all().is_empty() => {
                errors.iter().for_each(|error| self.refusals.failed(error, None));
                self.refusals.is_not_reached(errors.first().map_or("", Error::details));
            }
            // Each node's own probe reports that it is unreachable.
            Err(errors) => {
                tracing::debug!(?errors, "no node returned the slot map; the old one stays")
            }
        }
    }

    /// Takes the first reply, of the nodes in use or else of the configured servers.
    async fn ask_for_map(&self) -> Result<Vec<Range>, Vec<Error>> {
        let nodes = self.all();
        let asked = nodes.iter().map(|node| {
            async {
                let slots = NodeCommand::new("CLUSTER", vec!["SLOTS".into()]);
                ranges(node.transmit(slots).await?, &node.server)
            }
            .boxed()
        });
        if let Ok(ranges) = first_ok(asked.collect()).await {
            return Ok(ranges);
        }
        first_ok(self.seeds.iter().map(|seed| self.ask_seed(seed).boxed()).collect()).await
    }

    async fn ask_seed(&self, seed: &Server) -> Result<Vec<Range>, Error> {
        let server = ServerConfig::Centralized { server: seed.clone() };
        let config = Config { server, fail_fast: true, ..self.config.clone() };
        let client: Client = Builder::from_config(config)
            .set_connection_config(super::connection_config())
            .build()?;
        let asked = async {
            client.init().await?;
            let slots = CustomCommand::new_static("CLUSTER", ClusterHash::FirstKey, false);
            ranges(client.custom(slots, vec!["SLOTS"]).await?, seed)
        };
        let answer = tokio::time::timeout(Duration::from_secs(1), asked).await;
        let _ = tokio::time::timeout(self.options.command_timeout, client.quit()).await;
        answer.unwrap_or_else(|_| Err(no_server()))
    }

    /// Switches to a new slot map: keeps the nodes that are still in it, and closes the others.
    async fn apply(&self, ranges: &[Range]) {
        let before = self.all();
        let mut map = Map { nodes: Vec::new(), slots: vec![None; SLOTS] };
        for range in ranges {
            let Ok(place) = self.place(&mut map, &before, &range.server) else { continue };
            map.slots[usize::from(range.first)..=usize::from(range.last)].fill(Some(place));
        }
        give_tags(&map);
        self.note_uncovered(map.slots.iter().filter(|slot| slot.is_none()).count());
        let is_used = |node: &Arc<Node>| map.nodes.iter().any(|used| Arc::ptr_eq(node, used));
        let (adopted, gone): (Vec<_>, Vec<_>) = before
            .into_iter()
            .filter(|node| !is_used(node))
            .partition(|node| node.since.elapsed() < KEEP_OLD_NODES && !self.had_slots(node));
        map.nodes.extend(adopted);
        self.map.store(Arc::new(map));
        *self.mapped.lock() = Some(Instant::now());
        gone.iter().for_each(|node| node.refusals.end_all());
        join_all(gone.iter().map(|node| node.close())).await;
    }

    fn note_uncovered(&self, slots: usize) {
        if slots == 0 {
            self.refusals.succeeded(EVERY_SLOT);
        } else {
            let error_text = format!("{slots} of {SLOTS} slots");
            self.refusals.begin(RedisRefusal::NoSlots, EVERY_SLOT, &error_text);
        }
    }

    /// The index of `server` in `map`, to which it is added if it is missing.
    fn place(&self, map: &mut Map, before: &[Arc<Node>], server: &Server) -> Result<u16, Error> {
        let is_it = |node: &&Arc<Node>| node.server == *server;
        if let Some(place) = map.nodes.iter().position(|node| is_it(&node)) {
            return Ok(u16::try_from(place).expect("fewer servers than slots"));
        }
        let node = match before.iter().find(is_it) {
            Some(node) => Arc::clone(node),
            None => {
                Arc::new(Node::connect(server.clone(), &self.config, &self.options, &self.metrics)?)
            }
        };
        map.nodes.push(node);
        Ok(u16::try_from(map.nodes.len() - 1).expect("fewer servers than slots"))
    }

    fn had_slots(&self, node: &Arc<Node>) -> bool {
        let map = self.map.load();
        let place = map.nodes.iter().position(|known| Arc::ptr_eq(known, node));
        map.slots.iter().flatten().any(|slot| Some(usize::from(*slot)) == place)
    }
}

/// A hash tag that no product has: product keys have their id as the tag.
pub(super) fn hash_tag(tag: u32) -> String {
    format!("node-{tag}")
}

/// Gives each node with slots the hash tag with the smallest number that hashes to one of its slots, so that every node can
/// hold a key for its replication id.
fn give_tags(map: &Map) {
    let mut without: Vec<u16> = map.slots.iter().flatten().copied().collect();
    without.sort_unstable();
    without.dedup();
    for tag in 0.. {
        if without.is_empty() {
            return;
        }
        let slot = ClusterRouting::hash_key(hash_tag(tag).as_bytes());
        if let Some(place) = map.slots[usize::from(slot)]
            && let Some(found) = without.iter().position(|other| *other == place)
        {
            map.nodes[usize::from(place)].set_tag(tag);
            without.swap_remove(found);
        }
    }
}

/// The first success, or all errors.
async fn first_ok<T>(asked: Vec<BoxFuture<'_, Result<T, Error>>>) -> Result<T, Vec<Error>> {
    let mut asked: FuturesUnordered<_> = asked.into_iter().collect();
    let mut errors = Vec::new();
    while let Some(answer) = asked.next().await {
        match answer {
            Ok(answer) => return Ok(answer),
            Err(error) => errors.push(error),
        }
    }
    Err(errors)
}

enum OfNode<'a> {
    Node(Arc<Node>),
    Cluster(&'a RedisRefusals),
}

impl std::ops::Deref for OfNode<'_> {
    type Target = RedisRefusals;

    fn deref(&self) -> &RedisRefusals {
        match self {
            Self::Node(node) => &node.refusals,
            Self::Cluster(refusals) => refusals,
        }
    }
}

fn ranges(slots: Value, asked: &Server) -> Result<Vec<Range>, Error> {
    let ranges = slots::ranges(slots, asked)?;
    // A node that was removed from the cluster, or has not joined it yet, returns no slots.
    if ranges.is_empty() { Err(no_server()) } else { Ok(ranges) }
}

/// What logs call the server: of a socket the path, of sentinels the name of what they watch, and the first of them.
fn named(server: &ServerConfig) -> Result<Server, Error> {
    let first = server.hosts().into_iter().next().ok_or_else(no_server)?;
    Ok(match server {
        ServerConfig::Sentinel { service_name, .. } => {
            Server { host: format!("{service_name}@{}", first.host).into(), ..first }
        }
        _ => first,
    })
}

pub(super) fn no_server() -> Error {
    Error::new(ErrorKind::Routing, "no server for this key is known, or it did not answer in time")
}
