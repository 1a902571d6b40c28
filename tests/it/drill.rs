//! A short form of every drill of `make drill`, for correctness: the fault takes place, only allowed failures occur,
//! no guarantee is broken, and everything recovers. `make drill` judges the latencies.

use std::path::PathBuf;

use drill::{DrillResult, Fault, Plan, faults};

use crate::harness::{StallMeter, Suite, too_busy};

pub fn register(suite: &mut Suite<'_>) {
    for fault in faults::all() {
        let name = format!("drill::{}", fault.name);
        suite.own(&name, fault.missing(), move || short_form(fault.clone()));
    }
}

async fn short_form(fault: Fault) {
    let plan = Plan::test(PathBuf::from(env!("CARGO_BIN_EXE_hotshelf")));
    let stalls = StallMeter::start();
    let drilled = drill::run(&fault, &plan).await.unwrap_or_else(|error| panic!("{error}"));
    assert!(!drilled.proofs.is_empty(), "the fault took place");
    let DrillResult { figures, breaches, warnings, .. } = drilled;
    let busy = match figures.not_sent {
        0 => stalls.too_long(),
        requests => Some(format!("{requests} requests were not sent")),
    };
    if let Some(why) = busy.filter(|_| !breaches.is_empty() && figures.violations.is_empty()) {
        too_busy(&format!("{why}: {breaches:#?}"));
    }
    let examples = &figures.examples;
    assert!(breaches.is_empty(), "{breaches:#?}\nfor instance {examples:#?}\nlog {warnings:#?}");
}
