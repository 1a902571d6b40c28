//! Every promise holds in every state that can be reached with all protections on.

use hotshelf_model::checker::check;
use hotshelf_model::protections::Protections;
use hotshelf_model::protocol::Protocol;
use hotshelf_model::scenarios::Scenario;

fn promises_hold(scenario: Scenario) {
    let report = check(&Protocol { protections: Protections::ALL, scenario });
    eprintln!("{} states, {} steps, {} at rest", report.states, report.steps, report.at_rest);
    assert!(report.counterexample.is_none(), "{:#?}", report.counterexample);
    assert!(report.at_rest > 1, "nothing ever came to rest");
}

#[test]
fn while_two_instances_load_a_product_that_changes() {
    promises_hold(Scenario::LOADS);
}

#[test]
fn while_two_instances_load_a_product_that_is_updated() {
    promises_hold(Scenario::LOADS_AND_UPDATE);
}

#[test]
fn while_an_update_fails_halfway_and_copies_are_evicted() {
    promises_hold(Scenario::UPDATE);
}

#[test]
fn when_an_update_is_overtaken_by_another_write() {
    promises_hold(Scenario::OVERTAKEN_UPDATE);
}

#[test]
fn while_two_relays_carry_a_deletion_and_a_reinsertion() {
    promises_hold(Scenario::RELAYS);
}

#[test]
fn when_an_instance_is_killed_between_any_two_steps() {
    promises_hold(Scenario::CRASH);
}

#[test]
fn when_redis_fails_over_and_lost_its_last_writes() {
    promises_hold(Scenario::FAILOVER);
}

#[test]
fn when_an_instance_falls_behind_the_change_stream() {
    promises_hold(Scenario::TRIM);
}

#[test]
fn while_an_instance_looks_how_far_two_changes_have_been_relayed() {
    promises_hold(Scenario::FRONTIER);
}

#[test]
fn while_an_instance_looks_how_far_an_update_has_been_relayed() {
    promises_hold(Scenario::FRONTIER_OF_ONE);
}

#[test]
fn while_an_instance_looks_how_far_a_deletion_has_been_relayed() {
    promises_hold(Scenario::FRONTIER_OF_DELETION);
}

#[test]
fn when_an_instance_that_looks_or_another_is_killed() {
    promises_hold(Scenario::FRONTIER_AND_CRASH);
}

#[test]
#[ignore = "half a minute"]
fn soak_loads_in_both_instances_during_an_update() {
    promises_hold(Scenario::LONG_UPDATE);
}

#[test]
#[ignore = "half a minute"]
fn soak_three_writes() {
    promises_hold(Scenario::LONG_THREE_WRITES);
}

#[test]
#[ignore = "a quarter of a minute"]
fn soak_two_updates_overtake_each_other() {
    promises_hold(Scenario::LONG_OVERTAKEN_UPDATE);
}

#[test]
#[ignore = "minutes, and 4 GB"]
fn soak_a_failover_and_the_death_of_an_instance() {
    promises_hold(Scenario::LONG_DOUBLE_FAULT);
}

#[test]
#[ignore = "a quarter of a minute"]
fn soak_an_instance_looks_during_an_update_that_is_overtaken() {
    promises_hold(Scenario::LONG_FRONTIER);
}

#[test]
#[ignore = "a minute, and 3 GB"]
fn soak_an_instance_looks_and_falls_behind() {
    promises_hold(Scenario::LONG_FRONTIER_AND_TRIM);
}
