//! What a server refuses again and again: a wrong password, a missing permission, a replica that takes no writes. Each
//! refusal is one log line when it begins and one when it ends; in between it is in a gauge and in `/readyz`.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fred::error::{Error, ErrorKind};
use fred::types::Value;
use parking_lot::Mutex;

use super::node::Command;
use crate::metrics::RedisRefusal;

/// What has to succeed before a refusal ends: all connections of the node stand.
pub(super) const CONNECT: &str = "connect";
/// The same: a write succeeds.
pub(super) const WRITE: &str = "write";
/// The same: the server was replaced by one that is not part of a cluster.
pub(super) const SINGLE: &str = "single";
/// The same: every slot of the cluster has a server.
pub(super) const SLOTS: &str = "slots";

/// A refusal has ended when nothing was refused for this long after a success. Too high: the end is seen later. Too low:
/// two lines for each of several connections that come back one by one.
const SETTLED: Duration = Duration::from_millis(400);
/// A server that answers no probe for this long is unreachable. Too low: a line for every restart.
const UNREACHABLE: Duration = Duration::from_secs(1);
/// The most that is repeated of what a server says.
const SAID: usize = 200;
/// Commands that change nothing, so that a probe can send a refused one again.
const HARMLESS: [&str; 4] = ["GET", "MGET", "PTTL", "ZREVRANGE"];

/// The refusals of one node, or of a cluster as a whole.
#[derive(Debug)]
pub(super) struct Refusals {
    server: String,
    in_cluster: bool,
    standing: Mutex<Vec<Refusal>>,
    /// How many stand, so that a reply costs no lock while none does.
    count: AtomicUsize,
    failing_since: Mutex<Option<Instant>>,
}

#[derive(Debug)]
struct Refusal {
    reason: RedisRefusal,
    /// The command that is denied; empty when the reason is about the whole server.
    denied: String,
    /// What has to succeed before it ends.
    label: &'static str,
    said: String,
    since: Instant,
    /// When `label` first succeeded after the last refusal.
    succeeded: Option<Instant>,
    again: Option<Command>,
}

impl Refusals {
    pub(super) fn new(server: String, in_cluster: bool) -> Self {
        Self {
            server,
            in_cluster,
            standing: Mutex::default(),
            count: AtomicUsize::new(0),
            failing_since: Mutex::default(),
        }
    }

    /// Takes in the reply to a command.
    pub(super) fn record(&self, command: &Command, reply: &Result<Value, Error>) {
        match reply {
            Ok(_) if self.count.load(Ordering::Relaxed) == 0 => {}
            Ok(_) => {
                self.succeeded(command.name);
                self.succeeded(command.label);
            }
            Err(error) => self.failed(error, Some(command)),
        }
    }

    /// Takes in an error: of a command, or of a connection that could not be made.
    pub(super) fn failed(&self, error: &Error, command: Option<&Command>) {
        let Some(reason) = reason_of(error, self.in_cluster) else { return };
        let said = error.details();
        let label = match (reason, command) {
            (RedisRefusal::ReadOnlyReplica, _) => WRITE,
            (RedisRefusal::ClusterDown, _) => "GET",
            (RedisRefusal::IsACluster, Some(_)) => SINGLE,
            (RedisRefusal::NotACluster, Some(command)) => command.name,
            (RedisRefusal::NoPermission, Some(command)) if is_about_command(said) => command.name,
            (RedisRefusal::NoPermission, Some(command)) => command.label,
            _ => CONNECT,
        };
        let again = command.filter(|command| HARMLESS.contains(&command.name)).cloned();
        self.begin(reason, label, said, again);
    }

