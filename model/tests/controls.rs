//! Negative controls: without any one protection the checker finds how a promise is broken.

use hotshelf_model::checker::check;
use hotshelf_model::protections::{Cursor, Protections};
use hotshelf_model::protocol::Protocol;
use hotshelf_model::protocol::promises::{
    CONVERGED, KEEPS, MEMORY_GOES_ON, MEMORY_PROVEN, REDIS_GOES_ON, REDIS_PROVEN,
};
use hotshelf_model::scenarios::Scenario;

const ALL: Protections = Protections::ALL;

fn breaks(promise: &str, scenario: Scenario, protections: Protections) {
    let report = check(&Protocol { protections, scenario });
    let found = report.counterexample.expect("a counterexample");
    let length = found.trace.len();
    eprintln!("{length} steps, {} states: not \"{}\"", report.states, found.promise);
    eprintln!("  {:?}", found.trace);
    assert_eq!(found.promise, promise);
}

#[test]
fn a_cursor_without_xip_misses_what_commits_late() {
    let without = Protections { cursor: Cursor::WithoutXip, ..ALL };
    breaks(MEMORY_PROVEN, Scenario::TRANSACTIONS, without);
}

#[test]
fn a_cursor_by_sequence_misses_what_commits_late() {
    let without = Protections { cursor: Cursor::Sequence, ..ALL };
    breaks(MEMORY_PROVEN, Scenario::TRANSACTIONS, without);
}

#[test]
fn without_comparing_versions_redis_goes_back() {
    let without = Protections { redis_compares: false, ..ALL };
    breaks(REDIS_GOES_ON, Scenario::SLOW_UPDATE, without);
}

#[test]
fn without_comparing_versions_memory_goes_back() {
    let without = Protections { slot_compares: false, ..ALL };
    breaks(MEMORY_GOES_ON, Scenario::LONG_OVERTAKEN_UPDATE, without);
}

#[test]
fn without_the_floor_memory_keeps_what_was_old_when_it_came() {
    breaks(MEMORY_PROVEN, Scenario::LOADS, Protections { floor: false, ..ALL });
}

#[test]
fn without_the_floor_of_its_begin_a_slow_answer_of_redis_is_kept() {
    breaks(MEMORY_PROVEN, Scenario::POLLS, Protections { floor_of_begin: false, ..ALL });
}

#[test]
fn without_the_ordinal_a_load_that_slept_is_kept() {
    breaks(MEMORY_PROVEN, Scenario::LOADS, Protections { load_ordinal: false, ..ALL });
}

#[test]
fn without_the_ordinal_a_write_that_slept_is_kept() {
    let without = Protections { write_ordinal: false, ..ALL };
    breaks(MEMORY_PROVEN, Scenario::SLOW_UPDATE, without);
}

#[test]
fn without_the_floor_of_an_own_write_memory_takes_what_redis_still_holds() {
    breaks(REDIS_PROVEN, Scenario::UPDATE, Protections { own_write_floor: false, ..ALL });
}

#[test]
fn a_bogus_hint_that_outlives_the_poll_is_a_product_that_is_never_kept_again() {
    breaks(KEEPS, Scenario::HINTS, Protections { pending_ends: false, ..ALL });
}

#[test]
fn a_hint_that_ends_with_a_poll_sent_before_it_is_forgotten_too_early() {
    breaks(MEMORY_PROVEN, Scenario::HINTS, Protections { pending_waits: false, ..ALL });
}

#[test]
fn a_gap_voids_what_is_being_loaded() {
    breaks(MEMORY_PROVEN, Scenario::LOADS, Protections { gap_voids_loads: false, ..ALL });
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
fn without_the_relay_redis_stays_old() {
    breaks(CONVERGED, Scenario::LOADS, Protections { relay: false, ..ALL });
}

#[test]
fn without_the_marker_an_instance_that_slept_misses_what_was_pruned() {
    breaks(MEMORY_PROVEN, Scenario::POLLS, Protections { gap_check: false, ..ALL });
}

#[test]
fn what_is_pruned_before_it_is_relayed_is_taken_from_redis() {
    breaks(MEMORY_PROVEN, Scenario::LOADS, Protections { prune_waits: false, ..ALL });
}

#[test]
fn what_a_silent_node_has_not_applied_is_taken_from_it() {
    breaks(MEMORY_PROVEN, Scenario::LOADS, Protections { relayed_waits: false, ..ALL });
}

#[test]
fn a_marker_that_goes_back_hides_a_gap() {
    breaks(MEMORY_PROVEN, Scenario::TAKEOVERS, Protections { markers_grow: false, ..ALL });
}

#[test]
fn an_answer_proves_nothing_about_when_it_arrived() {
    breaks(MEMORY_PROVEN, Scenario::POLLS, Protections { proof_when_sent: false, ..ALL });
}

#[test]
fn what_a_failover_brought_back_is_taken_for_current() {
    breaks(MEMORY_PROVEN, Scenario::FAILOVER, Protections { suspects: false, ..ALL });
}

#[test]
fn what_was_recent_when_the_loss_was_found_out_is_not_for_ever() {
    breaks(CONVERGED, Scenario::FAILOVER, Protections { suspects_age: false, ..ALL });
}

#[test]
fn a_key_without_a_moment_says_that_nothing_was_lost() {
    breaks(MEMORY_PROVEN, Scenario::LONG_FAILOVER, Protections { key_says_since: false, ..ALL });
}

#[test]
fn what_was_known_before_an_overflow_is_not_current() {
    breaks(MEMORY_PROVEN, Scenario::OVERFLOW, Protections { overflow_suspects: false, ..ALL });
}

#[test]
fn what_was_read_before_redis_reflected_an_overflow_is_kept_afterwards() {
    let without = Protections { overflow_ends_with_ordinal: false, ..ALL };
    breaks(MEMORY_PROVEN, Scenario::OVERFLOW, without);
}

#[test]
fn without_a_void_at_the_first_poll_what_was_loaded_before_it_is_kept() {
    breaks(MEMORY_PROVEN, Scenario::START, Protections { first_poll_voids: false, ..ALL });
}

#[test]
fn without_a_new_epoch_what_was_lost_is_served() {
    breaks(REDIS_PROVEN, Scenario::RESTORE, Protections { epoch: false, ..ALL });
}

#[test]
fn without_the_epoch_in_keys_what_was_lost_is_read_from_redis() {
    breaks(MEMORY_PROVEN, Scenario::RESTORE, Protections { scope: false, ..ALL });
}

#[test]
fn what_began_in_the_old_epoch_must_not_write_into_the_new() {
    breaks(REDIS_GOES_ON, Scenario::RESTORE, Protections { scope_of_begin: false, ..ALL });
}

#[test]
fn a_relay_of_the_old_epoch_must_not_advance_the_markers() {
    breaks(MEMORY_PROVEN, Scenario::RESTORE, Protections { markers_of_epoch: false, ..ALL });
}
