//! What each caller may hold, and the callers that are known by name.
//!
//! A caller that is named by a token, a certificate or a trusted proxy has one set of limits on all its connections. The
//! connection is the caller of calls that name none.

use std::collections::HashMap;
use std::sync::Arc;

use ahash::RandomState;
use parking_lot::Mutex;
use ring::digest::{SHA256, digest};

use super::LimitOptions;
use super::allowance::{Allowance, Share};
use super::shed::{CallAdmission, CallPlaces};
use crate::caller::Caller;
use crate::metrics::{Metrics, Shed};

/// A caller that holds more than a `FREE_DIVISOR`th of what is free gets no more.
const FREE_DIVISOR: usize = 8;
/// The same of streams of hot keys: one caller gets 34 of 100. Too high: one dashboard gets few streams. Too low: few callers take
/// all.
const WATCHERS_DIVISOR: usize = 2;
/// Characters of a name that are kept for the log.
const MAX_NAME_CHARS: usize = 100;
/// Parts of the map of callers, so that cores seldom contend for one lock.
const PARTS: usize = 16;
/// Callers in one part, about 1 kB each. Further callers share the limits of one. Too high: memory. Too low: callers whose names
/// come from a proxy share limits under load.
const MAX_CALLERS: usize = 1_024;
/// A part is not swept before this many callers are new in it.
const SWEEP_AFTER: usize = 64;

/// What all callers together may hold.
#[derive(Debug)]
pub(super) struct Limits {
    calls: Arc<CallPlaces>,
    unsent: Arc<Allowance>,
    requests: Arc<Allowance>,
    streams: Arc<Allowance>,
    watchers: Arc<Allowance>,
}

/// What one caller holds of each limit.
#[derive(Debug)]
pub(super) struct CallerLimits {
    pub(super) calls: CallAdmission,
    /// Bytes of batch responses that are not sent yet.
    pub(super) unsent: Arc<Share>,
    /// Bytes of incomplete requests.
    pub(super) requests: Arc<Share>,
    /// Open streams of all services.
    pub(super) streams: Arc<Share>,
    /// Open streams of hot keys.
    pub(super) watchers: Arc<Share>,
}

/// A caller that is known by name.
#[derive(Debug)]
pub(super) struct Named {
    /// Truncated.
    pub(super) name: Box<str>,
    pub(super) caller: Caller,
    pub(super) limits: Arc<CallerLimits>,
}

/// The named callers that make calls, or that still hold something. Sweeps remove the others.
#[derive(Debug)]
pub(super) struct Callers {
    limits: Limits,
    parts: [Mutex<Part>; PARTS],
    /// The limits of all callers that do not fit.
    rest: Arc<CallerLimits>,
}

#[derive(Debug)]
struct Part {
    named: HashMap<Caller, Arc<Named>, RandomState>,
    /// How many callers may be new before the next sweep. The interval grows with the map, so that the cost of a new caller stays
    /// constant.
    until_sweep: usize,
}

impl Limits {
    pub(super) fn new(options: &LimitOptions, metrics: &Metrics) -> Self {
        let new = |limit, kind, gauge| Allowance::new(limit, FREE_DIVISOR, kind, gauge, metrics);
        let unsent =
            ("hotshelf.unsent.bytes", "Bytes of batches that were answered and are not sent.");
        let requests = (
            "hotshelf.incomplete.request.bytes",
            "Bytes of requests that are not complete, and what keeping them takes.",
        );
        let streams = ("hotshelf.streams", "Open streams of all services.");
        let watchers = ("hotshelf.hot.keys.watchers", "Open streams of hot keys.");
        Self {
            calls: CallPlaces::new(options.calls, metrics),
            unsent: new(options.unsent_bytes, Shed::UnsentBytes, unsent),
            requests: new(options.incomplete_request_bytes, Shed::RequestBytes, requests),
            streams: new(options.streams, Shed::Streams, streams),
            watchers: Allowance::new(
                options.watchers,
                WATCHERS_DIVISOR,
                Shed::Streams,
                watchers,
                metrics,
            ),
        }
    }

    fn of_caller(&self) -> CallerLimits {
        CallerLimits {
            calls: CallAdmission::new(&self.calls),
            unsent: self.unsent.share(),
            requests: self.requests.share(),
            streams: self.streams.share(),
            watchers: self.watchers.share(),
        }
    }
}

