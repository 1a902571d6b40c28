//! What a server refuses again and again: a wrong password, a missing permission, a replica that takes no writes. Each
//! refusal is one log line when it begins and one when it ends; in between it is in a gauge and in `/readyz`.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fred::error::Error;
use fred::types::Value;
use parking_lot::Mutex;

use super::reasons::{denied_in, is_about_command, reason_of, words};
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
/// The refusals of one node, or of a cluster as a whole.
#[derive(Debug)]
pub(super) struct RedisRefusals {
    server: String,
    in_cluster: bool,
    standing: Mutex<Vec<OpenRefusal>>,
    /// How many stand, so that a reply costs no lock while none does.
    count: AtomicUsize,
    failing_since: Mutex<Option<Instant>>,
    /// Why the last connection could not be made, when that is none of the reasons.
    last: Mutex<String>,
}

#[derive(Debug)]
struct OpenRefusal {
    reason: RedisRefusal,
    /// The command that is denied; empty when the reason is about the whole server.
    denied: String,
    /// What has to succeed before it ends.
    label: &'static str,
    said: String,
    since: Instant,
    /// When `label` first succeeded after the last refusal.
    succeeded: Option<Instant>,
}

impl RedisRefusals {
    pub(super) fn new(server: String, in_cluster: bool) -> Self {
        Self {
            server,
            in_cluster,
            standing: Mutex::default(),
            count: AtomicUsize::new(0),
            failing_since: Mutex::default(),
            last: Mutex::default(),
        }
    }

    /// Takes in the reply to a command; `label` tells it apart from others of its name.
    pub(super) fn record(
        &self,
        name: &'static str,
        label: &'static str,
        reply: &Result<Value, Error>,
    ) {
        match reply {
            Ok(_) if self.count.load(Ordering::Relaxed) == 0 => {}
            Ok(_) => {
                self.succeeded(name);
                self.succeeded(label);
            }
            Err(error) => self.failed(error, Some((name, label))),
        }
    }

    /// Takes in an error: of a command, or of a connection that could not be made.
    pub(super) fn failed(&self, error: &Error, command: Option<(&'static str, &'static str)>) {
        let said = error.details();
        let Some(reason) = reason_of(error, self.in_cluster) else {
            if command.is_none() {
                said.clone_into(&mut self.last.lock());
            }
            return;
        };
        let label = match (reason, command) {
            (RedisRefusal::ReadOnlyReplica, _) => WRITE,
            (RedisRefusal::ClusterDown, _) => "GET",
            (RedisRefusal::IsACluster, Some(_)) => SINGLE,
            (RedisRefusal::NotACluster, Some((name, _))) => name,
            (RedisRefusal::NoPermission, Some((name, _))) if is_about_command(said) => name,
            (RedisRefusal::NoPermission, Some((_, label))) => label,
            _ => CONNECT,
        };
        self.begin(reason, label, said);
    }

    pub(super) fn begin(&self, reason: RedisRefusal, label: &'static str, said: &str) {
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
        let refusal = OpenRefusal { reason, denied, label, said, since, succeeded: None };
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
    fn ended(&self, refusal: &OpenRefusal) -> bool {
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
        let stands = |refusal: &OpenRefusal| refusal.label == CONNECT && refusal.reason != known;
        if !self.standing.lock().iter().any(stands) {
            let last = std::mem::take(&mut *self.last.lock());
            self.begin(known, CONNECT, if last.is_empty() { said } else { &last });
        }
    }

    pub(super) fn stands(&self, reason: RedisRefusal) -> bool {
        self.standing.lock().iter().any(|refusal| refusal.reason == reason)
    }

    fn any_stands(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    /// Whether a command of this name, or what has this label, is refused.
    pub(super) fn refuses(&self, label: &str) -> bool {
        self.any_stands() && self.standing.lock().iter().any(|refusal| refusal.label == label)
    }

    /// A line for each refusal, for the operator.
    pub(super) fn lines(&self) -> Vec<String> {
        let line = |refusal: &OpenRefusal| {
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

#[cfg(test)]
mod tests {
    use fred::error::ErrorKind;

    use super::*;

    #[test]
    fn a_refusal_of_one_command_is_not_ended_by_another() {
        let refusals = RedisRefusals::new("h:1".to_owned(), false);
        let denied = "NOPERM this user has no permissions to run the 'evalsha' command";
        let denied = Err(Error::new(ErrorKind::Unknown, denied));
        refusals.record("EVALSHA", "fill", &denied);
        refusals.record("EVALSHA", "fill", &denied);
        assert_eq!(refusals.lines().len(), 1);
        let succeeded = || refusals.standing.lock()[0].succeeded.is_some();
        refusals.record("GET", "GET", &Ok(Value::Null));
        assert!(!succeeded());
        refusals.record("EVALSHA", "fill", &Ok(Value::Null));
        assert!(succeeded());
        refusals.record("EVALSHA", "fill", &denied);
        assert!(!succeeded());
    }
}
