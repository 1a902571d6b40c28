//! What a drill is.

use std::pin::Pin;
use std::time::Duration;

use crate::Error;
use crate::stage::Stage;

/// Which Redis the instances use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// One, behind a proxy.
    Single,
    /// A Redis Cluster of three masters with a replica each.
    Cluster,
}

/// Breaks something, proves that it is broken, holds it, and mends it.
pub type Act = for<'a> fn(&'a Stage<'a>) -> Acting<'a>;
/// It acts.
pub type Acting<'a> = Pin<Box<dyn Future<Output = Result<(), Error>> + 'a>>;

/// A fault, and what callers may feel of it.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Its name.
    pub name: &'static str,
    /// What happens, for people.
    pub what: &'static str,
    /// The world that it needs.
    pub topology: Topology,
    /// More options of the instances.
    pub options: &'static [&'static str],
    /// More settings of Redis.
    pub redis: &'static [(&'static str, &'static str)],
    /// Whether reads of hot products that are changed meanwhile may be refused: each change costs a load, and the copy from before
    /// it is not served.
    pub changed_may_fail: bool,
    /// Whether a server of Redis may come back with an older state.
    pub redis_goes_back: bool,
    /// Whether the instances see a wall clock that can be set.
    pub sets_clocks: bool,
    /// How long it is held.
    pub hold: Duration,
    /// Held for less it would show nothing.
    pub shortest: Duration,
    /// How old a plain read may be, where the options promise more than the plan.
    pub bound: Option<Duration>,
    /// What callers may feel.
    pub demands: Demands,
    /// What happens.
    pub act: Act,
}

/// What must hold while a fault lasts. No violation, no lost update, the budget of Postgres and recovery without
/// a person are demanded always; requests to an instance that is itself the victim are excused.
#[derive(Clone, Copy, Debug)]
pub struct Demands {
    /// No plain read of a hot product fails.
    pub cached_reads: bool,
    /// No read fails.
    pub reads: bool,
    /// No UpdateProduct fails.
    pub updates: bool,
    /// Every instance trusts its memory all the time.
    pub trusted: bool,
    /// The p99 of plain reads of hot products is at most this many times what it was before.
    pub p99_ratio: Option<f64>,
    /// No older state is served for longer after a commit.
    pub stalest: Option<Duration>,
    /// No read takes longer.
    pub slowest: Option<Duration>,
    /// Two seconds after it began, plain reads of hot products are as fast as before.
    pub soon_fast: bool,
    /// What is refused is refused within this.
    pub refused_within: Option<Duration>,
}

impl Demands {
    /// Of a fault that callers should not feel but for its latency.
    pub const NOTHING_FAILS: Self = Self {
        cached_reads: true,
        reads: true,
        updates: true,
        trusted: false,
        p99_ratio: None,
        stalest: None,
        slowest: None,
        soon_fast: false,
        refused_within: None,
    };
    /// Of a fault that leaves only what is cached.
    pub const CACHED_IS_SERVED: Self = Self { reads: false, updates: false, ..Self::NOTHING_FAILS };
    /// Of a fault that takes every instance away.
    pub const ALL_COMES_BACK: Self = Self { cached_reads: false, ..Self::CACHED_IS_SERVED };
}

impl Fault {
    /// A fault of a world with one Redis, that callers should not feel.
    #[must_use]
    pub fn new(name: &'static str, what: &'static str, act: Act) -> Self {
        Self {
            name,
            what,
            topology: Topology::Single,
            options: &[],
            redis: &[],
            changed_may_fail: false,
            redis_goes_back: false,
            sets_clocks: false,
            hold: Duration::from_secs(8),
            shortest: Duration::ZERO,
            bound: None,
            demands: Demands::NOTHING_FAILS,
            act,
        }
    }

    /// A fault of a world with a Redis Cluster, that callers should not feel.
    #[must_use]
    pub fn of_cluster(name: &'static str, what: &'static str, act: Act) -> Self {
        Self { topology: Topology::Cluster, ..Self::new(name, what, act) }
    }

    /// What it needs and this machine does not have.
    #[must_use]
    pub fn missing(&self) -> Option<&'static str> {
        (self.sets_clocks && crate::instance::faketime().is_none())
            .then_some("libfaketime is not installed (Debian: apt-get install faketime)")
    }
}
