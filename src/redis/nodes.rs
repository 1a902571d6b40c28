//! Which server serves which key: one for all, or in a cluster each its slots.
//!
//! The cluster is routed here, and each server has connections and a breaker of its own, so that one which is down
//! costs nobody but its own keys. (fred's client of a cluster reconnects as a whole when one node is gone.)

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
use futures_util::future::{join_all, select_ok};
use parking_lot::Mutex;

use super::RedisOptions;
use super::node::{Command, NoReply, Node};
use crate::metrics::Metrics;

const SLOTS: usize = 16_384;
/// A map of the cluster is looked at again after this long, though nobody was sent elsewhere.
const REMAP: Duration = Duration::from_secs(5);
/// A server without slots that somebody was sent to is kept this long: slots are being moved there.
const KEPT: Duration = Duration::from_secs(60);

/// The servers.
#[derive(Debug)]
pub(super) struct Nodes {
    config: Config,
    options: RedisOptions,
    metrics: Arc<Metrics>,
    /// Where a cluster is asked who serves what, when nobody is known who could say. Empty: it is no cluster.
    seeds: Vec<Server>,
    map: ArcSwap<Map>,
    mapped: Mutex<Option<Instant>>,
    outdated: AtomicBool,
}

#[derive(Clone, Debug, Default)]
struct Map {
    nodes: Vec<Arc<Node>>,
    /// For each slot a place in `nodes`.
    slots: Vec<Option<u16>>,
}

