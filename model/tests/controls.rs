//! Negative controls: without any one protection the checker finds a counterexample.

use hotshelf_model::checker::check;
use hotshelf_model::protections::{Cursor, Protections};
use hotshelf_model::protocol::Protocol;
use hotshelf_model::protocol::promises::{
    CONVERGED, KEEPABLE, MEMORY_MONOTONIC, MEMORY_PROVEN, REDIS_MONOTONIC, REDIS_PROVEN,
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
fn a_cursor_without_xip_misses_a_late_commit() {
    let without = Protections { cursor: Cursor::WithoutXip, ..ALL };
    breaks(MEMORY_PROVEN, Scenario::TRANSACTIONS, without);
}

#[test]
fn a_cursor_by_sequence_misses_a_late_commit() {
    let without = Protections { cursor: Cursor::Sequence, ..ALL };
    breaks(MEMORY_PROVEN, Scenario::TRANSACTIONS, without);
}

#[test]
fn without_comparing_versions_redis_goes_back() {
    let without = Protections { redis_compares: false, ..ALL };
    breaks(REDIS_MONOTONIC, Scenario::SLOW_UPDATE, without);
}

#[test]
fn without_comparing_versions_memory_goes_back() {
    let without = Protections { slot_compares: false, ..ALL };
    breaks(MEMORY_MONOTONIC, Scenario::LONG_OVERTAKEN_UPDATE, without);
}

#[test]
fn without_the_floor_memory_keeps_an_old_result() {
    breaks(MEMORY_PROVEN, Scenario::LOADS, Protections { floor: false, ..ALL });
}

#[test]
fn without_the_floor_of_begin_a_slow_response_of_redis_is_kept() {
    breaks(MEMORY_PROVEN, Scenario::POLLS, Protections { floor_of_begin: false, ..ALL });
}

#[test]
fn without_the_ordinal_a_load_that_outlives_its_changes_is_kept() {
    breaks(MEMORY_PROVEN, Scenario::LOADS, Protections { load_ordinal: false, ..ALL });
}

#[test]
fn without_the_ordinal_a_write_that_outlives_its_changes_is_kept() {
    let without = Protections { write_ordinal: false, ..ALL };
    breaks(MEMORY_PROVEN, Scenario::SLOW_UPDATE, without);
}

#[test]
fn without_the_floor_of_an_own_write_an_old_entry_of_redis_is_accepted() {
    breaks(REDIS_PROVEN, Scenario::UPDATE, Protections { own_write_floor: false, ..ALL });
}

#[test]
fn a_bogus_hint_that_outlives_the_poll_keeps_the_product_out_of_memory() {
    breaks(KEEPABLE, Scenario::HINTS, Protections { pending_ends: false, ..ALL });
}

#[test]
fn a_hint_that_ends_with_a_poll_sent_before_it_ends_too_early() {
    breaks(MEMORY_PROVEN, Scenario::HINTS, Protections { pending_waits: false, ..ALL });
}

#[test]
fn an_in_flight_load_that_survives_a_gap_is_kept() {
    breaks(MEMORY_PROVEN, Scenario::LOADS, Protections { gap_invalidates_loads: false, ..ALL });
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
fn a_late_write_without_an_entry_to_replace_leaves_redis_old() {
    let without = Protections { writes_only_replace: false, ..ALL };
    breaks(CONVERGED, Scenario::OVERTAKEN_UPDATE, without);
}

#[test]
fn without_the_relay_redis_stays_old() {
    breaks(CONVERGED, Scenario::LOADS, Protections { relay: false, ..ALL });
}

#[test]
fn without_the_gap_check_a_late_poll_misses_pruned_rows() {
    breaks(MEMORY_PROVEN, Scenario::POLLS, Protections { gap_check: false, ..ALL });
}

#[test]
fn a_row_pruned_before_it_is_relayed_leaves_an_old_entry_that_is_kept() {
    breaks(MEMORY_PROVEN, Scenario::LOADS, Protections { prune_waits: false, ..ALL });
}

#[test]
fn a_change_that_a_node_has_not_applied_leaves_an_old_entry_that_is_kept() {
    breaks(MEMORY_PROVEN, Scenario::LOADS, Protections { relayed_waits: false, ..ALL });
}

#[test]
fn a_marker_that_goes_back_hides_a_gap() {
    breaks(MEMORY_PROVEN, Scenario::TAKEOVERS, Protections { markers_grow: false, ..ALL });
}

#[test]
fn a_proof_dated_by_the_arrival_of_the_response_is_too_new() {
    breaks(MEMORY_PROVEN, Scenario::POLLS, Protections { proof_when_sent: false, ..ALL });
}

#[test]
fn an_old_entry_is_accepted_after_a_failover() {
    breaks(MEMORY_PROVEN, Scenario::FAILOVER, Protections { suspects: false, ..ALL });
}

#[test]
fn an_entry_recent_when_a_loss_was_detected_stays_current_for_ever() {
    breaks(CONVERGED, Scenario::FAILOVER, Protections { suspects_age: false, ..ALL });
}

#[test]
fn a_key_without_the_moment_of_the_loss_hides_the_loss() {
    breaks(MEMORY_PROVEN, Scenario::LONG_FAILOVER, Protections { key_has_since: false, ..ALL });
}

#[test]
fn an_entry_known_before_an_overflow_is_accepted() {
    breaks(MEMORY_PROVEN, Scenario::OVERFLOW, Protections { overflow_suspects: false, ..ALL });
}

#[test]
fn an_entry_read_before_redis_reflected_an_overflow_is_kept() {
    let without = Protections { overflow_ends_with_ordinal: false, ..ALL };
    breaks(MEMORY_PROVEN, Scenario::OVERFLOW, without);
}

#[test]
fn without_invalidation_at_the_first_poll_earlier_loads_are_kept() {
    breaks(MEMORY_PROVEN, Scenario::START, Protections { first_poll_invalidates: false, ..ALL });
}

#[test]
fn without_a_new_epoch_lost_commits_are_served() {
    breaks(REDIS_PROVEN, Scenario::RESTORE, Protections { epoch: false, ..ALL });
}

#[test]
fn without_the_epoch_in_keys_lost_commits_are_read_from_redis() {
    breaks(MEMORY_PROVEN, Scenario::RESTORE, Protections { scope: false, ..ALL });
}

#[test]
fn a_write_of_the_old_epoch_into_the_new_one_sets_redis_back() {
    breaks(REDIS_MONOTONIC, Scenario::RESTORE, Protections { scope_of_begin: false, ..ALL });
}

#[test]
fn a_relay_of_the_old_epoch_that_advances_the_markers_hides_a_gap() {
    breaks(MEMORY_PROVEN, Scenario::RESTORE, Protections { markers_of_epoch: false, ..ALL });
}