    pub(super) fn begin(
        &self,
        reason: RedisRefusal,
        label: &'static str,
        said: &str,
        again: Option<Command>,
    ) {
        let denied = match reason {
            RedisRefusal::NoPermission => denied_in(said).to_lowercase(),
            _ => String::new(),
        };
        let mut standing = self.standing.lock();
        let known = standing
            .iter_mut()
            .find(|refusal| refusal.reason == reason && refusal.denied == denied);
        if let Some(known) = known {
            known.label = label;
            known.succeeded = None;
            return;
        }
        if label == CONNECT {
            // A connection fails for one reason at a time.
            standing.retain(|refusal| refusal.label != CONNECT || self.ended(refusal));
        }
        let said = said.chars().take(SAID).collect();
        let since = Instant::now();
        let refusal = Refusal { reason, denied, label, said, since, succeeded: None, again };
        let (what, cost, remedy) = words(reason);
        tracing::warn!(
            server = self.server,
            reason = reason.name(),
            said = refusal.said,
            "{what}: {cost}; {remedy}"
        );
        standing.push(refusal);
        self.count.store(standing.len(), Ordering::Relaxed);
    }

    /// Something succeeded that may have been refused before.
    pub(super) fn succeeded(&self, label: &'static str) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        for refusal in self.standing.lock().iter_mut().filter(|refusal| refusal.label == label) {
            refusal.succeeded.get_or_insert_with(Instant::now);
        }
    }

    /// Ends what has succeeded for a while. To be called by each probe.
    pub(super) fn settle(&self) {
        let mut standing = self.standing.lock();
        standing.retain(|refusal| match refusal.succeeded {
            Some(at) if at.elapsed() >= SETTLED => self.ended(refusal),
            _ => true,
        });
        self.count.store(standing.len(), Ordering::Relaxed);
    }

    /// Ends everything: the server is used no longer.
    pub(super) fn end_all(&self) {
        let mut standing = self.standing.lock();
        standing.retain(|refusal| self.ended(refusal));
        self.count.store(0, Ordering::Relaxed);
    }

    /// Logs the end. Returns `false`, for `retain`.
    fn ended(&self, refusal: &Refusal) -> bool {
        let lasted = humantime::format_duration(seconds(refusal.since.elapsed()));
        tracing::info!(
            server = self.server, reason = refusal.reason.name(), %lasted,
            "what Redis refused works again, or is not asked for any more"
        );
        false
    }

    /// A probe was answered.
    pub(super) fn is_reached(&self) {
        *self.failing_since.lock() = None;
    }

    /// A probe was not answered.
    pub(super) fn is_not_reached(&self, said: &str) {
        let since = *self.failing_since.lock().get_or_insert_with(Instant::now);
        if since.elapsed() >= UNREACHABLE {
            self.is_unreachable(said);
        }
    }

    /// No connection stands, for whatever reason; a known one is kept.
    pub(super) fn is_unreachable(&self, said: &str) {
        let known = RedisRefusal::Unreachable;
        let stands = |refusal: &Refusal| refusal.label == CONNECT && refusal.reason != known;
        if !self.standing.lock().iter().any(stands) {
            self.begin(known, CONNECT, said, None);
        }
    }

    pub(super) fn stands(&self, reason: RedisRefusal) -> bool {
        self.standing.lock().iter().any(|refusal| refusal.reason == reason)
    }

    pub(super) fn any_stands(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    /// Refused commands that a probe may send again.
    pub(super) fn to_repeat(&self) -> Vec<Command> {
        if !self.any_stands() {
            return Vec::new();
        }
        self.standing.lock().iter().filter_map(|refusal| refusal.again.clone()).collect()
    }

    /// A line for each refusal, for the operator.
    pub(super) fn lines(&self) -> Vec<String> {
        let line = |refusal: &Refusal| {
            let (what, cost, remedy) = words(refusal.reason);
            let lasted = humantime::format_duration(seconds(refusal.since.elapsed()));
            format!(
                "redis {}: {} for {lasted}: {what} ({}): {cost}; {remedy}",
                self.server,
                refusal.reason.name(),
                refusal.said
            )
        };
        self.standing.lock().iter().map(line).collect()
    }
}

