//! One Redis server: its connections, its breaker, and the state that probes keep about it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fred::clients::Pool;
use fred::error::{Error, ErrorKind};
use fred::interfaces::ClientLike;
use fred::types::config::{Config, Options, PerformanceConfig, Server, ServerConfig};
use fred::types::scripts::Script;
use fred::types::{Builder, ClusterHash, CustomCommand, Value};
use parking_lot::Mutex;

use super::breaker::{Breaker, Outcome};
use super::probe::{Events, ProbeState};
use super::refusal::RedisRefusals;
use super::replication::Replication;
use super::{RedisOptions, connection_config, reconnect_policy};
use crate::metrics::{Metrics, RedisDependency};
use crate::moment::Moment;

/// The least timeout of a command of a check, which no call waits for.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub(super) struct NodeCommand {
    name: &'static str,
    /// For a script the script's name, otherwise `name`.
    label: &'static str,
    args: Vec<Value>,
}

/// Why a command has no reply.
#[derive(Debug)]
pub(super) enum NoReply {
    /// It was not sent: the breaker is open, or no server of the key is known.
    Refused,
    /// It was sent and failed, or timed out.
    Failed(Error),
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) server: Server,
    pub(super) since: Instant,
    pub(super) breaker: Breaker,
    pub(super) refusals: RedisRefusals,
    pub(super) events: Mutex<Events>,
    pub(super) probe_state: Mutex<ProbeState>,
    pub(super) in_cluster: bool,
    /// See [`RedisOptions::coverage`].
    pub(super) coverage: Duration,
    replication: Mutex<Replication>,
    /// The number of a hash tag whose slot this node serves; see [`hash_tag`](super::nodes::hash_tag).
    tag: AtomicU32,
    pub(super) pool: Pool,
    command: Options,
    /// A reply that takes longer counts as late: see [`Outcome::Late`].
    late: Duration,
}

impl NodeCommand {
    pub(super) fn new(name: &'static str, args: Vec<Value>) -> Self {
        Self { name, label: name, args }
    }

    /// With a label, by which refusals of this script differ from those of others.
    pub(super) fn labelled(self, label: &'static str) -> Self {
        Self { label, ..self }
    }

    fn custom(&self) -> CustomCommand {
        CustomCommand::new_static(self.name, ClusterHash::FirstKey, false)
    }
}

/// The configuration of connections to one node. Without a cluster the configured one names it: perhaps by a socket, or by sentinels
/// that fred asks at each connection for the server that is the master.
pub(super) fn config_of(server: &Server, config: &Config) -> Config {
    let server = match &config.server {
        ServerConfig::Clustered { .. } => ServerConfig::Centralized { server: server.clone() },
        other => other.clone(),
    };
    Config { server, ..config.clone() }
}

