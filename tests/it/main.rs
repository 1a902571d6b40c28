//! The integration tests: real instances on real, private Postgres, Redis and Redis Cluster. The names are the
//! claims, and the list of them is the specification.
#![allow(missing_docs, reason = "the names of the tests say it")]
#![allow(unreachable_pub, reason = "a test binary has no outside")]
#![allow(
    clippy::disallowed_methods,
    reason = "tests spawn, and read the environment, on their own"
)]
#![allow(clippy::large_futures, reason = "a test is one future")]
#![allow(clippy::unwrap_used, reason = "a test fails where it fails")]

mod checker;
mod coherence;
mod explain;
mod harness;

mod hot_keys;
mod hot_model;
mod hot_tier;
mod lease;
mod newest_wins;
mod outage;
mod races;
mod refresh;
mod schema;
mod stampede;

use harness::{Servers, Suite};

fn main() -> std::process::ExitCode {
    let arguments = libtest_mimic::Arguments::from_args();
    let servers = Servers::default();
    let mut suite = Suite::new(&servers);
    stampede::register(&mut suite);
    newest_wins::register(&mut suite);
    lease::register(&mut suite);
    coherence::register(&mut suite);
    explain::register(&mut suite);
    schema::register(&mut suite);
    hot_tier::register(&mut suite);
    hot_model::register(&mut suite);
    races::register(&mut suite);
    refresh::register(&mut suite);
    hot_keys::register(&mut suite);
    outage::register(&mut suite);
    checker::register(&mut suite);
    let conclusion = suite.run(arguments);
    servers.stop();
    conclusion.exit_code()
}