impl CallerLimits {
    /// Whether anything is held.
    fn is_used(&self) -> bool {
        let shares = [&self.unsent, &self.requests, &self.streams, &self.watchers];
        self.calls.is_used() || shares.iter().any(|share| share.is_used())
    }
}

impl Callers {
    pub(super) fn new(limits: Limits, metrics: &Metrics) -> Arc<Self> {
        let part = || Part { named: HashMap::default(), until_sweep: SWEEP_AFTER };
        let parts = std::array::from_fn(|_| Mutex::new(part()));
        let rest = Arc::new(limits.of_caller());
        let callers = Arc::new(Self { limits, parts, rest });
        let help = "Callers known by name, of which limits are kept.";
        let known =
            |callers: &Self| callers.parts.iter().map(|part| part.lock().named.len() as u64).sum();
        let most = |_: &Self| (PARTS * MAX_CALLERS) as u64;
        metrics.bounded("hotshelf.callers.named", help, &callers, known, most);
        callers
    }

    /// The limits of a connection.
    pub(super) fn of_connection(&self) -> CallerLimits {
        self.limits.of_caller()
    }

    /// The caller with this name.
    pub(super) fn named(&self, name: &str) -> Arc<Named> {
        let digest = digest(&SHA256, name.as_bytes());
        let (first, rest) =
            digest.as_ref().split_first_chunk().expect("a SHA-256 digest has 32 bytes");
        let caller = Caller::of_identity(u64::from_be_bytes(*first));
        let mut part = self.parts[usize::from(rest[0]) % PARTS].lock();
        if let Some(known) = part.named.get(&caller) {
            return Arc::clone(known);
        }
        part.make_room();
        let has_room = part.named.len() < MAX_CALLERS;
        let limits = match has_room {
            true => Arc::new(self.limits.of_caller()),
            false => Arc::clone(&self.rest),
        };
        let name = name.chars().take(MAX_NAME_CHARS).collect::<String>().into();
        let named = Arc::new(Named { name, caller, limits });
        if has_room {
            part.named.insert(caller, Arc::clone(&named));
        }
        named
    }
}

impl Part {
    /// Counts a new caller and, when a sweep is due, removes callers that make no call and hold nothing. A removed caller that
    /// calls again begins with unused limits, which is what it had.
    fn make_room(&mut self) {
        self.until_sweep = self.until_sweep.saturating_sub(1);
        if self.until_sweep == 0 {
            // What a caller holds can only grow through a reference to it, and references are given out under the lock.
            self.named.retain(|_, named| Arc::strong_count(named) > 1 || named.limits.is_used());
            self.until_sweep = SWEEP_AFTER.max(self.named.len() / 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn callers() -> Arc<Callers> {
        let options = LimitOptions {
            calls: 100,
            unsent_bytes: 100,
            incomplete_request_bytes: 100,
            streams: 100,
            watchers: 100,
        };
        let metrics = Metrics::new();
        Callers::new(Limits::new(&options, &metrics), &metrics)
    }

    fn known(callers: &Callers) -> usize {
        callers.parts.iter().map(|part| part.lock().named.len()).sum()
    }

    #[test]
    fn a_caller_that_holds_something_keeps_its_limits() {
        let callers = callers();
        let place = callers.named("busy").limits.calls.take().expect("free");
        let stream = callers.named("watching").limits.streams.take(1).expect("free");
        for number in 0..100_000 {
            drop(callers.named(&number.to_string()));
        }
        assert!(known(&callers) <= PARTS * (SWEEP_AFTER + 2), "{}", known(&callers));
        assert!(callers.named("busy").limits.is_used());
        assert!(callers.named("watching").limits.is_used());
        drop((place, stream));
        assert!(!callers.named("busy").limits.is_used());
    }

    #[test]
    fn callers_beyond_the_bound_share_one_set_of_limits() {
        let callers = callers();
        let calling: Vec<_> = (0..50_000).map(|n| callers.named(&n.to_string())).collect();
        assert_eq!(known(&callers), PARTS * MAX_CALLERS);
        let beyond = calling.iter().filter(|named| Arc::strong_count(named) == 1);
        let mut beyond = beyond.map(|named| &named.limits.unsent);
        let first = beyond.next().expect("some");
        assert!(beyond.all(|unsent| Arc::ptr_eq(unsent, first)));
        drop(calling);
        for number in 0..20_000 {
            drop(callers.named(&format!("later {number}")));
        }
        assert!(known(&callers) < MAX_CALLERS * PARTS / 2, "the map shrinks again");
    }
}