impl Node {
    /// Connects in the background; failed attempts are retried without limit.
    pub(super) fn connect(
        server: Server,
        config: &Config,
        options: &RedisOptions,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, Error> {
        let in_cluster = config.server.is_clustered();
        let pool = Builder::from_config(config_of(&server, config))
            .set_policy(reconnect_policy())
            .set_performance_config(PerformanceConfig {
                default_command_timeout: options.command_timeout,
                ..PerformanceConfig::default()
            })
            .set_connection_config(connection_config())
            .build_pool(options.connections)?;
        // Subscribed before the first attempt, so that its failure is seen.
        let events = Mutex::new(Events::of(pool.clients()));
        // The tasks behind these handles end with the pool.
        drop(pool.connect_pool());
        Ok(Self {
            refusals: RedisRefusals::new(server.to_string(), in_cluster),
            events,
            probe_state: Mutex::default(),
            in_cluster,
            coverage: options.coverage,
            replication: Mutex::default(),
            tag: AtomicU32::new(0),
            server,
            since: Instant::now(),
            breaker: Breaker::new(RedisDependency::Commands, Arc::clone(metrics)),
            pool,
            command: options.command(),
            late: options.command_timeout / 2,
        })
    }

    pub(super) fn connections(&self) -> usize {
        self.pool.clients().iter().filter(|client| client.is_connected()).count()
    }

    /// The number of connections when all are established.
    pub(super) fn size(&self) -> usize {
        self.pool.size()
    }

    /// Reconnects every connection. Commands in flight fail.
    pub(super) async fn reconnect(&self) {
        for client in self.pool.clients() {
            // An error means that fred is connecting already.
            let _ = client.force_reconnection().await;
        }
    }

    pub(super) fn tag(&self) -> u32 {
        self.tag.load(Ordering::Relaxed)
    }

    pub(super) fn set_tag(&self, tag: u32) {
        self.tag.store(tag, Ordering::Relaxed);
    }

    pub(super) fn replication(&self) -> Replication {
        self.replication.lock().clone()
    }

    pub(super) fn set_replication(&self, id: Option<String>, since: Moment) {
        *self.replication.lock() = Replication { id, since: Some(since) };
    }

    pub(super) fn complete_since(&self) -> Option<Moment> {
        self.replication.lock().since
    }

    pub(super) async fn close(&self) {
        // Bounded: no reply is waited for on these connections.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.pool.quit()).await;
    }

    /// Sends a command, unless the breaker is open.
    pub(super) async fn send(&self, command: NodeCommand) -> Result<Value, NoReply> {
        if !self.breaker.admits() {
            return Err(NoReply::Refused);
        }
        let began = Instant::now();
        let reply = self.transmit(command).await;
        self.breaker.record(self.outcome(answered(&reply), began), began);
        reply.map_err(NoReply::Failed)
    }

    /// Sends a command for a slot that is migrating to this server.
    pub(super) async fn send_asking(&self, command: NodeCommand) -> Result<Value, NoReply> {
        if !self.breaker.admits() {
            return Err(NoReply::Refused);
        }
        let pipeline = self.pool.next_connected().pipeline();
        let asking = NodeCommand::new("ASKING", Vec::new());
        for NodeCommand { name, args, .. } in [asking, command] {
            let command = NodeCommand::new(name, Vec::new()).custom();
            // A pipeline answers each command with QUEUED until the last one runs them.
            let queued: Result<Value, Error> = pipeline.custom(command, args).await;
            queued.map_err(NoReply::Failed)?;
        }
        pipeline.last().await.map_err(NoReply::Failed)
    }

    /// Sends a command, even while the breaker is open.
    pub(super) async fn transmit(&self, command: NodeCommand) -> Result<Value, Error> {
        let client = self.pool.next_connected().with_options(&self.command);
        let (custom, NodeCommand { name, label, args }) = (command.custom(), command);
        let reply = client.custom(custom, args).await;
        // A denied INFO is no refusal, because Redis is used without it.
        if name != "INFO" {
            self.refusals.record(name, label, &reply);
        }
        reply
    }

    /// Sends a command of a check, even while the breaker is open. What is refused is not recorded.
    pub(super) async fn ask(&self, name: &'static str, args: Vec<Value>) -> Result<Value, Error> {
        let timeout = Some(self.command.timeout.unwrap_or_default().max(ASK_TIMEOUT));
        let options = Options { timeout, ..self.command.clone() };
        let client = self.pool.next_connected().with_options(&options);
        client.custom(NodeCommand::new(name, Vec::new()).custom(), args).await
    }

    /// Runs a script of a probe, even while the breaker is open.
    pub(super) async fn run(
        &self,
        script: &Script,
        key: Bytes,
        args: Vec<Value>,
    ) -> Result<Value, Error> {
        let command = |name, script: &str| {
            let mut words: Vec<Value> = vec![script.into(), 1.into(), key.clone().into()];
            words.extend(args.iter().cloned());
            NodeCommand::new(name, words).labelled("probe")
        };
        match self.transmit(command("EVALSHA", script.sha1())).await {
            Err(error) if error.details().starts_with("NOSCRIPT") => {
                let text = script.lua().expect("every script is made from its text");
                self.transmit(command("EVAL", text)).await
            }
            reply => reply,
        }
    }

    pub(super) fn outcome(&self, answered: bool, began: Instant) -> Outcome {
        match answered {
            false => Outcome::Failed,
            true if began.elapsed() > self.late => Outcome::Late,
            true => Outcome::InTime,
        }
    }
}

/// Whether the reply came from a server that can serve. An error reply about the command itself counts as an answer.
pub(super) fn answered(reply: &Result<Value, Error>) -> bool {
    const UNFIT: [&str; 4] = ["LOADING", "CLUSTERDOWN", "MASTERDOWN", "BUSY"];
    match reply {
        Ok(_) => true,
        Err(error) => match error.kind() {
            ErrorKind::Unknown | ErrorKind::Cluster | ErrorKind::InvalidArgument => {
                !UNFIT.iter().any(|unfit| error.details().starts_with(unfit))
            }
            _ => false,
        },
    }
}
