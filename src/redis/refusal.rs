//! Errors of a server that persist: a wrong password, a missing permission, writes to a replica. Each such refusal is logged
//! once when it begins and once when it ends; in between it counts in a gauge and is listed in `/readyz`.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fred::error::Error;
use fred::types::Value;
use parking_lot::Mutex;

use super::reasons::{denied_in, description, is_about_command, reason_of};
use crate::findings::Finding;
use crate::metrics::RedisRefusal;

/// What must succeed before a refusal ends: all connections of the node are established.
pub(super) const CONNECT: &str = "connect";
/// The same: a write succeeds.
pub(super) const WRITE: &str = "write";
/// The same: all connections were reestablished, and may lead to a server outside a cluster.
pub(super) const SINGLE: &str = "single";
/// The same: every slot of the cluster has a server.
pub(super) const SLOTS: &str = "slots";

/// A refusal ends when this much time has passed since a success without another refusal. Too high: the end is logged late. Too
/// low: two lines for each of several connections that recover one after the other.
const RECOVERED_AFTER: Duration = Duration::from_millis(400);
/// A server that answers no probe for this long is unreachable. Too low: a line for every restart.
const UNREACHABLE: Duration = Duration::from_secs(1);
/// Error texts of a server are cut off here.
const MAX_ERROR_CHARS: usize = 200;

/// The refusals of one node, or of a cluster as a whole.
#[derive(Debug)]
pub(super) struct RedisRefusals {
    server: String,
    in_cluster: bool,
    open: Mutex<Vec<OpenRefusal>>,
    /// The number of open refusals. While it is zero, a reply takes no lock.
    count: AtomicUsize,
    failing_since: Mutex<Option<Instant>>,
    /// The last connection error that has no [`RedisRefusal`] reason.
    last: Mutex<String>,
}

#[derive(Debug)]
struct OpenRefusal {
    reason: RedisRefusal,
    /// The denied command; empty when the refusal is about the whole server.
    denied: String,
    /// What must succeed before it ends.
    label: &'static str,
    error_text: String,
    since: Instant,
    /// When `label` first succeeded after the last refusal.
    succeeded: Option<Instant>,
}

impl RedisRefusals {
    pub(super) fn new(server: String, in_cluster: bool) -> Self {
        Self {
            server,
            in_cluster,
            open: Mutex::default(),
            count: AtomicUsize::new(0),
            failing_since: Mutex::default(),
            last: Mutex::default(),
        }
    }

    /// Records the reply to a command. `label` distinguishes scripts, which share a command name.
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

    /// Records an error of a command, or of a connection attempt (`command` is `None`).
    pub(super) fn failed(&self, error: &Error, command: Option<(&'static str, &'static str)>) {
        let error_text = error.details();
        let Some(reason) = reason_of(error, self.in_cluster) else {
            if command.is_none() {
                error_text.clone_into(&mut self.last.lock());
            }
            return;
        };
        let label = match (reason, command) {
            (RedisRefusal::ReadOnlyReplica, _) => WRITE,
            (RedisRefusal::ClusterDown, _) => "GET",
            (RedisRefusal::IsACluster, Some(_)) => SINGLE,
            (RedisRefusal::NotACluster, Some((name, _))) => name,
            (RedisRefusal::NoPermission, Some((name, _))) if is_about_command(error_text) => name,
            (RedisRefusal::NoPermission, Some((_, label))) => label,
            _ => CONNECT,
        };
        self.begin(reason, label, error_text);
    }

    pub(super) fn begin(&self, reason: RedisRefusal, label: &'static str, error_text: &str) {
        let denied = match reason {
            RedisRefusal::NoPermission => denied_in(error_text).to_lowercase(),
            _ => String::new(),
        };
        let mut open = self.open.lock();
        let known =
            open.iter_mut().find(|refusal| refusal.reason == reason && refusal.denied == denied);
        if let Some(known) = known {
            known.label = label;
            known.succeeded = None;
            return;
        }
        if label == CONNECT {
            // A connection fails for one reason at a time, so this one replaces the previous.
            open.retain(|refusal| refusal.label != CONNECT || self.ended(refusal));
        }
        let error_text = error_text.chars().take(MAX_ERROR_CHARS).collect();
        let since = Instant::now();
        let refusal = OpenRefusal { reason, denied, label, error_text, since, succeeded: None };
        let (what, cost, remedy) = description(reason);
        tracing::warn!(
            server = self.server,
            reason = reason.name(),
            error = refusal.error_text,
            "{what}: {cost}; {remedy}"
        );
        open.push(refusal);
        self.count.store(open.len(), Ordering::Relaxed);
    }

