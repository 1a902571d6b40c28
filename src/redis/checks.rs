//! What serving needs of Redis. `hotshelf doctor` prints all findings, and `serve` logs those that are not fine, unless probes
//! report them. The checks change nothing, and each command has a time limit.

use std::time::{Duration, Instant, SystemTime};

use fred::clients::Client;
use fred::error::Error;
use fred::interfaces::{ClientLike, PubsubInterface};
use fred::types::Value;
use futures_util::future::join_all;

use super::Redis;
use super::node::{Node, answered};
use super::reasons::{denied_in, description, reason_of};
use crate::findings::{Finding, Section, median, milliseconds};
use crate::metrics::RedisRefusal;

/// The longest that a check waits for connections, and for a subscription.
const CONNECT: Duration = Duration::from_secs(3);
/// Round trips of which the median is reported.
const ROUND_TRIPS: usize = 5;
const OLDEST: (u32, u32) = (6, 2);

/// Every command that the service sends or that its scripts call, with arguments that change nothing: `{}` is a key that holds
/// nothing. HSET and ZINCRBY refuse their arguments, after the right to call them was checked.
const COMMANDS: [(&str, &[&str]); 21] = [
    ("PING", &[]),
    ("GET", &["{}"]),
    ("MGET", &["{}"]),
    ("SET", &["{}", "", "XX", "PX", "1000"]),
    ("DEL", &["{}"]),
    ("TYPE", &["{}"]),
    ("TIME", &[]),
    ("PTTL", &["{}"]),
    ("PEXPIRE", &["{}", "1000"]),
    ("EVAL", &["return 0", "1", "{}"]),
    ("EVALSHA", &["0000000000000000000000000000000000000000", "1", "{}"]),
    ("PUBLISH", &["{}", ""]),
    ("HSET", &["{}", "field", "value", "field without a value"]),
    ("HDEL", &["{}", "field"]),
    ("HGETALL", &["{}"]),
    ("ZINCRBY", &["{}", "no number", "member"]),
    ("ZREMRANGEBYRANK", &["{}", "0", "0"]),
    ("ZREVRANGE", &["{}", "0", "0"]),
    ("ZUNIONSTORE", &["{}", "1", "{}"]),
    ("INFO", &["server"]),
    ("CLUSTER", &["SLOTS"]),
];
/// Of these the last two are not needed by a single server, and used if they are allowed.
const OPTIONAL: [&str; 2] = ["INFO", "CLUSTER"];

/// What a server says of itself in INFO.
struct Info(String);

impl Info {
    fn get(&self, name: &str) -> Option<&str> {
        let value = |line: &'_ str| -> Option<(usize, usize)> {
            let rest = line.strip_prefix(name)?.strip_prefix(':')?;
            Some((line.len() - rest.len(), line.len()))
        };
        self.0.lines().find_map(|line| value(line).map(|(from, to)| line[from..to].trim()))
    }
}

impl Redis {
    /// Waits for connections, and checks every server with all that it refuses. `ours` is the identity of the catalogue, as far as
    /// it is known.
    pub async fn check(&self, ours: Option<&str>) -> Vec<Section> {
        self.wait_until_connected(CONNECT).await;
        let nodes = self.nodes.all();
        let mut sections = join_all(nodes.iter().map(|node| self.check_node(node, true))).await;
        for (section, node) in sections.iter_mut().zip(&nodes) {
            section.findings.extend(node.refusals.findings());
        }
        if self.is_cluster() {
            sections.insert(0, self.check_cluster(nodes.len()));
        }
        if let (Some(ours), Some(first)) = (ours, sections.first_mut()) {
            first.findings.extend(self.check_namespace(ours).await);
        }
        sections
    }

    /// Checks the servers that are connected, without what probes report.
    pub async fn check_connected(&self) -> Vec<Section> {
        let nodes = self.nodes.all();
        let connected = nodes.iter().filter(|node| node.connections() > 0);
        join_all(connected.map(|node| self.check_node(node, false))).await
    }

    fn check_cluster(&self, servers: usize) -> Section {
        let refusals = self.nodes.of_cluster();
        let mut findings = refusals.findings();
        if findings.is_empty() {
            findings.push(Finding::fine("slots", format!("{servers} servers have all slots")));
        }
        Section { subject: format!("Redis Cluster {}", refusals.server()), findings }
    }