fn seconds(duration: Duration) -> Duration {
    Duration::from_secs(duration.as_secs())
}

/// The reason that an error gives, if it is one that lasts.
fn reason_of(error: &Error, in_cluster: bool) -> Option<RedisRefusal> {
    use RedisRefusal as Reason;
    const PREFIXES: [(&str, Reason); 11] = [
        ("WRONGPASS", Reason::WrongPassword),
        ("ERR invalid password", Reason::WrongPassword),
        ("ERR AUTH", Reason::WrongPassword),
        ("NOAUTH", Reason::NoAuth),
        ("NOPERM", Reason::NoPermission),
        ("ERR unknown command", Reason::NoPermission),
        ("ERR SELECT is not allowed", Reason::IsACluster),
        ("CLUSTERDOWN", Reason::ClusterDown),
        ("READONLY", Reason::ReadOnlyReplica),
        ("ERR max number of clients", Reason::TooManyClients),
        ("DENIED", Reason::ProtectedMode),
    ];
    // The last of TLS are the names that rustls gives its errors.
    const PARTS: [(&str, Reason); 9] = [
        ("cluster support disabled", Reason::NotACluster),
        ("ACL failure in script", Reason::NoPermission),
        ("can't run this command or subcommand", Reason::NoPermission),
        ("DB index", Reason::BadDatabase),
        ("UnknownIssuer", Reason::UnknownCa),
        ("CertificateRequired", Reason::CertificateRequired),
        ("InvalidCertificate", Reason::Tls),
        ("AlertReceived", Reason::Tls),
        ("InvalidMessage", Reason::Tls),
    ];
    let said = error.details();
    let redirected = ["MOVED", "ASK ", "CROSSSLOT"].iter().any(|word| said.starts_with(word));
    if redirected {
        return (!in_cluster).then_some(Reason::IsACluster);
    }
    let by_part = || PARTS.iter().find(|(part, _)| said.contains(part));
    let by_prefix = PREFIXES.iter().find(|(prefix, _)| said.starts_with(prefix));
    let by_kind = || (*error.kind() == ErrorKind::Tls).then_some(Reason::Tls);
    by_prefix.or_else(by_part).map(|(_, reason)| *reason).or_else(by_kind)
}

/// Whether a command is denied as such, not a key or what a script does.
fn is_about_command(said: &str) -> bool {
    !said.contains("script") && !denied_in(said).is_empty()
}

/// The command in `... no permissions to run the 'get' command`; empty when it is about keys.
fn denied_in(said: &str) -> &str {
    said.split(['\'', '`']).nth(1).unwrap_or_default()
}

