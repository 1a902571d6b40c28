//! Probing a node: whether it answers, what it refuses, and whether its data may be old. A loop does so four times a
//! second; callers never do.

use std::time::{Duration, Instant};

use bytes::Bytes;
use fred::error::Error;
use fred::interfaces::EventInterface;
use fred::types::Value;
use fred::types::config::Server;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::TryRecvError;

use super::node::{Node, NodeCommand, answered};
use super::refusal::{CONNECT, SINGLE, WRITE};
use super::replication::Probed;
use super::scripts::Scripts;
use crate::metrics::RedisRefusal;

/// How long to wait before INFO is asked for again where it was denied.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// How long to wait between attempts to find the master behind the same name, where a replica answers.
const RECONNECT: Duration = Duration::from_secs(5);

/// Commands that change nothing, and what follows their key: a probe can send a refused one again.
const HARMLESS: [(&str, &[&str]); 3] = [("MGET", &[]), ("PTTL", &[]), ("ZREVRANGE", &["0", "0"])];

/// What fred tells about a node's connections, and nothing else does: it keeps failed logins and handshakes to itself.
#[derive(Debug)]
pub(super) struct Events {
    errors: Vec<Receiver<(Error, Option<Server>)>>,
    connects: Vec<Receiver<Server>>,
    /// For each connection whether it was made anew since all of them last were.
    anew: Vec<bool>,
}

/// The keys of ours that a probe uses on a node, and the scripts.
#[derive(Debug)]
pub(super) struct Site<'a> {
    pub(super) scripts: &'a Scripts,
    /// Holds the node's replication id.
    pub(super) replication: Bytes,
    /// Holds nothing.
    pub(super) access: Bytes,
}

/// What is remembered from probe to probe.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Since when the server has named neither its replication nor its run, and when it was last asked.
    lacking: Option<Instant>,
    /// When the connections were last made anew on purpose.
    reconnected: Option<Instant>,
}

/// What names the data of a server.
enum Id {
    Known {
        id: String,
        is_replica: bool,
    },
    /// The server does not name it, and why.
    Lacking(String),
    Unanswered(Error),
    /// It was not asked, because it did not say a moment ago.
    NotAsked,
}

impl Events {
    /// Of connections that are not made yet.
    pub(super) fn of<C: EventInterface>(clients: &[C]) -> Self {
        Self {
            errors: clients.iter().map(C::error_rx).collect(),
            connects: clients.iter().map(C::reconnect_rx).collect(),
            anew: vec![false; clients.len()],
        }
    }
}

/// Takes what there is. What came too fast to be kept came again.
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

impl Node {
    /// Takes in why connections failed. Returns whether every connection was made anew since this was last so.
    pub(super) fn take_events(&self) -> bool {
        let mut events = self.events.lock();
        for (error, _) in events.errors.iter_mut().flat_map(drain) {
            self.refusals.failed(&error, None);
        }
        let Events { connects, anew, .. } = &mut *events;
        for (connects, anew) in connects.iter_mut().zip(anew.iter_mut()) {
            *anew |= !drain(connects).is_empty();
        }
        let all = anew.iter().all(|anew| *anew);
        if all {
            anew.fill(false);
        }
        all
    }

    /// Probes once. Only one probe may be under way.
    pub(super) async fn probe(&self, site: &Site<'_>) -> Probed {
        let reconnected = self.take_events();
        self.breaker.probing();
        let began = Instant::now();
        let get = NodeCommand::new("GET", vec![site.replication.clone().into()]);
        let (key, id) = tokio::join!(self.transmit(get), self.read_id());
        let unanswered = match (&key, &id) {
            (Err(error), _) if !answered(&key) => Some(error),
            (_, Id::Unanswered(error)) => Some(error),
            _ => None,
        };
        self.breaker.probed(self.outcome(unanswered.is_none(), began), began);
        self.note_reach(unanswered, reconnected);
        self.ask_again(site).await;
        self.refusals.settle();
        match id {
            Id::Known { id, is_replica } => {
                self.set_lacking(None);
                self.note_role(is_replica, site).await;
                self.compare(id, key, site).await
            }
            Id::Lacking(why) => {
                self.set_lacking(Some(&why));
                self.without_id(reconnected)
            }
            Id::NotAsked => self.without_id(reconnected),
            Id::Unanswered(_) => Probed::default(),
        }
    }

    fn note_reach(&self, unanswered: Option<&Error>, reconnected: bool) {
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
        let lacking = self.memory.lock().lacking;
        if lacking.is_some_and(|asked| asked.elapsed() < ASK_AGAIN) {
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
                        let says = |line: &str| info.lines().any(|said| said.trim() == line);
                        let is_replica = says("role:slave") && says("slave_read_only:1");
                        return Id::Known { id: id.to_owned(), is_replica };
                    }
                }
            }
        }
        Id::Lacking(why)
    }

    /// Takes in that the server does not name its data, or that it does.
    fn set_lacking(&self, why: Option<&str>) {
        let known =
            std::mem::replace(&mut self.memory.lock().lacking, why.is_some().then(Instant::now));
        match (known, why) {
            (None, Some(why)) => tracing::warn!(
                server = %self.server, said = why,
                "Redis does not say its replication id (INFO): a restart or failover cannot be told apart from a lost connection; after each start and reconnect entries older than {} are reloaded; allow INFO to the user",
                humantime::format_duration(self.coverage)
            ),
            (Some(_), None) => tracing::info!(
                server = %self.server,
                "Redis says its replication id; entries are reloaded only after a restart or failover"
            ),
            _ => {}
        }
    }

    pub(super) fn lacks_id(&self) -> bool {
        self.memory.lock().lacking.is_some()
    }

    /// A replica that is asked directly takes no writes. In a cluster it answers MOVED, and the map follows.
    async fn note_role(&self, is_replica: bool, site: &Site<'_>) {
        let stands = self.refusals.stands(RedisRefusal::ReadOnlyReplica);
        if self.in_cluster || !(is_replica || stands) {
            return;
        }
        let may_reconnect = {
            let mut memory = self.memory.lock();
            let may = memory.reconnected.is_none_or(|at| at.elapsed() >= RECONNECT);
            if may {
                memory.reconnected = Some(Instant::now());
            }
            may
        };
        if !stands {
            self.try_write(site).await;
        } else if may_reconnect {
            // The name in REDIS_URL may lead to another server by now.
            self.reconnect().await;
        }
    }

    /// Sends what was refused once more, as far as that does no harm.
    async fn ask_again(&self, site: &Site<'_>) {
        for (name, more) in HARMLESS {
            if self.refusals.refuses(name) {
                let mut args = vec![site.access.clone().into()];
                args.extend(more.iter().map(|word| Value::from(*word)));
                // The reply is recorded where it arrives.
                let _ = self.transmit(NodeCommand::new(name, args)).await;
            }
        }
        let needs_write = [RedisRefusal::ReadOnlyReplica, RedisRefusal::NoPermission];
        if needs_write.iter().any(|reason| self.refusals.stands(*reason)) {
            self.try_write(site).await;
        }
    }

    async fn try_write(&self, site: &Site<'_>) {
        let access = self.run(&site.scripts.access, site.access.clone(), Vec::new()).await;
        if access.is_ok() {
            self.refusals.succeeded(WRITE);
        }
    }
}