    async fn check_node(&self, node: &Node, thorough: bool) -> Section {
        let subject = format!("Redis {}", node.server);
        let mut findings = Vec::new();
        if node.connections() > 0 {
            match self.of_server(node, thorough).await {
                Ok(found) => findings = found,
                Err(error) => findings.push(unreachable(&error)),
            }
        }
        Section { subject, findings }
    }

    async fn of_server(&self, node: &Node, thorough: bool) -> Result<Vec<Finding>, Error> {
        let mut found = Vec::new();
        let info = info(node).await?;
        found.push(version(&info));
        found.push(memory(&info));
        found.extend(clock(node).await?);
        found.push(self.latency(node).await?);
        if !thorough {
            return Ok(found);
        }
        if info.get("master_replid").or(info.get("run_id")).is_none() {
            found.push(node.lacks_id_finding());
        }
        let is_replica = info.get("role") == Some("slave");
        if is_replica && info.get("slave_read_only") == Some("1") {
            let (what, cost, remedy) = description(RedisRefusal::ReadOnlyReplica);
            found.push(Finding::warning("role", what, cost, remedy).reported());
        } else if let Some(role) = info.get("role") {
            found.push(Finding::fine("role", role));
        }
        found.push(self.commands(node).await?);
        Ok(found)
    }

    async fn latency(&self, node: &Node) -> Result<Finding, Error> {
        let mut times = Vec::new();
        for _ in 0..ROUND_TRIPS {
            let began = Instant::now();
            let reply = node.ask("PING", Vec::new()).await;
            times.push(began.elapsed());
            if !answered(&reply) {
                return Err(reply.err().unwrap_or_else(super::nodes::no_server));
            }
        }
        let median = median(times);
        let what = format!("a round trip takes {}", milliseconds(median));
        let late = self.options.command_timeout / 2;
        let cost = "half of REDIS_TIMEOUT counts as late: the circuit breaker opens, and reads go to PostgreSQL";
        Ok(match median > late {
            true => Finding::warning("latency", &what, cost, "raise REDIS_TIMEOUT"),
            false => Finding::fine("latency", what),
        })
    }

    /// Tries every command. An error about its arguments proves that it is allowed.
    async fn commands(&self, node: &Node) -> Result<Finding, Error> {
        let (_, key) = self.keys().of_node(node.tag());
        let key = String::from_utf8_lossy(&key).into_owned();
        let is_used =
            |name: &str| !OPTIONAL.contains(&name) || (name == "CLUSTER" && node.in_cluster);
        let tried = COMMANDS.iter().filter(|(name, _)| is_used(name)).map(async |(name, args)| {
            let args = args.iter().map(|arg| arg.replace("{}", &key).into()).collect();
            (*name, node.ask(name, args).await)
        });
        let mut replies = join_all(tried).await;
        replies.push(("SUBSCRIBE", self.subscribe(node, &key).await.map(|()| Value::Null)));
        let mut denied = Denied::default();
        for (name, reply) in &replies {
            match reply {
                Err(error) if reason_of(error, true) == Some(RedisRefusal::NoPermission) => {
                    denied.note(name, error.details());
                }
                Err(error) if !answered(reply) => return Err(error.clone()),
                _ => {}
            }
        }
        Ok(denied.finding(self.nodes.user(), &self.options.namespace, replies.len()))
    }

    async fn subscribe(&self, node: &Node, channel: &str) -> Result<(), Error> {
        let client: Client = self.nodes.client(&node.server)?;
        let subscribe = async {
            drop(client.connect());
            client.wait_for_connect().await?;
            client.subscribe(channel).await
        };
        let subscribed = tokio::time::timeout(CONNECT, subscribe).await;
        let _ = tokio::time::timeout(CONNECT, client.quit()).await;
        subscribed.unwrap_or_else(|_| Err(super::nodes::no_server()))
    }
}

/// What a user may not do.
#[derive(Debug, Default)]
struct Denied {
    commands: Vec<&'static str>,
    keys: bool,
    channels: bool,
}

impl Denied {
    fn note(&mut self, name: &'static str, error_text: &str) {
        match () {
            () if !denied_in(error_text).is_empty() => self.commands.push(name),
            () if error_text.contains("channel") => self.channels = true,
            () if error_text.contains(" key") => self.keys = true,
            () => self.commands.push(name),
        }
    }

