//! With all protections every promise holds in every reachable state.

use hotshelf_model::checker::check;
use hotshelf_model::protections::Protections;
use hotshelf_model::protocol::Protocol;
use hotshelf_model::scenarios::Scenario;

fn promises_hold(scenario: Scenario) {
    let report = check(&Protocol { protections: Protections::ALL, scenario });
    eprintln!("{} states, {} steps, {} quiescent", report.states, report.steps, report.quiescent);
    assert!(report.counterexample.is_none(), "{:#?}", report.counterexample);
    assert!(report.quiescent > 1, "hardly any state was quiescent");
}

#[test]
fn promises_hold_while_two_instances_load_a_product_that_changes() {
    promises_hold(Scenario::LOADS);
}

#[test]
fn promises_hold_when_a_product_changes_during_a_poll() {
    promises_hold(Scenario::POLLS);
}

#[test]
fn promises_hold_while_copies_are_evicted_during_an_update() {
    promises_hold(Scenario::UPDATE);
}

#[test]
fn promises_hold_while_redis_fails_during_an_update() {
    promises_hold(Scenario::UPDATE_WITHOUT_REDIS);
}

#[test]
fn promises_hold_when_an_update_is_held_up_until_its_row_is_pruned() {
    promises_hold(Scenario::SLOW_UPDATE);
}

#[test]
fn promises_hold_when_an_update_is_overtaken_by_another_write() {
    promises_hold(Scenario::OVERTAKEN_UPDATE);
}

#[test]
fn promises_hold_while_a_product_is_deleted_and_inserted_again() {
    promises_hold(Scenario::DELETION);
}

#[test]
fn promises_hold_when_transactions_commit_in_another_order_than_they_began() {
    promises_hold(Scenario::TRANSACTIONS);
}

#[test]
fn promises_hold_while_the_relay_lease_changes_hands() {
    promises_hold(Scenario::TAKEOVERS);
}

#[test]
fn promises_hold_when_hints_are_lost_late_or_bogus() {
    promises_hold(Scenario::HINTS);
}

#[test]
fn promises_hold_when_an_instance_is_killed_between_any_two_steps() {
    promises_hold(Scenario::CRASH);
}

#[test]
fn promises_hold_when_an_instance_starts_and_does_not_poll_for_long() {
    promises_hold(Scenario::START);
}

#[test]
fn promises_hold_when_redis_fails_over_and_lost_its_last_writes() {
    promises_hold(Scenario::FAILOVER);
}

#[test]
fn promises_hold_when_more_changes_come_than_are_remembered() {
    promises_hold(Scenario::OVERFLOW);
}

#[test]
fn promises_hold_when_postgres_is_set_back() {
    promises_hold(Scenario::RESTORE);
}

#[test]
#[ignore = "minutes, and 2 GB"]
fn soak_a_load_while_an_update_is_overtaken() {
    promises_hold(Scenario::LONG_OVERTAKEN_UPDATE);
}

#[test]
#[ignore = "a minute, and 2 GB"]
fn soak_a_load_while_an_instance_is_killed() {
    promises_hold(Scenario::LONG_CRASH);
}

#[test]
#[ignore = "minutes"]
fn soak_two_instances_follow_the_changes_during_a_failover() {
    promises_hold(Scenario::LONG_FAILOVER);
}

#[test]
#[ignore = "half a minute"]
fn soak_two_instances_follow_the_changes_and_load() {
    promises_hold(Scenario::LONG_LOADS);
}
