//! Probes: whether a node answers, what it refuses, and whether it may have lost writes. A loop sends them four times a second;
//! calls never do.

use std::time::{Duration, Instant};

use bytes::Bytes;
use fred::clients::Client;
use fred::error::Error;
use fred::interfaces::{ClientLike, EventInterface};
use fred::types::config::Server;
use fred::types::{ClusterHash, CustomCommand, Value};
use futures_util::future::join_all;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::TryRecvError;

use super::node::{Node, NodeCommand, answered};
use super::refusal::{CONNECT, SINGLE, WRITE};
use super::replication::Probed;
use super::scripts::Scripts;
use crate::findings::Finding;
use crate::metrics::RedisRefusal;

/// The interval between INFO commands while they return no id.
const INFO_INTERVAL: Duration = Duration::from_secs(10);
/// The interval between reconnections to a replica: the name in the URL may lead to the master after a failover.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(5);

/// As `application_name` in PostgreSQL.
const NAME: &str = "hotshelf";

/// Commands without side effects, and their arguments after the key. A probe repeats those that are refused.
const WITHOUT_SIDE_EFFECTS: [(&str, &[&str]); 3] =
    [("MGET", &[]), ("PTTL", &[]), ("ZREVRANGE", &["0", "0"])];

/// fred's events about a node's connections. Failed logins and handshakes are reported only here.
#[derive(Debug)]
pub(super) struct Events {
    errors: Vec<Receiver<(Error, Option<Server>)>>,
    connects: Vec<Receiver<Server>>,
    /// For each connection, whether it was reestablished since [`Node::take_connects`] last returned true.
    was_reconnected: Vec<bool>,
}

/// The scripts of a probe, and its keys on the node.
#[derive(Debug)]
pub(super) struct ProbeContext<'a> {
    pub(super) scripts: &'a Scripts,
    /// Holds the node's replication id.
    pub(super) replication: Bytes,
    /// Always empty; for test writes.
    pub(super) access: Bytes,
}

/// State between probes.
#[derive(Debug, Default)]
pub(super) struct ProbeState {
    /// When INFO last returned no id; `None` while it returns one.
    without_id_at: Option<Instant>,
    /// When [`Node::reconnect`] was last called.
    reconnected: Option<Instant>,
}

/// The result of asking for the server's replication id or run id.
enum Id {
    Known {
        id: String,
        is_replica: bool,
    },
    /// The server returns none, and why.
    Missing(String),
    Unanswered(Error),
    /// Not asked, because the server returned none less than [`INFO_INTERVAL`] ago.
    NotAsked,
}

impl Events {
    pub(super) fn of<C: EventInterface>(clients: &[C]) -> Self {
        Self {
            errors: clients.iter().map(C::error_rx).collect(),
            connects: clients.iter().map(C::reconnect_rx).collect(),
            was_reconnected: vec![false; clients.len()],
        }
    }
}

/// Takes all pending events. Lagged ones may be lost: a failing connection fails again.
fn drain<T: Clone>(receiver: &mut Receiver<T>) -> Vec<T> {
    let mut events = Vec::new();
    loop {
        match receiver.try_recv() {
            Ok(event) => events.push(event),
            Err(TryRecvError::Lagged(_)) => {}
            Err(TryRecvError::Empty | TryRecvError::Closed) => return events,
        }
    }
}

/// Names the connection in CLIENT LIST. Where Redis denies the command, or a proxy lacks it, the connection has no name.
pub(super) async fn name_connection(client: Client) {
    let command = CustomCommand::new_static("CLIENT", ClusterHash::FirstKey, false);
    let _ = client.custom::<Value, _>(command, vec!["SETNAME", NAME]).await;
}

impl Node {
    /// Records connection errors.
    pub(super) fn record_errors(&self) {
        for (error, _) in self.events.lock().errors.iter_mut().flat_map(drain) {
            self.refusals.failed(&error, None);
        }
    }

    /// Returns whether every connection was reestablished since this last returned true, and the new connections.
    fn take_connects(&self) -> (bool, Vec<Client>) {
        let mut new = Vec::new();
        let mut events = self.events.lock();
        let Events { connects, was_reconnected, .. } = &mut *events;
        let connections = self.pool.clients().iter().zip(connects);
        for ((client, connects), was_reconnected) in connections.zip(was_reconnected.iter_mut()) {
            if !drain(connects).is_empty() {
                new.push(client.clone());
                *was_reconnected = true;
            }
        }
        let all = was_reconnected.iter().all(|was_reconnected| *was_reconnected);
        if all {
            was_reconnected.fill(false);
        }
        (all, new)
    }