    fn finding(&self, user: &str, namespace: &str, tried: usize) -> Finding {
        let mut what = self.commands.join(", ");
        let mut rules: Vec<String> =
            self.commands.iter().map(|name| format!("+{}", rule(name))).collect();
        for (is_denied, kind, sign) in [(self.keys, "keys", '~'), (self.channels, "channels", '&')]
        {
            if is_denied {
                let pattern = format!("{sign}{namespace}:*");
                what = format!("{what}{}{kind} {pattern}", if what.is_empty() { "" } else { ", " });
                rules.push(pattern);
            }
        }
        if rules.is_empty() {
            let keys = format!("on {namespace}:*");
            return Finding::fine("commands", format!("all {tried} are allowed {keys}"));
        }
        let (problem, cost, _) = description(RedisRefusal::NoPermission);
        let remedy = format!("ACL SETUSER {user} {}, and in the file of users", rules.join(" "));
        Finding::warning("commands", problem, cost, &remedy).with_detail(&what).reported()
    }
}

/// The name of a command in an ACL.
fn rule(name: &str) -> String {
    if name == "CLUSTER" { "cluster|slots".to_owned() } else { name.to_lowercase() }
}

fn unreachable(error: &Error) -> Finding {
    let reason = reason_of(error, true).unwrap_or(RedisRefusal::Unreachable);
    let (what, cost, remedy) = description(reason);
    Finding::warning("access", what, cost, remedy).with_detail(error.details()).reported()
}

/// INFO, or as much of it as the user may read.
async fn info(node: &Node) -> Result<Info, Error> {
    let mut text = String::new();
    for sections in [&[][..], &["server", "replication", "memory"]] {
        for section in sections.iter().map(Some).chain(sections.is_empty().then_some(None)) {
            let args = section.map(|section| Value::from(*section)).into_iter().collect();
            let reply = node.ask("INFO", args).await;
            if !answered(&reply) {
                return Err(reply.err().unwrap_or_else(super::nodes::no_server));
            }
            text += &reply.ok().and_then(Value::into_string).unwrap_or_default();
        }
        if !text.is_empty() {
            break;
        }
    }
    Ok(Info(text))
}

fn version(info: &Info) -> Finding {
    let valkey = info.get("valkey_version");
    let name = if valkey.is_some() { "Valkey" } else { "Redis" };
    let Some(version) = valkey.or(info.get("redis_version")) else {
        return Finding::fine("version", "not known, because INFO is denied");
    };
    let mut numbers = version.split('.').map(|part| part.parse().unwrap_or_default());
    let number = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let what = format!("{name} {version}");
    let cost = "commands that it lacks fail, and what needs them uses PostgreSQL";
    match valkey.is_none() && number < OLDEST {
        true => Finding::warning("version", &what, cost, "use Redis 6.2 or newer, or Valkey"),
        false => Finding::fine("version", what),
    }
}

fn memory(info: &Info) -> Finding {
    let number = |name| info.get(name).and_then(|value| value.parse::<u64>().ok());
    let megabytes = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
    let used = megabytes(number("used_memory").unwrap_or_default());
    let policy = info.get("maxmemory_policy").unwrap_or("not known");
    match number("maxmemory") {
        None => Finding::fine("memory", "not known, because INFO is denied"),
        Some(0) => Finding::fine(
            "memory",
            format!("{used} used, without maxmemory: up to what the machine has"),
        ),
        Some(most) if policy == "noeviction" => Finding::warning(
            "memory",
            &format!(
                "maxmemory is {} ({used} used), and maxmemory-policy is noeviction",
                megabytes(most)
            ),
            "a full Redis refuses fills and updates, so reads go to PostgreSQL",
            "CONFIG SET maxmemory-policy allkeys-lru, and in redis.conf",
        ),
        Some(most) => Finding::fine(
            "memory",
            format!(
                "{used} of {} used, then {policy}: what is evicted is loaded again",
                megabytes(most)
            ),
        ),
    }
}

async fn clock(node: &Node) -> Result<Option<Finding>, Error> {
    let before = SystemTime::now();
    let reply = node.ask("TIME", Vec::new()).await;
    let after = SystemTime::now();
    if !answered(&reply) {
        return Err(reply.err().unwrap_or_else(super::nodes::no_server));
    }
    // Seconds and microseconds.
    let time = reply.ok().and_then(|time| time.convert::<Vec<u64>>().ok());
    Ok(time.filter(|time| time.len() == 2).map(|time| {
        let theirs = Duration::from_secs(time[0]) + Duration::from_micros(time[1]);
        Finding::clock(before, theirs, after)
    }))
}