    pub(super) fn succeeded(&self, label: &'static str) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        for refusal in self.open.lock().iter_mut().filter(|refusal| refusal.label == label) {
            refusal.succeeded.get_or_insert_with(Instant::now);
        }
    }

    /// Ends refusals that have recovered. Each probe calls it.
    pub(super) fn end_recovered(&self) {
        let mut open = self.open.lock();
        open.retain(|refusal| match refusal.succeeded {
            Some(at) if at.elapsed() >= RECOVERED_AFTER => self.ended(refusal),
            _ => true,
        });
        self.count.store(open.len(), Ordering::Relaxed);
    }

    /// Ends all refusals of a server that is removed.
    pub(super) fn end_all(&self) {
        let mut open = self.open.lock();
        open.retain(|refusal| self.ended(refusal));
        self.count.store(0, Ordering::Relaxed);
    }

    /// Logs the end. Returns `false`, for `retain`.
    fn ended(&self, refusal: &OpenRefusal) -> bool {
        let lasted = humantime::format_duration(seconds(refusal.since.elapsed()));
        tracing::info!(
            server = self.server, reason = refusal.reason.name(), %lasted,
            "a Redis refusal ended: it works again, another refusal replaced it, or its server was removed"
        );
        false
    }

    pub(super) fn is_reached(&self) {
        *self.failing_since.lock() = None;
    }

    /// A probe failed. After [`UNREACHABLE`] the server counts as unreachable.
    pub(super) fn is_not_reached(&self, error_text: &str) {
        let since = *self.failing_since.lock().get_or_insert_with(Instant::now);
        if since.elapsed() >= UNREACHABLE {
            self.is_unreachable(error_text);
        }
    }

    /// Records that no connection can be established. An open refusal with a more precise reason is kept.
    pub(super) fn is_unreachable(&self, error_text: &str) {
        let known = RedisRefusal::Unreachable;
        let stands = |refusal: &OpenRefusal| refusal.label == CONNECT && refusal.reason != known;
        if !self.open.lock().iter().any(stands) {
            let last = std::mem::take(&mut *self.last.lock());
            self.begin(known, CONNECT, if last.is_empty() { error_text } else { &last });
        }
    }

    pub(super) fn stands(&self, reason: RedisRefusal) -> bool {
        self.open.lock().iter().any(|refusal| refusal.reason == reason)
    }

    fn any_stands(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    /// Whether a command of this name or label is refused.
    pub(super) fn refuses(&self, label: &str) -> bool {
        self.any_stands() && self.open.lock().iter().any(|refusal| refusal.label == label)
    }

    /// A finding for each refusal.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let finding = |refusal: &OpenRefusal| {
            let (what, cost, remedy) = description(refusal.reason);
            let finding = Finding::warning("access", what, cost, remedy);
            finding.with_detail(&refusal.error_text).reported()
        };
        self.open.lock().iter().map(finding).collect()
    }

    pub(super) fn server(&self) -> &str {
        &self.server
    }

    /// One line for each refusal, for `/readyz`.
    pub(super) fn lines(&self) -> Vec<String> {
        let line = |refusal: &OpenRefusal| {
            let (what, cost, remedy) = description(refusal.reason);
            let lasted = humantime::format_duration(seconds(refusal.since.elapsed()));
            format!(
                "redis {}: {} for {lasted}: {what} ({}): {cost}; {remedy}",
                self.server,
                refusal.reason.name(),
                refusal.error_text
            )
        };
        self.open.lock().iter().map(line).collect()
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
        let succeeded = || refusals.open.lock()[0].succeeded.is_some();
        refusals.record("GET", "GET", &Ok(Value::Null));
        assert!(!succeeded());
        refusals.record("EVALSHA", "fill", &Ok(Value::Null));
        assert!(succeeded());
        refusals.record("EVALSHA", "fill", &denied);
        assert!(!succeeded());
    }
}