    /// Probes once. Only one probe may be in flight.
    pub(super) async fn probe(&self, context: &ProbeContext<'_>) -> Probed {
        self.record_errors();
        let (reconnected, new) = self.take_connects();
        self.breaker.probing();
        let began = Instant::now();
        let get = NodeCommand::new("GET", vec![context.replication.clone().into()]);
        let name = join_all(new.into_iter().map(name_connection));
        let (key, id, _) = tokio::join!(self.transmit(get), self.read_id(), name);
        let unanswered = match (&key, &id) {
            (Err(error), _) if !answered(&key) => Some(error),
            (_, Id::Unanswered(error)) => Some(error),
            _ => None,
        };
        self.breaker.probed(self.outcome(unanswered.is_none(), began), began);
        self.record_reachability(unanswered, reconnected);
        self.retry_refused(context).await;
        self.refusals.end_recovered();
        match id {
            Id::Known { id, is_replica } => {
                self.set_without_id(None);
                self.check_role(is_replica, context).await;
                self.compare(id, key, context).await
            }
            Id::Missing(why) => {
                self.set_without_id(Some(&why));
                self.without_id(reconnected)
            }
            Id::NotAsked => self.without_id(reconnected),
            Id::Unanswered(_) => Probed::default(),
        }
    }

    fn record_reachability(&self, unanswered: Option<&Error>, reconnected: bool) {
        match unanswered {
            Some(error) => {
                self.refusals.failed(error, None);
                self.refusals.is_not_reached(error.details());
            }
            None => {
                self.refusals.is_reached();
                if self.connections() == self.size() {
                    self.refusals.succeeded(CONNECT);
                }
            }
        }
        if reconnected {
            self.refusals.succeeded(SINGLE);
        }
    }

    async fn read_id(&self) -> Id {
        let without_id_at = self.probe_state.lock().without_id_at;
        if without_id_at.is_some_and(|asked| asked.elapsed() < INFO_INTERVAL) {
            return Id::NotAsked;
        }
        let mut why = "INFO has neither master_replid nor run_id".to_owned();
        for (section, name) in [("replication", "master_replid:"), ("server", "run_id:")] {
            let reply = self.transmit(NodeCommand::new("INFO", vec![section.into()])).await;
            match reply {
                Err(error) if !answered(&Err(error.clone())) => return Id::Unanswered(error),
                Err(error) => why = error.details().to_owned(),
                Ok(info) => {
                    let info = info.into_string().unwrap_or_default();
                    let value = info.lines().find_map(|line| line.strip_prefix(name));
                    let id = value.map(str::trim).filter(|id| id.chars().any(|c| c != '0'));
                    if let Some(id) = id {
                        let has_line = |line: &str| info.lines().any(|other| other.trim() == line);
                        let is_replica = has_line("role:slave") && has_line("slave_read_only:1");
                        return Id::Known { id: id.to_owned(), is_replica };
                    }
                }
            }
        }
        Id::Missing(why)
    }

    /// Records and logs when the server stops or starts to return an id.
    fn set_without_id(&self, why: Option<&str>) {
        let known = std::mem::replace(
            &mut self.probe_state.lock().without_id_at,
            why.is_some().then(Instant::now),
        );
        match (known, why) {
            (None, Some(why)) => tracing::warn!(
                server = %self.server, error = why, "{}", self.lacks_id_finding()
            ),
            (Some(_), None) => tracing::info!(
                server = %self.server,
                "Redis returns its replication id again; entries are reloaded only after a restart or failover"
            ),
            _ => {}
        }
    }

    pub(super) fn lacks_id_finding(&self) -> Finding {
        let what = "Redis returns no replication id (INFO), so a restart or failover looks like a lost connection";
        let covered = humantime::format_duration(self.coverage);
        let cost =
            format!("after each start and reconnection entries older than {covered} are reloaded");
        Finding::warning("replication", what, &cost, "allow INFO to the user").reported()
    }

    pub(super) fn lacks_id(&self) -> bool {
        self.probe_state.lock().without_id_at.is_some()
    }

    /// A replica behind a single URL rejects writes: that is a refusal, and the name is resolved again. In a cluster a replica
    /// answers MOVED, and the slot map is updated instead.
    async fn check_role(&self, is_replica: bool, context: &ProbeContext<'_>) {
        let stands = self.refusals.stands(RedisRefusal::ReadOnlyReplica);
        if self.in_cluster || !(is_replica || stands) {
            return;
        }
        let may_reconnect = {
            let mut probe_state = self.probe_state.lock();
            let may = probe_state.reconnected.is_none_or(|at| at.elapsed() >= RECONNECT_INTERVAL);
            if may {
                probe_state.reconnected = Some(Instant::now());
            }
            may
        };
        if !stands {
            self.try_write(context).await;
        } else if may_reconnect {
            // The name in REDIS_URL may lead to another server after a failover.
            self.reconnect().await;
        }
    }

    /// Repeats refused commands that have no side effects, to detect the end of their refusals.
    async fn retry_refused(&self, context: &ProbeContext<'_>) {
        for (name, more) in WITHOUT_SIDE_EFFECTS {
            if self.refusals.refuses(name) {
                let mut args = vec![context.access.clone().into()];
                args.extend(more.iter().map(|word| Value::from(*word)));
                // `transmit` records the reply.
                let _ = self.transmit(NodeCommand::new(name, args)).await;
            }
        }
        let needs_write = [RedisRefusal::ReadOnlyReplica, RedisRefusal::NoPermission];
        if needs_write.iter().any(|reason| self.refusals.stands(*reason)) {
            self.try_write(context).await;
        }
    }

    async fn try_write(&self, context: &ProbeContext<'_>) {
        let access = self.run(&context.scripts.access, context.access.clone(), Vec::new()).await;
        if access.is_ok() {
            self.refusals.succeeded(WRITE);
        }
    }
}
