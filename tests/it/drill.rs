//! A short form of every drill of `make drill`, for correctness: the fault takes place, nothing fails that may not,
//! no promise is broken, and everything recovers. Speed is for `make drill`.

use std::path::PathBuf;

use drill::{Fault, Plan, faults};

use crate::harness::Suite;

pub fn register(suite: &mut Suite<'_>) {
    for fault in faults::all() {
        let name = format!("drill::{}", fault.name);
        suite.own(&name, fault.missing(), move || short_form(fault));
    }
}

async fn short_form(fault: Fault) {
    let plan = Plan::test(PathBuf::from(env!("CARGO_BIN_EXE_hotshelf")));
    let drilled = drill::run(&fault, &plan).await.unwrap_or_else(|error| panic!("{error}"));
    assert!(!drilled.proofs.is_empty(), "the fault took place");
    assert!(drilled.breaches.is_empty(), "{:#?}", drilled.breaches);
}
