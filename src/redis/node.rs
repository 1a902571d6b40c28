//! One Redis server: the connections to it, the breaker in front of it, and whether what it holds can be vouched
//! for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fred::clients::Pool;
use fred::error::{Error, ErrorKind};
use fred::interfaces::ClientLike;
use fred::types::config::{Config, Options, PerformanceConfig, Server, ServerConfig};
use fred::types::{Builder, ClusterHash, CustomCommand, Value};
use parking_lot::Mutex;

use super::breaker::{Breaker, Outcome};
use super::{RedisOptions, connection_config, reconnect_policy};
use crate::entry::Entry;
use crate::metrics::{Metrics, RedisDependency};
use crate::moment::Moment;

/// A command and its arguments.
#[derive(Clone, Debug)]
pub(super) struct Command {
    name: &'static str,
    args: Vec<Value>,
}

/// There is no reply to a command.
#[derive(Debug)]
pub(super) enum NoReply {
    /// It was not sent: the breaker is open, or nobody is known to serve the key.
    Refused,
    /// It was sent, and failed or was not answered in time.
    Failed(Error),
}

/// A server.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) server: Server,
    pub(super) since: Instant,
    pub(super) breaker: Breaker,
    pool: Pool,
    command: Options,
    /// An answer later than this counts as a failure.
    late: Duration,
    history: Mutex<History>,
}

/// Where a server's data comes from. Redis gives it another id when it restarts and when a replica takes over:
/// whenever writes may be missing that were once there.
#[derive(Debug, Default)]
struct History {
    id: Option<String>,
    /// What Postgres was known to hold at this moment or later is not older than what was lost. `None`: nobody
    /// has vouched for this history yet.
    vouched_since: Option<Moment>,
}

impl Command {
    pub(super) fn new(name: &'static str, args: Vec<Value>) -> Self {
        Self { name, args }
    }

    fn custom(&self) -> CustomCommand {
        CustomCommand::new_static(self.name, ClusterHash::FirstKey, false)
    }
}

impl Node {
    /// Connects in the background, and goes on trying for ever.
    pub(super) fn connect(
        server: Server,
        config: &Config,
        options: &RedisOptions,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, Error> {
        let server_config = ServerConfig::Centralized { server: server.clone() };
        let pool = Builder::from_config(Config { server: server_config, ..config.clone() })
            .set_policy(reconnect_policy())
            .set_performance_config(PerformanceConfig {
                default_command_timeout: options.command_timeout,
                ..PerformanceConfig::default()
            })
            .set_connection_config(connection_config())
            .build_pool(options.connections)?;
        // The handles end with the pool.
        drop(pool.connect_pool());
        Ok(Self {
            server,
            since: Instant::now(),
            breaker: Breaker::new(RedisDependency::Commands, Arc::clone(metrics)),
            pool,
            command: options.command(),
            late: options.command_timeout / 2,
            history: Mutex::default(),
        })
    }

    pub(super) async fn connected(&self) -> Result<(), Error> {
        self.pool.wait_for_connect().await
    }

    pub(super) fn connections(&self) -> usize {
        self.pool.clients().iter().filter(|client| client.is_connected()).count()
    }

    pub(super) async fn close(&self) {
        // Nothing is lost with a connection that does not close.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.pool.quit()).await;
    }

    /// Sends a command, unless the breaker is open.
    pub(super) async fn send(&self, command: Command) -> Result<Value, NoReply> {
        if !self.breaker.admits() {
            return Err(NoReply::Refused);
        }
        let began = Instant::now();
        let reply = self.transmit(command).await;
        self.breaker.record(self.outcome(answered(&reply), began), began);
        reply.map_err(NoReply::Failed)
    }

    /// The same, about a slot that is being moved to this server.
    pub(super) async fn send_asking(&self, command: Command) -> Result<Value, NoReply> {
        if !self.breaker.admits() {
            return Err(NoReply::Refused);
        }
        let pipeline = self.pool.next_connected().pipeline();
        let asking = Command::new("ASKING", Vec::new());
        for Command { name, args } in [asking, command] {
            let command = Command::new(name, Vec::new()).custom();
            // A pipeline says of each command that it is queued.
            let queued: Result<Value, Error> = pipeline.custom(command, args).await;
            queued.map_err(NoReply::Failed)?;
        }
        pipeline.last().await.map_err(NoReply::Failed)
    }

    /// Sends a command, whatever the breaker says.
    pub(super) async fn transmit(&self, command: Command) -> Result<Value, Error> {
        let client = self.pool.next_connected().with_options(&self.command);
        client.custom(command.custom(), command.args).await
    }

    /// Sees whether it answers, and which history its data has.
    pub(super) async fn probe(&self, some_key: Value) -> Option<String> {
        self.breaker.probing();
        let began = Instant::now();
        let (read, info) = tokio::join!(
            self.transmit(Command::new("GET", vec![some_key])),
            self.transmit(Command::new("INFO", vec!["replication".into()])),
        );
        self.breaker.probed(self.outcome(answered(&read) && answered(&info), began), began);
        let info = info.ok()?.into_string()?;
        info.lines().find_map(|line| Some(line.strip_prefix("master_replid:")?.trim().to_owned()))
    }

    fn outcome(&self, answered: bool, began: Instant) -> Outcome {
        match answered {
            false => Outcome::Failed,
            true if began.elapsed() > self.late => Outcome::Late,
            true => Outcome::InTime,
        }
    }

    /// Takes in which history it has. Returns whether that is another than it had before.
    pub(super) fn has_history(&self, id: &str) -> bool {
        let mut history = self.history.lock();
        let other = history.id.as_deref() != Some(id);
        if other {
            *history = History { id: Some(id.to_owned()), vouched_since: None };
        }
        other
    }

    pub(super) fn is_vouched_for(&self) -> bool {
        self.history.lock().vouched_since.is_some()
    }

    /// What is known to have been current at `since` or later is not older than what this history lacks.
    pub(super) fn vouch(&self, id: &str, since: Moment) {
        let mut history = self.history.lock();
        if history.id.as_deref() == Some(id) {
            history.vouched_since = Some(since);
        }
    }

    /// Whether `entry`, which it holds, may be what a newer one was lost of.
    pub(super) fn doubts(&self, entry: &Entry) -> bool {
        self.history.lock().vouched_since.is_none_or(|since| entry.known_at() < since)
    }
}

/// Whether the server itself spoke, and is in a state to serve. That it does not like a command is an answer.
fn answered(reply: &Result<Value, Error>) -> bool {
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
