//! The integration tests: real instances on private Postgres, Redis and Redis Cluster. Each name is a claim, and the
//! list of names is the specification.
#![allow(missing_docs, reason = "the names of the tests are the documentation")]
#![allow(unreachable_pub, reason = "a test binary has no outside")]
#![allow(
    clippy::disallowed_methods,
    reason = "tests spawn, and read the environment, on their own"
)]
#![allow(clippy::print_stdout, reason = "soak tests print what they measured")]
#![allow(clippy::large_futures, reason = "a test is one future")]
#![allow(clippy::unwrap_used, reason = "a test fails where it fails")]

mod auth;
mod breaker;
mod budget;
mod callers;
mod callers_edge;
mod callers_limits;
mod callers_memory;
mod callers_named;
mod callers_told;
mod ceiling;
mod checker;
mod cluster;
mod coherence;
mod controls;
mod epoch;
mod explain;
mod failover;
mod feed;
mod harness;
mod identity;

mod admin_port;
mod attach;
mod config;
mod deadlines;
mod docs;
mod doctor;
mod drain;
mod drill;
mod edge;
mod errors;
mod examples;
mod garbage;
mod hostile;
mod hot_keys;
mod hot_model;
mod hot_path;
mod hot_tier;
mod import;
mod kill;
mod lease;
mod loadtest;
mod logging;
mod metrics;
mod metrics_complete;
mod newest_wins;
mod openapi;
mod outage;
mod page;
mod races;
mod recovery;
mod redis_access;
mod redis_cluster_shapes;
mod refresh;
mod relay_lag;
mod replication_ids;
mod resident;
mod round_trips;
mod rows;
mod schema;
mod shadow;
mod sql_contract;
mod staleness;
mod stampede;
mod statements;
mod supervision;
mod switches;
mod tls;
mod traces;
mod wakes;
mod web;
mod wire;

use harness::{Servers, Suite};

fn main() -> std::process::ExitCode {
    let arguments = libtest_mimic::Arguments::from_args();
    let servers = Servers::default();
    let mut suite = Suite::new(&servers);
    stampede::register(&mut suite);
    tls::register(&mut suite);
    auth::register(&mut suite);
    newest_wins::register(&mut suite);
    lease::register(&mut suite);
    coherence::register(&mut suite);
    kill::register(&mut suite);
    epoch::register(&mut suite);
    identity::register(&mut suite);
    ceiling::register(&mut suite);
    feed::register(&mut suite);
    controls::register(&mut suite);
    explain::register(&mut suite);
    shadow::register(&mut suite);
    traces::register(&mut suite);
    schema::register(&mut suite);
    sql_contract::register(&mut suite);
    rows::register(&mut suite);
    statements::register(&mut suite);
    suite.alone(round_trips::register);
    hot_tier::register(&mut suite);
    hot_model::register(&mut suite);
    hot_path::register(&mut suite);
    resident::register(&mut suite);
    races::register(&mut suite);
    refresh::register(&mut suite);
    relay_lag::register(&mut suite);
    hot_keys::register(&mut suite);
    outage::register(&mut suite);
    breaker::register(&mut suite);
    replication_ids::register(&mut suite);
    redis_access::register(&mut suite);
    redis_cluster_shapes::register(&mut suite);
    cluster::register(&mut suite);
    budget::register(&mut suite);
    deadlines::register(&mut suite);
    wakes::register(&mut suite);
    examples::register(&mut suite);
    openapi::register(&mut suite);
    loadtest::register(&mut suite);
    docs::register(&mut suite);
    import::register(&mut suite);
    errors::register(&mut suite);
    wire::register(&mut suite);
    web::register(&mut suite);
    garbage::register(&mut suite);
    attach::register(&mut suite);
    failover::register(&mut suite);
    config::register(&mut suite);
    doctor::register(&mut suite);
    drain::register(&mut suite);
    supervision::register(&mut suite);
    edge::register(&mut suite);
    switches::register(&mut suite);
    callers_edge::register(&mut suite);
    callers_limits::register(&mut suite);
    callers_memory::register(&mut suite);
    callers_named::register(&mut suite);
    callers_told::register(&mut suite);
    metrics::register(&mut suite);
    metrics_complete::register(&mut suite);
    page::register(&mut suite);
    staleness::register(&mut suite);
    checker::register(&mut suite);
    callers::register(&mut suite);
    suite.alone(recovery::register);
    suite.alone(hostile::register);
    suite.alone(logging::register);
    suite.alone(admin_port::register);
    suite.alone(drill::register);
    let conclusion = suite.run(arguments);
    servers.stop();
    conclusion.exit_code()
}