/// What is wrong, what that costs, and what to do.
fn words(reason: RedisRefusal) -> (&'static str, &'static str, &'static str) {
    const ALL: &str = "every read that memory cannot answer goes to PostgreSQL";
    const PART: &str = "what needs it goes to PostgreSQL or is left out";
    const TLS: &str = "check the certificate, and whether REDIS_URL says rediss:// rightly";
    use RedisRefusal as Reason;
    match reason {
        Reason::WrongPassword => {
            ("Redis rejects the user or password", ALL, "correct them in REDIS_URL or in Redis")
        }
        Reason::NoAuth => ("Redis wants a password", ALL, "add it to REDIS_URL"),
        Reason::NoPermission => (
            "Redis denies a command or a key",
            PART,
            "grant it to the user (ACL SETUSER), see the README",
        ),
        Reason::BadDatabase => (
            "Redis has no database of this number",
            ALL,
            "correct the number at the end of REDIS_URL",
        ),
        Reason::UnknownCa => (
            "the certificate of Redis is not trusted",
            ALL,
            "add its authority to the system's, or to the file that SSL_CERT_FILE names",
        ),
        Reason::CertificateRequired => (
            "Redis wants a client certificate",
            ALL,
            "set tls-auth-clients to no or optional in Redis",
        ),
        Reason::Tls => ("the TLS handshake with Redis fails", ALL, TLS),
        Reason::NotACluster => {
            ("Redis is not a cluster", ALL, "use redis:// in REDIS_URL, and no REDIS_CLUSTER")
        }
        Reason::IsACluster => (
            "Redis is a node of a cluster",
            "only its own slots come from Redis, and batches do not",
            "use redis-cluster:// in REDIS_URL",
        ),
        Reason::ReadOnlyReplica => (
            "Redis is a read-only replica",
            "what it holds is served, and what it lacks is loaded by each instance and not stored",
            "give the address of the master in REDIS_URL",
        ),
        Reason::ClusterDown => (
            "the Redis cluster is down",
            "its products come from PostgreSQL",
            "see CLUSTER INFO and CLUSTER NODES",
        ),
        Reason::NoSlots => (
            "some slots of the Redis cluster have no server",
            "their products come from PostgreSQL",
            "assign them (redis-cli --cluster fix)",
        ),
        Reason::TooManyClients => ("Redis has too many clients", ALL, "raise its maxclients"),
        Reason::ProtectedMode => {
            ("Redis is in protected mode", ALL, "set a password in Redis, or protected-mode no")
        }
        Reason::Unreachable => {
            ("Redis cannot be reached", ALL, "it is used again as soon as it answers")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(said: &'static str) -> Option<RedisRefusal> {
        reason_of(&Error::new(ErrorKind::Unknown, said), false)
    }

    #[test]
    fn what_servers_say_has_a_reason() {
        use RedisRefusal as Reason;
        for (said, expected) in [
            (
                "WRONGPASS invalid username-password pair or user is disabled.",
                Reason::WrongPassword,
            ),
            ("ERR AUTH <password> called without any password configured", Reason::WrongPassword),
            ("NOAUTH Authentication required.", Reason::NoAuth),
            ("NOPERM this user has no permissions to run the 'get' command", Reason::NoPermission),
            ("ERR ACL failure in script: this user has no permissions", Reason::NoPermission),
            ("ERR DB index is out of range", Reason::BadDatabase),
            ("ERR This instance has cluster support disabled", Reason::NotACluster),
            ("MOVED 3999 127.0.0.1:6381", Reason::IsACluster),
            ("CROSSSLOT Keys in request don't hash to the same slot", Reason::IsACluster),
            ("READONLY You can't write against a read only replica.", Reason::ReadOnlyReplica),
            ("Custom { error: InvalidCertificate(UnknownIssuer) }", Reason::UnknownCa),
            ("Custom { error: InvalidCertificate(Expired) }", Reason::Tls),
            ("Custom { error: AlertReceived(CertificateRequired) }", Reason::CertificateRequired),
        ] {
            assert_eq!(reason(said), Some(expected), "{said}");
        }
        assert_eq!(reason("NOSCRIPT No matching script. Please use EVAL."), None);
        let moved = Error::new(ErrorKind::Cluster, "MOVED 1 h:1");
        assert_eq!(reason_of(&moved, true), None, "a cluster says so as a matter of course");
    }

    #[test]
    fn a_refusal_of_one_command_is_not_ended_by_another() {
        let refusals = Refusals::new("h:1".to_owned(), false);
        let get = Command::new("GET", Vec::new());
        let denied = "NOPERM this user has no permissions to run the 'evalsha' command";
        let denied = Err(Error::new(ErrorKind::Unknown, denied));
        let script = Command::new("EVALSHA", Vec::new()).labelled("fill");
        refusals.record(&script, &denied);
        refusals.record(&script, &denied);
        assert_eq!(refusals.lines().len(), 1);
        let succeeded = || refusals.standing.lock()[0].succeeded.is_some();
        refusals.record(&get, &Ok(Value::Null));
        assert!(!succeeded());
        refusals.record(&script, &Ok(Value::Null));
        assert!(succeeded());
        refusals.record(&script, &denied);
        assert!(!succeeded());
    }
}
