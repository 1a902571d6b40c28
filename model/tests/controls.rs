//! Negative controls: without any one protection the checker finds how a promise is broken.

use hotshelf_model::checker::check;
use hotshelf_model::protections::Protections;
use hotshelf_model::protocol::Protocol;
use hotshelf_model::protocol::promises::{
    CONVERGED, MEMORY_COVERS, MEMORY_GOES_ON, REDIS_COVERS, REDIS_GOES_ON,
};
use hotshelf_model::scenarios::Scenario;

const ALL: Protections = Protections::ALL;

fn breaks(promise: &str, scenario: Scenario, protections: Protections) {
    let report = check(&Protocol { protections, scenario });
    let found = report.counterexample.expect("a counterexample");
    let length = found.trace.len();
    eprintln!("{length} steps, {} states: not \"{}\"", report.states, found.promise);
    eprintln!("  {:?}", found.trace);
    assert_eq!(found.promise, promise, "{:#?}", found.trace);
}

#[test]
fn without_comparing_versions_redis_goes_back() {
    let without = Protections { redis_compares: false, ..ALL };
    breaks(REDIS_GOES_ON, Scenario::OVERTAKEN_UPDATE, without);
}

#[test]
fn without_comparing_versions_memory_goes_back() {
    let without = Protections { slot_compares: false, ..ALL };
    breaks(MEMORY_GOES_ON, Scenario::OVERTAKEN_UPDATE, without);
}

#[test]
fn without_the_floor_of_a_flight_memory_keeps_what_was_old_when_it_came() {
    breaks(CONVERGED, Scenario::LOADS, Protections { flight_floor: false, ..ALL });
}

#[test]
fn without_the_floor_of_a_write_memory_keeps_a_write_that_was_overtaken() {
    breaks(CONVERGED, Scenario::OVERTAKEN_UPDATE, Protections { write_floor: false, ..ALL });
}

#[test]
fn a_fill_without_the_lease_leaves_redis_old() {
    breaks(CONVERGED, Scenario::LOADS, Protections { fill_checks_lease: false, ..ALL });
}

#[test]
fn a_lease_that_writes_do_not_break_leaves_redis_old() {
    breaks(CONVERGED, Scenario::LOADS, Protections { writes_break_lease: false, ..ALL });
}

#[test]
fn a_late_write_into_an_empty_place_leaves_redis_old() {
    let without = Protections { writes_only_replace: false, ..ALL };
    breaks(CONVERGED, Scenario::OVERTAKEN_UPDATE, without);
}

#[test]
fn without_the_relay_nobody_hears_of_sql() {
    breaks(CONVERGED, Scenario::LOADS, Protections { relay: false, ..ALL });
}

#[test]
fn without_gap_detection_memory_keeps_what_the_stream_has_dropped() {
    breaks(CONVERGED, Scenario::TRIM, Protections { gap_detection: false, ..ALL });
}

/// Then every lost change is appended again, behind every cursor.
#[test]
fn after_a_failover_the_replay_suffices_without_gap_detection() {
    let protections = Protections { gap_detection: false, ..ALL };
    let report = check(&Protocol { protections, scenario: Scenario::FAILOVER });
    assert!(report.counterexample.is_none(), "{:#?}", report.counterexample);
}

#[test]
fn voiding_only_what_is_older_than_the_question_keeps_what_changed_before_the_answer() {
    breaks(CONVERGED, Scenario::CRASH, Protections { void_after_restart: false, ..ALL });
}

#[test]
fn without_the_replay_a_failover_leaves_redis_old() {
    breaks(CONVERGED, Scenario::FAILOVER, Protections { replay: false, ..ALL });
}

#[test]
fn a_replay_during_a_step_of_the_relay_misses_what_the_step_lost() {
    breaks(CONVERGED, Scenario::FAILOVER, Protections { replay_after_relay: false, ..ALL });
}

#[test]
fn without_a_replay_at_the_start_a_death_after_a_failover_leaves_redis_old() {
    let without = Protections { replay_at_start: false, ..ALL };
    breaks(CONVERGED, Scenario::LONG_DOUBLE_FAULT, without);
}

#[test]
fn a_tombstone_of_too_low_a_version_gives_way_to_what_was_deleted() {
    breaks(REDIS_GOES_ON, Scenario::LOADS, Protections { exact_tombstones: false, ..ALL });
}

#[test]
fn with_a_clock_that_went_back_new_changes_hide_behind_a_cursor() {
    breaks(CONVERGED, Scenario::FAILOVER, Protections { clock_goes_on: false, ..ALL });
}

#[test]
fn what_is_claimed_and_not_done_has_not_been_relayed() {
    let without = Protections { look_sees_claimed: false, ..ALL };
    breaks(REDIS_COVERS, Scenario::FRONTIER, without);
}

#[test]
fn what_was_relayed_during_a_poll_is_not_covered_by_it() {
    let without = Protections { looked_before_poll: false, ..ALL };
    breaks(MEMORY_COVERS, Scenario::FRONTIER, without);
}