/// Where a command belongs instead.
struct Redirect {
    /// For good; otherwise only this command.
    moved: bool,
    server: Server,
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
                let server = server.hosts().into_iter().next().ok_or_else(nobody)?;
                let node = Node::connect(server, &config, options, &metrics)?;
                (Vec::new(), vec![Arc::new(node)])
            }
        };
        Ok(Self {
            config,
            options: options.clone(),
            seeds,
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

    /// Who serves `key`; `None` while nobody does.
    pub(super) fn of_key(&self, key: &[u8]) -> Option<Arc<Node>> {
        let map = self.map.load();
        let place = if self.is_cluster() {
            usize::from((*map.slots.get(usize::from(ClusterRouting::hash_key(key)))?)?)
        } else {
            0
        };
        map.nodes.get(place).cloned()
    }

    /// Sends a command to whoever serves `key`, and follows it once when it is sent elsewhere.
    pub(super) async fn send(&self, key: &Bytes, command: Command) -> Result<Value, NoReply> {
        let node = self.of_key(key).ok_or(NoReply::Refused)?;
        if !self.is_cluster() {
            return node.send(command).await;
        }
        match node.send(command.clone()).await {
            Err(NoReply::Failed(error)) => match Redirect::of(&error, &node.server) {
                Some(redirect) => self.follow(redirect, command).await,
                None => Err(NoReply::Failed(error)),
            },
            reply => reply,
        }
    }

    async fn follow(&self, to: Redirect, command: Command) -> Result<Value, NoReply> {
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

    /// A server that has no slots yet. It is of use as soon as its connections stand.
    fn adopt(&self, server: Server) -> Result<Arc<Node>, Error> {
        let node = Arc::new(Node::connect(server, &self.config, &self.options, &self.metrics)?);
        self.map.rcu(|map| {
            let mut map = Map::clone(map);
            map.nodes.push(Arc::clone(&node));
            map
        });
        Ok(node)
    }

    /// A client of `server` with one connection, for a subscription.
    pub(super) fn client(&self, server: &Server) -> Result<Client, Error> {
        let server = ServerConfig::Centralized { server: server.clone() };
        Builder::from_config(Config { server, ..self.config.clone() })
            .set_policy(super::reconnect_policy())
            .set_connection_config(super::connection_config())
            .build()
    }

    /// Asks the cluster anew who serves what, if there is reason to.
    pub(super) async fn remap(&self) {
        let fresh = self.mapped.lock().is_some_and(|mapped| mapped.elapsed() < REMAP);
        let sound = self.all().iter().all(|node| node.breaker.admits());
        let outdated = self.outdated.swap(false, Ordering::Relaxed);
        if !self.is_cluster() || (fresh && sound && !outdated) {
            return;
        }
        match self.ask_for_map().await {
            Ok(routing) => self.apply(&routing).await,
            Err(error) => tracing::debug!(%error, "nobody says who serves which slot"),
        }
    }

    /// Whoever answers first: of the servers in use, or else of those in the configuration.
    async fn ask_for_map(&self) -> Result<ClusterRouting, Error> {
        let nodes = self.all();
        let asked = nodes.iter().map(|node| {
            async {
                let slots = Command::new("CLUSTER", vec!["SLOTS".into()]);
                routing(node.transmit(slots).await?, &node.server)
            }
            .boxed()
        });
        let asked: Vec<_> = asked.collect();
        if !asked.is_empty()
            && let Ok((routing, _)) = select_ok(asked).await
        {
            return Ok(routing);
        }
        let asked = self.seeds.iter().map(|seed| self.ask_stranger(seed).boxed());
        select_ok(asked).await.map(|(routing, _)| routing)
    }

    async fn ask_stranger(&self, seed: &Server) -> Result<ClusterRouting, Error> {
        let server = ServerConfig::Centralized { server: seed.clone() };
        let config = Config { server, fail_fast: true, ..self.config.clone() };
        let client: Client = Builder::from_config(config)
            .set_connection_config(super::connection_config())
            .build()?;
        let asked = async {
            client.init().await?;
            let slots = CustomCommand::new_static("CLUSTER", ClusterHash::FirstKey, false);
            routing(client.custom(slots, vec!["SLOTS"]).await?, seed)
        };
        let answer = tokio::time::timeout(Duration::from_secs(1), asked).await;
        let _ = tokio::time::timeout(self.options.command_timeout, client.quit()).await;
        answer.unwrap_or_else(|_| Err(nobody()))
    }

    /// Keeps the servers that go on serving, and closes the connections to those that do not.
    async fn apply(&self, routing: &ClusterRouting) {
        let before = self.all();
        let mut map = Map { nodes: Vec::new(), slots: vec![None; SLOTS] };
        for range in routing.slots() {
            let Ok(place) = self.place(&mut map, &before, &range.primary) else { continue };
            map.slots[usize::from(range.start)..=usize::from(range.end)].fill(Some(place));
        }
        let is_used = |node: &Arc<Node>| map.nodes.iter().any(|used| Arc::ptr_eq(node, used));
        let (adopted, gone): (Vec<_>, Vec<_>) = before
            .into_iter()
            .filter(|node| !is_used(node))
            .partition(|node| node.since.elapsed() < KEPT && !self.had_slots(node));
        map.nodes.extend(adopted);
        self.map.store(Arc::new(map));
        *self.mapped.lock() = Some(Instant::now());
        join_all(gone.iter().map(|node| node.close())).await;
    }

    /// The place of `server` in `map`, which it gets now if it has none.
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

impl Redirect {
    /// From `MOVED 3999 127.0.0.1:6381` or `ASK ...`; without a host it is that of whoever said so.
    fn of(error: &Error, said_by: &Server) -> Option<Self> {
        let mut words = error.details().split(' ');
        let moved = match words.next()? {
            "MOVED" => true,
            "ASK" => false,
            _ => return None,
        };
        let (host, port) = words.nth(1)?.rsplit_once(':')?;
        let host = if host.is_empty() { said_by.host.to_string() } else { host.to_owned() };
        Some(Self { moved, server: Server::new(host, port.parse().ok()?) })
    }
}

fn routing(slots: Value, said_by: &Server) -> Result<ClusterRouting, Error> {
    let routing = ClusterRouting::from_cluster_slots(slots, said_by.host.clone())?;
    // One that was expelled, or has just been born, knows nobody.
    if routing.slots().is_empty() { Err(nobody()) } else { Ok(routing) }
}

pub(super) fn nobody() -> Error {
    Error::new(ErrorKind::Routing, "nobody is known to serve this")
}
