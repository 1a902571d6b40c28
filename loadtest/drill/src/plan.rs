//! How long each part of a drill takes, and under which load.

use std::path::PathBuf;
use std::time::Duration;

use checker::Load;
use checker::load::Mix;

#[derive(Clone, Debug)]
pub struct Plan {
    /// The hotshelf program.
    pub program: PathBuf,
    /// The directory for logs at debug level. Without it the logs are deleted with the servers.
    pub logs: Option<PathBuf>,
    pub instances: usize,
    /// Options of every instance.
    pub options: &'static [&'static str],
    pub load: Load,
    /// Under load, before anything is measured.
    pub warm_up: Duration,
    /// Measured before the fault.
    pub baseline: Duration,
    /// The longest that a fault is held.
    pub longest_hold: Duration,
    /// Under load, after recovery.
    pub aftermath: Duration,
    /// From the end of the fault until every instance trusts its memory.
    pub recovery_timeout: Duration,
    /// Whether demands about speed count: not if other work shares the machine.
    pub timed: bool,
}

impl Plan {
    /// Holds each fault past every TTL that it concerns.
    #[must_use]
    pub fn full(program: PathBuf) -> Self {
        let load = Load {
            read_rate: 600.0,
            write_rate: 15.0,
            in_flight: 20_000,
            // P3 under a fault: max_staleness, and the time that a read itself takes.
            bound: Duration::from_millis(6_000),
            mix: Mix { api: 50, update: 30, bulk: 10, replace: 10 },
            ..Load::default()
        };
        Self {
            program,
            logs: None,
            instances: 3,
            options: &[],
            load,
            warm_up: Duration::from_secs(2),
            baseline: Duration::from_secs(3),
            longest_hold: Duration::from_secs(10),
            aftermath: Duration::from_secs(3),
            recovery_timeout: Duration::from_secs(20),
            timed: true,
        }
    }

    /// Holds each fault for a few seconds.
    #[must_use]
    pub fn short(program: PathBuf) -> Self {
        let full = Self::full(program);
        Self {
            warm_up: Duration::from_secs(1),
            baseline: Duration::from_secs(1),
            longest_hold: Duration::from_secs(3),
            aftermath: Duration::from_secs(1),
            timed: false,
            ..full
        }
    }

    /// For a test on any machine: a load for a tenth of two cores, and bounds that only a defect of hotshelf exceeds.
    #[must_use]
    pub fn test(program: PathBuf) -> Self {
        let short = Self::short(program);
        let load = Load {
            read_rate: 60.0,
            write_rate: 4.0,
            hot: 40,
            cold: 100,
            bound: Duration::from_secs(10),
            ..short.load
        };
        Self {
            load,
            instances: 2,
            // A busy machine must not look like a broken server.
            options: &["--database-acquire-timeout", "5s", "--redis-timeout", "500ms"],
            warm_up: Duration::from_millis(500),
            baseline: Duration::from_millis(500),
            longest_hold: Duration::from_millis(1_500),
            aftermath: Duration::from_millis(500),
            recovery_timeout: Duration::from_secs(120),
            ..short
        }
    }
}
